"""Tables as spreadsheets, pandas and databases write them."""

import io
import zipfile
from pathlib import Path
from unicodedata import normalize

import pyarrow
import pytest
from pyarrow import parquet

from gender_cls.errors import UserError
from gender_cls.manifests import locate, read_table

ROWS = [("line 2", {"path": "a,b.jpg", "label": "female"}), ("line 3", {"path": "größe;1.jpg", "label": "male"})]
LINES = ["path{d}label", '"a,b.jpg"{d}female', '"größe;1.jpg"{d}male']


def text(delimiter: str = ",", end: str = "\n") -> str:
    return end.join(LINES).format(d=delimiter) + end


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_encodings(delimiter: str, encoding: str, end: str) -> None:
    table = read_table(text(delimiter, end).encode(encoding), "x")
    assert (table.columns, table.rows) == (["path", "label"], ROWS)


@pytest.mark.parametrize(
    "content",
    [
        text().replace("path,label", " Path , LABEL "),
        text().replace("path,label", '"path","label"'),
        text().replace("path,label", "path,label,,"),  # columns without a name
        text().replace("\n", ",,\n"),  # and cells without a value
        text().rstrip("\n"),
    ],
)
def test_headers_and_empty_cells(content: str) -> None:
    rows = read_table(content.encode(), "x").rows
    assert [(where, row["path"], row["label"]) for where, row in rows] == [(w, *row.values()) for w, row in ROWS]


def test_lines_are_counted_as_an_editor_does() -> None:
    table = read_table(b'sep=;\r\npath;label\r\n\r\n;\r\n"a\nb.jpg";male\r\nc.jpg\r\n', "x")
    assert [(where, row["path"], row["label"]) for where, row in table.rows] == [
        ("line 6", "a\nb.jpg", "male"),
        ("line 7", "c.jpg", ""),
    ]


def test_parquet_of_many_types() -> None:
    columns = {
        " Path": pyarrow.array(["a.jpg", "b.jpg", None]),
        "label": pyarrow.array([0.0, 1.0, None]),
        "age": pyarrow.array([1, 2, None]),
        "split": pyarrow.array(["train", "val", "val"]).dictionary_encode(),
        "raw": pyarrow.array([b"a", b"b", None]),
        "image": pyarrow.array([{"bytes": b"x"}, None, None]),  # left out
    }
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    table = read_table(buffer.getvalue(), "x")
    assert table.columns == ["path", "label", "age", "split", "raw"]
    assert table.rows[1] == ("row 2", {"path": "b.jpg", "label": "1", "age": "2", "split": "val", "raw": "b"})
    assert set(table.rows[2][1].values()) == {"", "val"}


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), "x")  # of no time, since it is the name of a test
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook"),
        (zipped("mimetype", "content.xml"), "an OpenDocument file"),
        (zipped("faces.csv"), "a zip archive"),
        (zipped("faces.csv")[:40], "a damaged zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"<!doctype html><title>Sign in", "a web page"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
        (b"PAR1 is not all", "a damaged Parquet file"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "no text"),
        ("path,label\na.jpg,male\n".encode("utf-16-le"), "no text"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(content: bytes, kind: str) -> None:
    with pytest.raises(UserError, match=r"^data\.csv=x is ") as failure:
        read_table(content, "data.csv=x")
    assert kind in str(failure.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\na,b.jpg,male\n", "line 2 has 3 cells for 2 columns; quote a cell that holds a ','"),
        ("path,label,Path\na.jpg,male,b.jpg\n", "two columns named 'path'"),
        ('path,label\n"a.jpg,male\n' + 200_000 * "x", "from line 2 on: a quote is opened or closed in"),
        (
            'path,label,note\na.jpg,male,"5 oclock\nb.jpg,female,\nc.jpg,male,6" tall\n',
            "from line 2 on: a quote is opened",
        ),
    ],
)
def test_rows_that_do_not_fit(content: str, says: str) -> None:
    with pytest.raises(UserError) as failure:
        read_table(content.encode(), "x")
    assert says in str(failure.value)


def test_a_cell_finds_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    form = normalize("NFD", "josé")
    for name in ("a.jpg", " b.jpg", "deep/c.jpg", f"{form}/Zoë.jpg", "=sum.jpg", "x\\y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cells = {
        "a.jpg": "a.jpg",
        " a.jpg ": "a.jpg",
        " b.jpg": " b.jpg",  # as it is, where that exists
        "deep\\c.jpg": "deep/c.jpg",
        "x\\y.jpg": "x\\y.jpg",
        "josé/Zoë.jpg": f"{form}/Zoë.jpg",  # each part in its own form
        "josé/Zoë.jpg".encode("cp1252").decode(errors="surrogateescape"): f"{form}/Zoë.jpg",
        "~/a.jpg": "a.jpg",
        "'=sum.jpg": "=sum.jpg",  # as this program's own tables guard it
        str(tmp_path / "a.jpg"): "a.jpg",
    }
    for cell, name in cells.items():
        assert Path(locate(tmp_path, cell)) == tmp_path / name, cell
    assert locate(tmp_path, "no.jpg") == str(tmp_path / "no.jpg")
