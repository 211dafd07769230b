"""Sources of faces: a folder tree, a CSV manifest or drawings. Labels come from paths or cells, not from decoding."""

import csv
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gender_cls.errors import UserError, unreadable
from gender_cls.labels import CLASSES
from gender_cls.transforms.decode import IMAGE_SUFFIXES, list_images

UNSPLIT = "all"  # split of faces that `validation.check` has to split into train and val


@dataclass(frozen=True, slots=True)
class Face:
    """One image of a face.

    Attributes:
        path: Path of the file.
        label: 0 for female, 1 for male.
        identity: Identity of the face; empty until `check` assigns one.
        group: Value of the manifest's column to report by; may be empty.
        digest: Hash of the file's content; empty until `check` has read it.
    """

    path: str
    label: int
    identity: str = ""
    group: str = ""
    digest: str = ""


Splits = dict[str, list[Face]]


def folder(root: str | os.PathLike[str], needed: Sequence[str] = ("train", "val")) -> Splits:
    """List `root/SPLIT/{female,male}/**` of each needed split like ImageFolder; linked folders are not followed."""
    root = Path(root)
    if not root.is_dir():
        way_out = "give the one that holds train/ and val/, or try experiment=demo"
        raise UserError("not-found", f"data.root={root}: no such folder; {way_out}")
    return {split: _list_split(root / split) for split in needed}


def _list_split(directory: Path) -> list[Face]:
    if not directory.is_dir():
        raise UserError("not-found", f"{directory} is missing; data.root needs train/ and val/ with female/ and male/")
    names = {entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    others = names - {*CLASSES, "__MACOSX"}  # the latter is what unpacking leaves
    if others:
        raise UserError("bad-data", f"{directory} holds {min(others)!r} beside female/ and male/; rename or remove it")
    faces = []
    for label, name in enumerate(CLASSES):
        if not (directory / name).is_dir():
            raise UserError("not-found", f"{directory / name} is missing; each split needs female/ and male/")
        if not (paths := list_images(directory / name)):
            raise UserError("no-images", f"{directory / name} holds no image ({', '.join(IMAGE_SUFFIXES)}); add some")
        faces += [Face(path, label) for path in paths]
    return faces


def manifest(path: str | os.PathLike[str], group: str = "group", needed: Sequence[str] = ("train", "val")) -> Splits:
    """Read a CSV with the columns path and label and, where present, split, identity and a group.

    Args:
        path: Path of the CSV. Paths in it are absolute or relative to its folder; labels are female and male.
        group: Column whose values a report compares.
        needed: Splits that must occur if the rows name splits.

    Returns:
        Faces by split; without a column split, all of them under `UNSPLIT`.
    """
    path = Path(path)
    faces: dict[str, list[Face]] = defaultdict(list)
    missing = []
    rows = _read_rows(path)
    if group != "group" and rows and group not in rows[0][1]:
        found = ", ".join(filter(None, rows[0][1]))
        raise UserError("bad-value", f"data.group={group}: {path} has no such column (found: {found})")
    for line, row in rows:
        if not row["path"] or not row["label"]:
            raise UserError("bad-data", f"{path} line {line}: path or label is empty; fill it in or delete the line")
        label = row["label"].strip().lower()
        split = row["split"].strip().lower() if row.get("split") is not None else UNSPLIT
        if label not in CLASSES:
            raise UserError("bad-data", f"{path} line {line}: label {row['label']!r}; a label is female or male")
        if "split" in row and split not in ("train", "dev", "val"):
            raise UserError("bad-data", f"{path} line {line}: split {row['split']!r}; a split is train, dev or val")
        image = os.path.join(path.parent, row["path"])
        if not os.path.isfile(image):
            missing.append(f"{path} line {line}: no such file: {image}")
        identity, part = ((row.get(column) or "").strip() for column in ("identity", group))
        faces[split].append(Face(image, CLASSES.index(label), identity, part))
    if missing:
        raise UserError("not-found", f"{missing[0]} ({len(missing)} in all); paths are relative to the CSV's folder")
    if not faces:
        raise UserError("no-images", f"{path} has no row below its first line; add images")
    splits = [UNSPLIT] if UNSPLIT in faces else [s for s in ("train", "dev", "val") if s in needed or s in faces]
    for split in splits:
        if absent := {0, 1} - {face.label for face in faces[split]}:
            where = "" if split == UNSPLIT else f" in {split}"
            raise UserError("no-images", f"{path} has no {CLASSES[min(absent)]} image{where}; both labels are needed")
    return {split: faces[split] for split in splits}


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows, each with the number of its last line."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if absent := [column for column in ("path", "label") if column not in (reader.fieldnames or ())]:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                message = f"{path} has no column {absent[0]!r} (found: {found}); its first line names the columns"
                raise UserError("bad-data", message)
            return [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise unreadable(f"data.csv={path}", error, "; give a CSV file") from error
    except csv.Error as error:
        raise UserError("unreadable", f"data.csv={path} is not a CSV file ({error})") from error
