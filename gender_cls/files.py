"""Where files are and what they hold, where new ones go, and how they get there whole."""

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from unicodedata import normalize

ONNX, SAFETENSORS, TORCHSCRIPT = "an ONNX file", "a safetensors file", "a TorchScript file"  # kinds that matter here
MAGIC = (
    (b"%PDF", "a PDF"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
    (b"SQLite format", "an SQLite database"),
    (b"BZh91AY&SY", "compressed by bzip2"),  # not BZh alone, by which a list of paths may begin
    (b"\xfd7zXZ", "compressed by xz"),
    (b"\x80\x04\x95", "a Python pickle"),
    (b'{"', "JSON"),
    (b'[{"', "JSON"),
    (b'["', "JSON"),
    (b"[\n", "JSON"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (git lfs pull)"),
)
ZIPPED = (  # a name inside of a zip
    ("xl/workbook.xml", "an Excel workbook (.xlsx)"),
    ("content.xml", "an OpenDocument file (.ods)"),
    ("word/document.xml", "a Word document"),
    ("constants.pkl", TORCHSCRIPT),
    ("data.pkl", "a file of torch.save"),
)


def file_kind(path: str | os.PathLike[str]) -> str:
    """Return what a file is by its first bytes, such as `a web page`, for errors; empty if that is not known.

    Raises:
        OSError: The file can't be read.
    """
    with open(path, "rb") as file:
        return stream_kind(file)


def stream_kind(file: IO[bytes]) -> str:
    """Return what a file is, as `file_kind` does, from one that is open for reading bytes at its start."""
    start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith((b"<svg", b"<?xml")):
        return "a drawing or text in XML"
    if start.startswith(b"PK\x03\x04"):
        with suppress(Exception), zipfile.ZipFile(file) as archive:  # of whatever is damaged in it
            names = archive.namelist() + [name.split("/", 1)[-1] for name in archive.namelist()]
            return next((kind for name, kind in ZIPPED if name in names), "a zip archive")
        return "a damaged zip archive"
    if start[4:8] == b"ftyp" and start[8:12] in (b"isom", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1", b"iso2"):
        return "a video"
    if start[8:10] == b'{"' and 0 < int.from_bytes(start[:8], "little") < 2**32:
        return SAFETENSORS
    if start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] in (b"\x12", b":"):
        return ONNX  # its protobuf begins with ir_version, then the name of the producer or the graph
    return next((kind for magic, kind in MAGIC if start.startswith(magic)), "")


def user_path(path: str | os.PathLike[str]) -> str:
    """Return the path of an existing file as the disk has it, or `path` with only its `~` expanded.

    The same letters may be stored composed or decomposed (Unicode's normal forms C and D): é is one code point where
    people type it, and two in names that come from macOS. A name in one form finds a file that is stored in the other.
    """
    given = os.path.expanduser(os.fsdecode(path))
    if os.path.lexists(given) or given.isascii():
        return given
    found = os.path.splitdrive(given)[0] + os.sep * given.startswith(os.sep)
    for part in Path(given).parts[bool(found) :]:  # each folder may have another form
        forms = (os.path.join(found, form) for form in (part, normalize("NFC", part), normalize("NFD", part)))
        existing = next(filter(os.path.lexists, forms), None)
        if existing is None:
            return given
        found = existing
    return found


def relative_paths(paths: Sequence[str], folder: str | os.PathLike[str]) -> list[str]:
    """Return the paths relative to a folder, or that of a file; of a path elsewhere, its last two parts at most.

    What is passed on then says nothing of the machine and of who used it: `/home/NAME` is never part of a path.
    """
    base = os.path.abspath(folder)
    base = base if os.path.isdir(base) else os.path.dirname(base)
    inside = os.path.join(base, "")
    shown = []
    for path in map(os.path.abspath, paths):
        parts = Path(path).parts
        elsewhere = parts[max(3, len(parts) - 2) :] or parts[-1:]  # without the root and two folders below it
        shown.append(path[len(inside) :] if path.startswith(inside) else os.path.join(*elsewhere))
    return shown


def cache_folder() -> Path:
    """Folder of what can be computed again: `$XDG_CACHE_HOME/gender_cls`, or below `~/.cache`.

    Where there is none and can be none, as for a container's bare user ID, it is in the folder of temporary files.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "gender_cls"
    usual = Path(os.path.expanduser("~"), ".cache", "gender_cls")
    existing = next((path for path in (usual, *usual.parents) if path.exists()), Path())
    if usual.is_absolute() and (existing == usual or os.access(existing, os.W_OK)):
        return usual
    return Path(tempfile.gettempdir(), f"cache-{_user_id()}", "gender_cls")


def _user_id() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


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
