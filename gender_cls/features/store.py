"""Stores of frozen features on disk, memory-mapped; `python -m gender_cls.features.store` lists and deletes them."""

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

from gender_cls.errors import UserError, reason
from gender_cls.files import cache_folder, replacing, user_path, write_text

log = logging.getLogger(__name__)

DIGEST = "S32"
ABOUT = "about.json"
SHARDS = "[!.]*.pt"  # a file that is still being written begins with a dot
UNFINISHED = (".*.part-*.pt", "*.part")  # of a process that was killed; the second as older versions named it


class Store:
    """Features of images (rows, by digest) in views (columns, by number), in a folder that is named by its facts.

    The folder holds shards, each a file of `torch.save` that never changes: `digests` (n, 32), `columns` (c) and
    `features` (c * n, F), in which the rows of one column lie together. Further images or columns come as further
    shards. The files are memory-mapped, so that features take no memory before they are read.

    Args:
        folder: Folder of all stores.
        facts: Everything that makes features differ, as JSON values; other facts are another store.

    Raises:
        UserError: The folder can't be written, or a shard can't be read.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, indent=2, sort_keys=True)
        self.folder = Path(folder).expanduser() / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._shards: list[torch.Tensor] = []  # it only grows, so that places stay valid
        self._rows: dict[Path, tuple[tuple[int, ...], np.ndarray, np.ndarray]] = {}
        about = self.folder / ABOUT
        with self._writing():
            if about.exists():
                with suppress(OSError):  # a complete store can be read without the right to write
                    os.utime(about)  # when it was last used
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(about, text)
        self.open()

    def open(self) -> None:
        """Map the new shards; one that is cut off is skipped, so that its features are computed again."""
        for path in sorted(set(self.folder.glob(SHARDS)) - set(self._rows)):
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
        except (OSError, RuntimeError) as error:  # no right to read it or no memory to map it: it stays
            command = shlex.join(["python", "-m", "gender_cls.features.store", "--dir", str(self.folder.parent)])
            what = f"{path} can't be read ({reason(error)}); `{command} --clear {self.folder.name}` deletes it"
            raise UserError("unreadable", f"features.dir: {what}") from error

    def find(self, digests: np.ndarray, column: int) -> np.ndarray:
        """Return the places of the features of images (N) in a view, for `read`; -1 for those that are not stored."""
        places = np.full(len(digests), -1, dtype=np.int64)
        for columns, (known, first, rows) in self._tables.items():
            if column in columns:
                at = np.searchsorted(known, digests).clip(max=len(known) - 1)
                found = known[at] == digests
                places[found] = (first[at] + columns.index(column) * rows[at])[found]
        return places

    def read(self, places: np.ndarray) -> torch.Tensor:
        """Return the features, float32 (N, F), at places (N) that `find` returned, at least one."""
        return torch.stack([self._shards[place >> 32][place & 0xFFFFFFFF] for place in places.tolist()]).float()

    def write(self, digests: np.ndarray, columns: Sequence[int], features: torch.Tensor) -> None:
        """Add a shard: features (n, c, F) of the type to store, of images (n) in views (c).

        Raises:
            UserError: The disk is full or not writable.
        """
        name = hashlib.blake2b(digests.tobytes() + repr(columns).encode(), digest_size=8).hexdigest()
        content = {
            "digests": torch.from_numpy(digests.astype(DIGEST).view(np.uint8).reshape(len(digests), -1).copy()),
            "columns": list(columns),
            "features": features.transpose(0, 1).flatten(0, 1).contiguous(),
        }
        with self._writing(), replacing(self.folder / f"{name}.pt") as unfinished:
            torch.save(content, unfinished)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time add to the store, which is first brought up to date with what others added."""
        with self._writing():
            lock = FileLock(self.folder / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"waiting for another process that writes to {self.folder}")
                lock.acquire()
        try:
            for unfinished in [path for pattern in UNFINISHED for path in self.folder.glob(pattern)]:
                unfinished.unlink()
            for path in set(self.folder.glob(SHARDS)) - set(self._rows):
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
            what = f"{self.folder} can't be written ({reason(error)}); give another folder"
            raise UserError("not-writable", f"features.dir: {what}") from error


def read_shard(path: Path) -> dict[str, Any] | None:
    """Return a shard, memory-mapped, or None if it is cut off or was deleted after it was listed."""
    try:
        with path.open("rb") as file:
            whole = zipfile.is_zipfile(file)  # as torch.save writes; its directory is at the end
        return torch.load(path, mmap=True, weights_only=True) if whole else None
    except FileNotFoundError:
        return None


def _line(store: Path) -> str:
    """Describe a store in one line: name, size, images, views and facts."""
    facts = json.loads((store / ABOUT).read_text())
    shards = [shard for path in store.glob(SHARDS) if (shard := read_shard(path))]
    images = len(set().union(*(shard["digests"].numpy().view(DIGEST).ravel().tolist() for shard in shards)))
    views = len({column for shard in shards for column in shard["columns"]})
    size = sum(path.stat().st_size for path in store.iterdir())
    described = " ".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in facts.items())
    return f"{store.name}  {size / 1e6:8.1f} MB  {images:8d} images  {views:3d} views  {described}"


def main() -> None:
    """List the stores, or delete some of them."""
    parser = argparse.ArgumentParser(
        prog="python -m gender_cls.features.store",
        description="List or delete the frozen features that train.py stored. They can be computed again.",
    )
    parser.add_argument("--dir", default=cache_folder(), help="features.dir of the runs (%(default)s)")
    parser.add_argument("--clear", nargs="+", metavar="NAME", help="delete the stores of these names, or all")
    arguments = parser.parse_args()
    arguments.dir = Path(user_path(arguments.dir))
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
                for path in (arguments.dir / name).iterdir():
                    if path.name != "lock":  # which Windows does not delete while it is held
                        path.unlink()
            shutil.rmtree(arguments.dir / name)
        except Timeout:
            sys.exit(f"error: {name} is in use by another process; it is not deleted")
        print(f"deleted {name}")


if __name__ == "__main__":
    main()
