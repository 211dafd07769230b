"""The images that the arguments img=... name."""

import csv
import glob
import os
import sys
from io import StringIO
from pathlib import Path

from gender_cls.errors import UserError, unreadable
from gender_cls.transforms.decode import list_images


def expand(given: str) -> list[str]:
    """Return the images that an argument names, in order.

    Args:
        given: A file; a folder, for every image below it; a pattern such as `photos/**/*.jpg`, unless a file has that
            name; `@FILE` for a list with one path per line or a CSV with the column path, relative to the list's
            folder; or `-` for such a list from standard input, relative to the working directory. A list that holds a
            NUL is split at NULs, not at line ends, as `find -print0` writes it.

    Raises:
        UserError: There is no image, or the list can't be read.
    """
    if given == "-":
        return _parse_list(sys.stdin.buffer.read(), "", "img=-")
    if given.startswith("@") and not os.path.lexists(given):
        file = Path(given[1:])
        try:
            return _parse_list(file.read_bytes(), os.path.dirname(file), f"img={given}")
        except OSError as error:
            raise unreadable(f"img={given}", error) from error
    if os.path.isdir(given):
        if paths := list_images(given):
            return paths
        raise UserError("no-images", f"img={given} holds no file with the suffix of an image; name the file itself")
    if glob.has_magic(given) and not os.path.lexists(given):
        if paths := _matching(given):
            return paths
        raise UserError("not-found", f"img={given}: no file has that name or matches that pattern")
    return [given]


def _matching(pattern: str) -> list[str]:
    """Return the files that match, without hidden ones; `**` does not follow links, which may be circular."""
    anchor = Path(pattern).anchor
    try:
        found = sorted(Path(anchor or ".").glob(pattern[len(anchor) :]))
    except ValueError as error:
        raise UserError("bad-value", f"img={pattern}: {str(error).lower()}") from error
    named = set(Path(pattern).parts)
    shown = (path for path in found if not any(part.startswith(".") for part in set(path.parts) - named))
    return [str(path) for path in shown if not path.is_dir()]


def _parse_list(content: bytes, folder: str, source: str) -> list[str]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell redirects
        content = content.decode("utf-16", errors="replace").encode()
    text = os.fsdecode(content).removeprefix("\ufeff")
    if "\0" in text:
        names = text.split("\0")
    elif (rows := list(csv.reader(StringIO(text, newline="")))) and "path" in rows[0]:
        column = rows[0].index("path")
        if short := [number for number, row in enumerate(rows, 1) if row and len(row) <= column]:
            raise UserError("bad-data", f"{source}: row {short[0]} has no path; complete or delete it")
        names = [row[column] for row in rows[1:] if row]
    else:
        names = [line.removesuffix("\r") for line in text.split("\n")]
    paths = [os.path.join(folder, name) for name in names if name]
    if not paths:
        raise UserError("no-images", f"{source} names no image; give one path per line, or a CSV with the column path")
    return paths
