"""Where faces come from: a folder tree, a CSV manifest or drawings.

Labels come from paths or cells, never from decoding.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gender_cls import CLASSES
from gender_cls import demo as drawing
from gender_cls.errors import UserError
from gender_cls.images import PICTURE_ENDINGS, list_pictures

UNSPLIT = "all"  # stands for the split of faces that `checks.check` is to split into train and val


@dataclass(frozen=True, slots=True)
class Face:
    """One picture of a face.

    Attributes:
        path: Of the file.
        label: 0 female, 1 male.
        identity: Who it is; empty until `check` has named it.
        group: Any further mark to report by (a manifest's column); may be empty.
        digest: Hash of the file's content; empty until `check` has read it.
    """

    path: str
    label: int
    identity: str = ""
    group: str = ""
    digest: str = ""


Splits = dict[str, list[Face]]


def folder(root: str | os.PathLike[str], needed: Sequence[str] = ("train", "val")) -> Splits:
    """List `root/SPLIT/{female,male}/**` of each split needed, as ImageFolder does; linked folders are not followed.

    Raises:
        UserError: a folder is missing, empty, or named otherwise.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"data.root={root}: no such folder; give the one that holds train/ and val/, or try experiment=demo"
        )
    return {split: _list_split(root / split) for split in needed}


def _list_split(directory: Path) -> list[Face]:
    if not directory.is_dir():
        raise UserError(f"{directory} is missing; data.root must hold train/ and val/, each with female/ and male/")
    names = {entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    others = names - {*CLASSES, "__MACOSX"}  # the latter is what unpacking leaves
    if others:
        raise UserError(f"{directory} holds the folder {min(others)!r}; only female/ and male/ can be there: rename it")
    faces = []
    for label, name in enumerate(CLASSES):
        if not (directory / name).is_dir():
            raise UserError(f"{directory / name} is missing; each split needs female/ and male/")
        paths = list_pictures(directory / name)
        if not paths:
            raise UserError(f"{directory / name} holds no picture ({', '.join(PICTURE_ENDINGS)}); put some there")
        faces += [Face(path, label) for path in paths]
    return faces


def manifest(path: str | os.PathLike[str], group: str = "group", needed: Sequence[str] = ("train", "val")) -> Splits:
    """Read a CSV with the columns path and label and, where present, split, identity and a group.

    Args:
        path: Of the file. Its paths are absolute or relative to its own folder; labels are female and male.
        group: Column whose values a report compares.
        needed: Splits that must be there, if the rows name splits.

    Returns:
        Faces by split; without a column split, all of them under `UNSPLIT`.

    Raises:
        UserError: the file, a column or a picture is missing, or a cell holds something else than it may.
    """
    path = Path(path)
    faces: dict[str, list[Face]] = defaultdict(list)
    missing = []
    rows = _read_rows(path)
    if group != "group" and rows and group not in rows[0][1]:
        raise UserError(f"data.group={group}: {path} has no such column (found: {', '.join(filter(None, rows[0][1]))})")
    for line, row in rows:
        label = row["label"].strip().lower()
        split = row["split"].strip().lower() if row.get("split") is not None else UNSPLIT
        if label not in CLASSES:
            raise UserError(f"{path} line {line}: label {row['label']!r}; a label is female or male")
        if "split" in row and split not in ("train", "dev", "val"):
            raise UserError(f"{path} line {line}: split {row['split']!r}; a split is train, dev or val")
        picture = os.path.join(path.parent, row["path"])
        if not os.path.isfile(picture):
            missing.append(f"{path} line {line}: no such file: {picture}")
        identity, part = ((row.get(column) or "").strip() for column in ("identity", group))
        faces[split].append(Face(picture, CLASSES.index(label), identity, part))
    if missing:
        raise UserError(f"{missing[0]} ({len(missing)} missing in all); paths are relative to the CSV's folder")
    if not faces:
        raise UserError(f"{path} has no row below its first line; add pictures")
    splits = [UNSPLIT] if UNSPLIT in faces else [s for s in ("train", "dev", "val") if s in needed or s in faces]
    for split in splits:
        absent = {0, 1} - {face.label for face in faces[split]}
        if absent:
            where = "" if split == UNSPLIT else f" in {split}"
            raise UserError(f"{path} has no {CLASSES[min(absent)]} picture{where}; both labels are needed")
    return {split: faces[split] for split in splits}


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with the number of the line that each ends on."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            absent = [column for column in ("path", "label") if column not in (reader.fieldnames or ())]
            if absent:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UserError(
                    f"{path} has no column {absent[0]!r} (found: {found}); its first line names the columns"
                )
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"data.csv={path}: {(error.strerror or str(error)).lower()}; give a CSV file") from error
    except csv.Error as error:
        raise UserError(f"data.csv={path} is no CSV file ({error})") from error
    for line, row in rows:
        if not row["path"] or not row["label"]:
            raise UserError(f"{path} line {line}: path or label is empty; fill it in or delete the line")
    return rows


def demo(root: str | os.PathLike[str], train: Sequence[int], val: Sequence[int], side: int, seed: int) -> Splits:
    """Draw the demo faces to `root`, if they are not there, and list them.

    Args:
        root: Folder to draw to.
        train: Pictures (female, male) to train on.
        val: Pictures (female, male) to report on.
        side: Of the pictures, in pixels.
        seed: Of the drawings.
    """
    drawing.draw(root, {"train": list(train), "val": list(val)}, side, seed)
    return folder(root)
