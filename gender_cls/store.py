"""Frozen features on disk, memory-mapped. `python -m gender_cls.store` lists what is stored and clears it."""

import argparse
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """Features of pictures (rows, by digest) in views (columns, by number of draw), in a folder named by its facts.

    The rows and columns of a shard never change once it is there: it is one file of `torch.save`, written beside and
    renamed, with `digests` (n, 32), `columns` (c) and `features` (c * n, 512), in which a column's rows lie together.
    Other pictures or columns come as further shards. Reading maps the files: what is not touched takes no memory.

    Args:
        folder: That holds the stores.
        facts: Everything that makes features differ; other facts are another store.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, indent=2, sort_keys=True)
        self.folder = Path(folder) / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f"{ABOUT}-{os.getpid()}"
            unfinished.write_text(text)
            os.replace(unfinished, self.folder / ABOUT)  # its time says when the store was used last
        self.open()

    def open(self) -> None:
        """Map the shards that are there; one that is cut off is deleted, so its features are computed anew.

        Raises:
            UserError: a shard can't be read.
        """
        self._shards: list[torch.Tensor] = []
        tables: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            shard = self._map(path)
            if shard is None:
                log.warning("%s is damaged; its features are computed again", path)
                path.unlink(missing_ok=True)
                continue
            digests = shard["digests"].numpy().view(DIGEST).ravel()
            first = len(self._shards) << 32 | np.arange(len(digests))
            rows = np.full(len(digests), len(digests))
            tables.setdefault(tuple(shard["columns"]), []).append((digests, first, rows))
            self._shards.append(shard["features"])
        self._tables = {}
        for columns, parts in tables.items():
            digests, first, rows = (np.concatenate(part) for part in zip(*parts))
            order = np.argsort(digests)
            self._tables[columns] = digests[order], first[order], rows[order]

    def _map(self, path: Path) -> dict[str, Any] | None:
        try:
            with path.open("rb") as file:
                whole = zipfile.is_zipfile(file)  # torch.save writes one, and its directory is at the end
            return torch.load(path, mmap=True, weights_only=True) if whole else None
        except (OSError, RuntimeError) as error:  # no reason to delete it: rights, or too little memory to map
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            name = self.folder.name
            raise UserError(
                f"features.dir: {path} can't be read ({reason}); `python -m gender_cls.store --clear {name}` deletes it"
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
        """Features, float32 (N, 512), of places that `find` gave."""
        rows = [self._shards[place >> 32][place & 0xFFFFFFFF] for place in places.tolist()]
        return torch.stack(rows).float() if rows else torch.empty(0, 1)

    def write(self, digests: np.ndarray, columns: Sequence[int], features: torch.Tensor) -> None:
        """Add a shard.

        Args:
            digests: (n), of the pictures.
            columns: (c), the views.
            features: (n, c, 512), of the type to store.

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
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"features.dir: {self.folder} can't be written ({reason}); give another folder") from error


def stores(folder: Path) -> list[Path]:
    """The stores below a folder, the one that was used last at the end."""
    return sorted(
        (about.parent for about in folder.glob(f"*/{ABOUT}")), key=lambda path: (path / ABOUT).stat().st_mtime
    )


def _line(store: Path) -> str:
    """One store: name, size, pictures, views, and what it is of."""
    facts = json.loads((store / ABOUT).read_text())
    shards = [torch.load(path, mmap=True, weights_only=True) for path in store.glob(f"*{SHARD}")]
    pictures = len(set().union(*(shard["digests"].numpy().view(DIGEST).ravel().tolist() for shard in shards)))
    views = len(set().union(*(shard["columns"] for shard in shards)))
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
    found = stores(arguments.dir)
    if not arguments.clear:
        print("\n".join(map(_line, found)) or f"no features in {arguments.dir}")
        return
    names = [store.name for store in found] if arguments.clear == ["all"] else arguments.clear
    for name in names:
        if name not in {store.name for store in found}:
            parser.error(f"{arguments.dir} holds no store named {name}")
    for name in names:
        shutil.rmtree(arguments.dir / name)
        print(f"deleted {name}")


if __name__ == "__main__":
    main()
