"""Where files go, and how they get there whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Folder of what can be computed again: `$XDG_CACHE_HOME/gender_cls`, or below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gender_cls"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it is renamed to `path` at the end, or deleted after an exception."""
    unfinished = path.with_name(f".{path.stem}.part-{os.getpid()}{path.suffix}")  # some writers go by the suffix
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all; what can't be encoded is escaped."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
