"""Tables of images as people have them: CSV with commas, semicolons or tabs, in UTF-8 or UTF-16, and Parquet."""

import csv
import math
import os
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

from gender_cls.errors import UserError, check_extra
from gender_cls.files import stream_kind, user_path

USED = ("path", "label", "split", "identity", "group")
CELL = 2**31 - 1  # letters of a cell, at most
DELIMITERS = (",", ";", "\t")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
PARQUET = b"PAR1"
HEADER = 100_000  # letters in which the first line ends
EXCEL = "sep="  # a first line by which Excel names the delimiter


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Names of the columns, in lower case and without blanks around them.
        rows: Where each row stands, such as `line 2`, and its cells by column; a cell without a value is empty. Without
            a column path there are none.
    """

    columns: list[str]
    rows: list[tuple[str, dict[str, str]]]


def read_table(content: bytes, source: str) -> Table:
    """Read a table.

    Args:
        content: Content of the file.
        source: What names the file in errors, such as the key=value that gave it.

    Raises:
        UserError: It is no table, or a row does not fit its columns.
    """
    if content.startswith(PARQUET):
        return _read_parquet(content, source)
    text = read_text(content, source)
    headers = {delimiter: _header(text[:HEADER], delimiter) for delimiter in DELIMITERS}
    for delimiter, names in headers.items():
        if "path" in names:
            return _read_csv(text, delimiter, source)
    return Table(max(headers.values(), key=len), [])


def read_text(content: bytes, source: str) -> str:
    """Decode text in UTF-8 or UTF-16; bytes that are neither, as in old file names, become surrogates.

    Raises:
        UserError: It is another kind of file, which the message names.
    """
    if content.startswith(UTF_16):
        return content.decode("utf-16", errors="replace")
    kind = stream_kind(BytesIO(content))
    if kind or b"\0" in content[:4096]:
        what = kind or "no text in UTF-8, nor in UTF-16 with a byte order mark"
        raise UserError("bad-data", f"{source} is {what}; give a CSV or Parquet file")
    return content.decode(errors="surrogateescape").removeprefix("\ufeff")


def locate(folder: str | os.PathLike[str], cell: str) -> str:
    """Return the path that a cell or line names, relative to a folder, as the disk has it.

    Where there is no such file, the name is tried without blanks around it, with Windows' backslashes as slashes, and
    in Windows' encoding of Western Europe; if none of them exists either, the path is returned as it was written.
    """
    plain = cell.strip().strip('"')  # as Windows copies a path
    names = [cell, plain, plain.replace("\\", "/"), cell.removeprefix("'")]  # the last guards against formulas
    raw = cell.strip().encode(errors="surrogateescape")
    if not cell.isascii():
        names.append(raw.decode("cp1252", errors="replace"))
    paths = (user_path(os.path.join(folder, os.path.expanduser(name))) for name in dict.fromkeys(names))
    return next(filter(os.path.lexists, paths), os.path.join(folder, cell))


def _header(text: str, delimiter: str) -> list[str]:
    try:
        rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
        return _names(next((row for row in rows if any(row) and not row[0].startswith(EXCEL)), []))
    except csv.Error:
        return []


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _read_csv(text: str, delimiter: str, source: str) -> Table:
    found: list[tuple[str, dict[str, str]]] = []
    last = 0
    before = csv.field_size_limit(CELL)  # a cell may hold an encoded image
    try:
        rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = _checked(_names(next(row for row in rows if any(row) and not row[0].startswith(EXCEL))), source)
        last = rows.line_num
        for cells in rows:
            last = rows.line_num
            if any(map(str.strip, cells[len(columns) :])):
                what = f"has {len(cells)} cells for {len(columns)} columns; quote a cell that holds a {delimiter!r}"
                raise UserError("bad-data", f"{source} line {rows.line_num} {what}")
            if any(cells):
                cells += [""] * (len(columns) - len(cells))
                found.append((f"line {rows.line_num}", dict(zip(columns, cells))))
    except csv.Error as error:
        what = f"from line {last + 1} on: a quote is opened or closed in the wrong place ({error})"
        raise UserError("bad-data", f"{source} {what}; mend it, since it would swallow rows") from error
    finally:
        csv.field_size_limit(before)
    return Table(columns, found)


def _read_parquet(content: bytes, source: str) -> Table:
    check_extra(source, "formats", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(BytesIO(content))
        nested = [field.name for field in file.schema_arrow if pyarrow.types.is_nested(field.type)]
        plain = [name for name in file.schema_arrow.names if name not in nested]
        if held := set(USED) & set(_names(nested)):
            what = f"the column {min(held)!r} holds lists or images instead of text"
            raise UserError("bad-data", f"{source}: {what}; write it as text")
        columns = _checked(_names(plain), source)
        rows = [list(row.values()) for batch in file.iter_batches(columns=plain) for row in batch.to_pylist()]
    except pyarrow.ArrowException as error:
        raise UserError("unreadable", f"{source} is a damaged Parquet file ({' '.join(str(error).split())})") from error
    if "path" not in columns:
        return Table(columns, [])
    return Table(columns, [(f"row {at}", dict(zip(columns, map(_cell, row)))) for at, row in enumerate(rows, 1)])


def _checked(columns: list[str], source: str) -> list[str]:
    twice = [name for name in filter(None, columns) if columns.count(name) > 1]
    if twice:
        raise UserError("bad-data", f"{source} has two columns named {twice[0]!r}; rename or delete one")
    return columns


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
