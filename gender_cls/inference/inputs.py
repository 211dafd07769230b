"""The images that the arguments img=... name."""

import glob
import os
import sys
from io import BytesIO
from pathlib import Path
from unicodedata import normalize

from gender_cls.errors import UserError, unreadable
from gender_cls.files import stream_kind, user_path
from gender_cls.manifests import DELIMITERS, PARQUET, UTF_16, locate, read_table, read_text
from gender_cls.transforms.formats import begins_as_image
from gender_cls.transforms.listing import SYSTEM, Listing, list_images


def expand(given: str) -> Listing:
    """Return the images that an argument names, in order, and what of a folder is ignored.

    Args:
        given: A file; a folder, for every image below it; a pattern such as `photos/**/*.jpg`, unless a file has that
            name; `@FILE` for a list with one path per line or a table with the column path, relative to the list's
            folder; or `-` for such a list from standard input, relative to the working directory. A list that holds a
            NUL is split at NULs, not at line ends, as `find -print0` writes it.

    Raises:
        UserError: There is no image, or the list can't be read.
    """
    if given == "-":
        return Listing(_parse_list(sys.stdin.buffer.read(), "", "img=-"))
    path = user_path(given)
    if given.startswith("@") and not os.path.lexists(path):
        file = user_path(given[1:])
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise unreadable(f"img={given}", error) from error
        return Listing(_parse_list(content, os.path.dirname(file), f"img={given}"))
    if os.path.isdir(path):
        listing = list_images(path)
        if not listing.paths:
            raise UserError("no-images", f"img={given} holds no image; name the file itself")
        return listing
    if glob.has_magic(path) and not os.path.lexists(path):
        for form in dict.fromkeys((path, normalize("NFC", path), normalize("NFD", path))):
            if paths := _matching(form):
                return Listing(paths)
        raise UserError("not-found", f"img={given}: no file has that name or matches that pattern")
    return Listing([path])


def _matching(pattern: str) -> list[str]:
    """Return the files that match, without hidden and `SYSTEM` ones; `**` follows no links, which may be circular."""
    anchor = Path(pattern).anchor
    try:
        found = sorted(Path(anchor or ".").glob(pattern[len(anchor) :]))
    except ValueError as error:
        raise UserError("bad-value", f"img={pattern}: {str(error).lower()}") from error
    named = set(Path(pattern).parts)
    shown = (p for p in found if not any(part.startswith(".") or part in SYSTEM for part in set(p.parts) - named))
    return [str(path) for path in shown if not path.is_dir()]


def _parse_list(content: bytes, folder: str, source: str) -> list[str]:
    table = None
    if begins_as_image(BytesIO(content)):
        raise UserError("bad-data", f"{source} is an image, not a list; give it without the @")
    if b"\0" in content and not content.startswith((PARQUET, *UTF_16)) and not stream_kind(BytesIO(content)):
        names = os.fsdecode(content).split("\0")
    elif "path" in (table := read_table(content, source)).columns:
        names = [row["path"] for _, row in table.rows]
        if empty := [where for where, row in table.rows if not row["path"].strip()]:
            raise UserError("bad-data", f"{source} {empty[0]} has no path; complete or delete it")
        table = None
    elif content.startswith(PARQUET):
        raise UserError("bad-data", f"{source} has no column 'path' (found: {', '.join(table.columns)[:200]})")
    else:
        names = [line.removesuffix("\r") for line in read_text(content, source).split("\n")]
    paths = [locate(folder, name) for name in names if name.strip()]
    like_a_table = table and len(paths) > 1 and any(map(names[0].count, (*DELIMITERS, "|")))
    if like_a_table and not any(map(os.path.lexists, paths)):
        what = f"none of its {len(paths)} lines is the path of a file, first {names[0][:200]!r}"
        raise UserError("bad-data", f"{source}: {what}; a table needs a column path")
    if not paths:
        way_out = "give one path per line, or a table with the column path"
        raise UserError("no-images", f"{source} names no image; {way_out}")
    return paths
