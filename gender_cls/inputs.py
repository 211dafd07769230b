"""Which pictures the words img=... name."""

import csv
import glob
import os
import sys
from io import StringIO
from pathlib import Path

from gender_cls.errors import UserError
from gender_cls.images import list_pictures


def expand(given: str) -> list[str]:
    """The pictures that a word names, in order.

    Args:
        given: A file; a folder, for every picture below it; a pattern such as `photos/*.jpg`, `**` for folders in
            between, where no file has that name; `@FILE` for a list, a path a line or a CSV with the column path,
            relative to the list's folder; `-` for such a list from standard input, relative to this one. Names in a
            list that holds a NUL end in NUL, not at the line's end, as `find -print0` writes them.

    Raises:
        UserError: there is no picture, or the list can't be read.
    """
    if given == "-":
        return _listed(sys.stdin.buffer.read(), "", "img=-")
    if given.startswith("@") and not os.path.lexists(given):
        file = Path(given[1:])
        try:
            return _listed(file.read_bytes(), os.fspath(file.parent), f"img={given}")
        except OSError as error:
            raise UserError(f"img={given}: {(error.strerror or str(error)).lower()}") from error
    if os.path.isdir(given):
        paths = list_pictures(given)
        if not paths:
            raise UserError(f"img={given} holds no file whose name ends like a picture's; name the file itself")
        return paths
    if glob.has_magic(given) and not os.path.lexists(given):
        found = sorted(path for path in glob.glob(given, recursive=True) if not os.path.isdir(path))
        if not found:
            raise UserError(f"img={given}: no file has that name, or matches that pattern")
        return found
    return [given]


def _listed(content: bytes, folder: str, source: str) -> list[str]:
    text = os.fsdecode(content)
    if "\0" in text:
        names = text.split("\0")
    else:
        lines = text.removeprefix("\ufeff").splitlines()
        if lines and "path" in (header := next(csv.reader([lines[0]]))):
            rows = list(csv.reader(StringIO("\n".join(lines[1:]))))
            names = [row[header.index("path")] for row in rows if len(row) > header.index("path")]
        else:
            names = lines
    paths = [os.path.join(folder, name) for name in names if name]
    if not paths:
        raise UserError(f"{source} names no picture")
    return paths
