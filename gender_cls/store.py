"""Frozen features on disk, memory-mapped. `python -m gender_cls.store` lists what is stored and clears it."""

import argparse
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from gender_cls import cache_folder
from gender_cls.errors import UserError

log = logging.getLogger(__name__)

DIGEST = "S32"
ABOUT = "about.json"
SHARD = ".pt"


class Store:
    """Features of pictures (rows, by digest) in views (columns, by number), in a folder named by its facts.

    The rows and columns of a shard never change once it is there: it is one file of `torch.save`, written beside and
    renamed, with `digests` (n, 32), `columns` (c) and `features` (c * n, F), in which a column's rows lie together.
    Other pictures or columns come as further shards. Reading maps the files: what is not touched takes no memory.

    Args:
        folder: That holds the stores.
        facts: Everything that makes features differ; other facts are another store.

    Raises:
        UserError: the folder can't be written, or a shard not read.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, indent=2, sort_keys=True)
        self.folder = Path(folder).expanduser() / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._shards: list[torch.Tensor] = []  # only ever added to: places that were found stay right
        self._rows: dict[Path, tuple[tuple[int, ...], np.ndarray, np.ndarray]] = {}
        about = self.folder / ABOUT
        with self._writing():
            if about.exists():
                with suppress(OSError):  # a full store can be read by those who may not write it
                    os.utime(about)  # when it was used last
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                unfinished = self.folder / f"{ABOUT}-{os.getpid()}"
                unfinished.write_text(text)
                os.replace(unfinished, about)
        self.open()

    def open(self) -> None:
        """Map the shards that have come; one that is cut off is passed over, so its features are computed anew.

        Raises:
            UserError: a shard can't be read.
        """
        for path in sorted(set(self.folder.glob(f"*{SHARD}")) - set(self._rows)):
            shard = self._read(path)
            if shard is None:
                log.warning("%s is damaged; its features are computed again", path)
                continue
            digests = shard["digests"].numpy().view(DIGEST).ravel()
            first = len(self._shards) << 32 | np.arange(len(digests))
            self._rows[path] = tuple(shard["columns"]), digests, first
            self._shards.append(shard["features"])
        alike = defaultdict(list)
        for columns, digests, first in self._rows.values():
            alike[columns].append((digests, first, np.full(len(digests), len(digests))))
        self._tables = {}
        for columns, parts in alike.items():
            digests, first, rows = (np.concatenate(part) for part in zip(*parts))
            order = np.argsort(digests)
            self._tables[columns] = digests[order], first[order], rows[order]

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return read_shard(path)
        except (OSError, RuntimeError) as error:  # no reason to delete it: rights, or too little memory to map
            command = shlex.join(["python", "-m", "gender_cls.store", "--dir", str(self.folder.parent)])
            raise UserError(
                f"features.dir: {path} can't be read ({_reason(error)}); "
                f"`{command} --clear {self.folder.name}` deletes it"
            ) from error

    def find(self, digests: np.ndarray, column: int) -> np.ndarray:
        """Where the features of pictures (N) in a column lie, for `read`; -1 for those that are not stored."""
        places = np.full(len(digests), -1, dtype=np.int64)
        for columns, (known, first, rows) in self._tables.items():
            if column in columns:
                at = np.searchsorted(known, digests).clip(max=len(known) - 1)
                found = known[at] == digests
                places[found] = (first[at] + columns.index(column) * rows[at])[found]
        return places

    def read(self, places: np.ndarray) -> torch.Tensor:
        """Features, float32 (N, F), of at least one place that `find` gave."""
        return torch.stack([self._shards[place >> 32][place & 0xFFFFFFFF] for place in places.tolist()]).float()

    def write(self, digests: np.ndarray, columns: Sequence[int], features: torch.Tensor) -> None:
        """Add a shard.

        Args:
            digests: (n), of the pictures.
            columns: (c), the views.
            features: (n, c, F), of the type to store.

        Raises:
            UserError: the disk is full or not writable.
        """
        name = hashlib.blake2b(digests.tobytes() + repr(columns).encode(), digest_size=8).hexdigest()
        path = self.folder / f"{name}{SHARD}"
        content = {
            "digests": torch.from_numpy(digests.astype(DIGEST).view(np.uint8).reshape(len(digests), -1).copy()),
            "columns": list(columns),
            "features": features.transpose(0, 1).flatten(0, 1).contiguous(),
        }
        with self._writing():
            torch.save(content, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time add to the store; then see what others have added meanwhile."""
        with self._writing():
            lock = FileLock(self.folder / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"waiting for another process that computes into {self.folder}")
                lock.acquire()
        try:
            for unfinished in self.folder.glob("*.part"):  # of a process that was killed
                unfinished.unlink()
            for path in set(self.folder.glob(f"*{SHARD}")) - set(self._rows):
                if self._read(path) is None:
                    path.unlink()
            self.open()
            yield
            self.open()
        finally:
            lock.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            raise UserError(
                f"features.dir: {self.folder} can't be written ({_reason(error)}); give another folder"
            ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def read_shard(path: Path) -> dict[str, Any] | None:
    """A shard, mapped; None if it is cut off, or gone since it was listed."""
    try:
        with path.open("rb") as file:
            whole = zipfile.is_zipfile(file)  # torch.save writes one, and its directory is at the end
        return torch.load(path, mmap=True, weights_only=True) if whole else None
    except FileNotFoundError:
        return None


def _line(store: Path) -> str:
    """One store: name, size, pictures, views, and what it is of."""
    facts = json.loads((store / ABOUT).read_text())
    shards = [shard for path in store.glob(f"*{SHARD}") if (shard := read_shard(path))]
    pictures = len(set().union(*(shard["digests"].numpy().view(DIGEST).ravel().tolist() for shard in shards)))
    views = len({column for shard in shards for column in shard["columns"]})
    size = sum(path.stat().st_size for path in store.iterdir())
    what = " ".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in facts.items())
    return f"{store.name}  {size / 1e6:8.1f} MB  {pictures:8d} pictures  {views:3d} views  {what}"


def main() -> None:
    """List the stores, or delete some."""
    parser = argparse.ArgumentParser(
        prog="python -m gender_cls.store",
        description="Frozen features that train.py has computed once. Deleting them loses nothing but time.",
    )
    parser.add_argument("--dir", type=Path, default=cache_folder(), help="features.dir of the runs (%(default)s)")
    parser.add_argument("--clear", nargs="+", metavar="NAME", help="delete the stores of these names; all: every one")
    arguments = parser.parse_args()
    found = [about.parent for about in sorted(arguments.dir.glob(f"*/{ABOUT}"), key=lambda path: path.stat().st_mtime)]
    if not arguments.clear:
        print("\n".join(map(_line, found)) or f"no features in {arguments.dir}")
        return
    names = [store.name for store in found] if arguments.clear == ["all"] else arguments.clear
    for name in names:
        if name not in {store.name for store in found}:
            parser.error(f"{arguments.dir} holds no store named {name}")
    for name in names:
        try:
            with FileLock(arguments.dir / name / "lock", timeout=0):
                shutil.rmtree(arguments.dir / name)
        except Timeout:
            sys.exit(f"error: {name} is being computed into; nothing of it is deleted")
        print(f"deleted {name}")


if __name__ == "__main__":
    main()
