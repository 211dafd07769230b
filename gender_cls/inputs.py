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
            return _listed(file.read_bytes(), os.path.dirname(file), f"img={given}")
        except OSError as error:
            raise UserError(f"img={given}: {(error.strerror or str(error)).lower()}") from error
    if os.path.isdir(given):
        paths = list_pictures(given)
        if not paths:
            raise UserError(f"img={given} holds no file whose name ends like a picture's; name the file itself")
        return paths
    if glob.has_magic(given) and not os.path.lexists(given):
        found = _matching(given)
        if not found:
            raise UserError(f"img={given}: no file has that name, or matches that pattern")
        return found
    return [given]


def _matching(pattern: str) -> list[str]:
    """Files, but hidden ones; links to folders are not followed by `**`, since they may go round in circles."""
    anchor = Path(pattern).anchor
    try:
        found = sorted(Path(anchor or ".").glob(pattern[len(anchor) :]))
    except ValueError as error:
        raise UserError(f"img={pattern}: {str(error).lower()}") from error
    named = set(Path(pattern).parts)
    return [
        str(path)
        for path in found
        if not path.is_dir() and not any(part.startswith(".") and part not in named for part in path.parts)
    ]


def _listed(content: bytes, folder: str, source: str) -> list[str]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell redirects
        content = content.decode("utf-16", errors="replace").encode()
    text = os.fsdecode(content).removeprefix("\ufeff")
    rows = [] if "\0" in text else list(csv.reader(StringIO(text, newline="")))
    if "\0" in text:
        names = text.split("\0")
    elif rows and "path" in rows[0]:
        column = rows[0].index("path")
        short = [number for number, row in enumerate(rows, 1) if row and len(row) <= column]
        if short:
            raise UserError(f"{source}, row {short[0]}: has no path")
        names = [row[column] for row in rows[1:] if row]
    else:
        names = [line.removesuffix("\r") for line in text.split("\n")]
    paths = [os.path.join(folder, name) for name in names if name]
    if not paths:
        raise UserError(f"{source} names no picture")
    return paths
