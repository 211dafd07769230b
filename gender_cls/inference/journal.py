"""The table of a prediction run: rows are kept as they come, and the file gets its name when it is complete.

An image has a row or, where faces are looked for, one for each: its first row has no face number, or 1.
"""

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from gender_cls.errors import UserError, check_extra, reason

COLUMNS = ("path", "label", "confidence", "p_male", "error", "note", "face", "x", "y", "width", "height", "score")
NUMBERS = ("confidence", "p_male", "x", "y", "width", "height", "score")
TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet takes a cell that starts so for a formula
PARQUET_ROWS = 10_000  # written at once
Row = tuple[str, ...]  # as COLUMNS; numbers as text, empty where there is none
PATH, LABEL, ERROR, FACE = (COLUMNS.index(name) for name in ("path", "label", "error", "face"))


def check_table(out: Path) -> None:
    """Raise a `UserError` if a table is a folder, of an unknown format, or needs an extra that is not installed."""
    if out.is_dir():
        raise UserError("not-writable", f"out={out}: is a directory; give a file that can be written")
    if out.suffix not in TABLE_SUFFIXES:
        raise UserError("bad-value", f"out={out}: give a name that ends in {' or '.join(TABLE_SUFFIXES)}")
    if out.suffix == ".parquet":
        check_extra(f"out={out}", "formats", "pyarrow")


class Journal:
    """Rows beside `out`, as CSV, in a file whose name says what made them; `finish` turns them into `out`.

    The same command continues a killed run: rows are kept in whole blocks, without the last, which may be torn. It is a
    `UserError` if they are not those of `paths`, or of another model.

    Args:
        out: Table to write: .csv, .jsonl or .parquet; see `check_table`.
        made_by: Hash of the model and of everything else that decides the rows.
        paths: Paths of the images, in order.
        block: Number of images that are computed together.

    Attributes:
        labels: Number of rows of each label; the empty label counts the failures.
    """

    def __init__(self, out: Path, made_by: str, paths: Sequence[str], block: int) -> None:
        self.out, self.paths = out, paths
        self.labels: Counter[str] = Counter()
        self._images = 0
        self.file, self.new = (out.with_name(f"{out.name}.part-{made_by}{suffix}") for suffix in ("", ".new"))
        for other in out.parent.glob(f"{glob.escape(out.name)}.part-*"):
            if other.name.removesuffix(".new") != self.file.name:
                raise self._mismatch(other, "another model or other options; finish them with those")
        self.lock = FileLock(out.with_name(f"{out.name}.lock"))
        with self._failing():
            os.stat(out.parent)  # the lock would create the folder
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise UserError("conflict", f"out={out}: another run writes it; wait, or give another file") from None
            try:
                self._keep_rows(block)
            except BaseException:
                self.close()
                raise

    def __len__(self) -> int:
        """Return the number of images that have their rows."""
        return self._images

    def write(self, rows: Iterable[Row]) -> None:
        """Add all rows of some images."""
        safe = [[safe_cell(cell) if at in (PATH, ERROR) else cell for at, cell in enumerate(row)] for row in rows]
        with self._failing(), _open(self.file, "a") as file:
            csv.writer(file).writerows(safe)
        self._count(safe)  # only once they are written

    def finish(self) -> None:
        """Write the complete table, in place of an earlier one."""
        with self._failing():
            if self.out.suffix == ".csv":
                os.replace(self.file, self.out)
            else:
                records = _records(self.paths, self._read())
                (_write_jsonl if self.out.suffix == ".jsonl" else _write_parquet)(self.new, records)
                os.replace(self.new, self.out)
                self.file.unlink()

    def close(self) -> None:
        """Release the lock and delete a file without rows."""
        if not len(self) and self.file.exists() and next(self._read(), None) is None:
            self.file.unlink()
        self.lock.release()
        with suppress(OSError):  # Windows does not delete what another run has just opened
            Path(self.lock.lock_file).unlink()

    def _count(self, rows: Sequence[Sequence[str]]) -> None:
        self.labels.update(row[LABEL] for row in rows)
        self._images += sum(map(_is_first, rows))

    def _mismatch(self, file: Path, of: str) -> UserError:
        return UserError("resume-mismatch", f"out={self.out}: {file} holds unfinished rows of {of}, or delete the file")

    def _keep_rows(self, block: int) -> None:
        rows = list(self._read()) if self.file.exists() else []
        rows = list(takewhile(lambda row: len(row) == len(COLUMNS), rows))
        starts = [at for at, row in enumerate(rows) if _is_first(row)]
        starts = starts[: len(self.paths) + 1]
        if any(rows[at][PATH] != safe_cell(path) for at, path in zip(starts[:-1], self.paths)):  # the last may be torn
            raise self._mismatch(self.file, "other images; give the same img=")
        whole = max(0, len(starts) - 1)
        kept = rows[: starts[whole - whole % block]] if starts else []
        with _open(self.new, "w") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
        os.replace(self.new, self.file)
        self._count(kept)

    def _read(self) -> Iterator[list[str]]:
        with _open(self.file, "r") as file, suppress(csv.Error):  # a row torn by a crash
            yield from islice(csv.reader(file), 1, None)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = f"; the rows of {len(self)} images are kept, and the same command continues from there"
            kept = kept if len(self) else ""
            message = f"out={self.out}: {reason(error)}; give a file that can be written{kept}"
            raise UserError("not-writable", message) from error


def safe_cell(text: str) -> str:
    """Return the text of a cell, with a ' before what a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _open(file: Path, mode: str) -> IO[str]:
    return open(file, mode, newline="", encoding="utf-8", errors="surrogateescape")


def _is_first(row: Sequence[str]) -> bool:
    return row[FACE] in ("", "1")


def _records(paths: Sequence[str], rows: Iterable[list[str]]) -> Iterator[dict[str, str | float | None]]:
    images, path = iter(paths), ""
    for row in rows:
        path = next(images) if _is_first(row) else path
        record: dict[str, str | float | None] = {**dict(zip(COLUMNS, row)), "path": path}
        record |= {name: float(cell) if (cell := record[name]) else None for name in NUMBERS}
        yield record | {"face": int(row[FACE]) if row[FACE] else None}


def _write_jsonl(file: Path, records: Iterator[dict[str, str | float | None]]) -> None:
    with open(file, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)


def _write_parquet(file: Path, records: Iterator[dict[str, str | float | None]]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {"face": pyarrow.int32(), **dict.fromkeys(NUMBERS, pyarrow.float64())}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with ParquetWriter(file, schema) as writer:
        while chunk := list(islice(records, PARQUET_ROWS)):
            for record in chunk:  # Parquet holds UTF-8 only
                record["path"] = str(record["path"]).encode(errors="backslashreplace").decode()
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
