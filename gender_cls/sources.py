"""Where faces come from: a folder tree, a CSV manifest or drawings.

Labels come from paths or cells, never from decoding. A person (`identity`) is never split over train, dev and val by
this project.
"""

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gender_cls import CLASSES
from gender_cls import demo as drawing
from gender_cls.errors import UserError
from gender_cls.images import PICTURE_ENDINGS, list_pictures

MIN_PEOPLE = 10  # fewer in a class: the pattern most likely took a camera's file name for a person


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


def folder(root: str | os.PathLike[str]) -> Splits:
    """List `root/{train,val}/{female,male}/**` (the tree that ImageFolder reads).

    Raises:
        UserError: a folder is missing, empty, or named otherwise.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"data.root={root}: no such folder; give the one that holds train/ and val/, or try experiment=demo"
        )
    return {split: _list_split(root / split) for split in ("train", "val")}


def _list_split(directory: Path) -> list[Face]:
    if not directory.is_dir():
        raise UserError(f"{directory} is missing; data.root must hold train/ and val/, each with female/ and male/")
    others = sorted(
        entry.name for entry in directory.iterdir() if entry.is_dir() and entry.name not in (*CLASSES, "__MACOSX")
    )
    others = [name for name in others if not name.startswith(".")]
    if others:
        raise UserError(f"{directory} holds the folder {others[0]!r}; only female/ and male/ can be there: rename it")
    faces = []
    for label, name in enumerate(CLASSES):
        if not (directory / name).is_dir():
            raise UserError(f"{directory / name} is missing; each split needs female/ and male/")
        paths = list_pictures(directory / name)
        if not paths:
            raise UserError(f"{directory / name} holds no picture ({', '.join(PICTURE_ENDINGS)}); put some there")
        faces += [Face(path, label) for path in paths]
    return faces


def manifest(
    csv: str | os.PathLike[str], val_share: float = 0.2, split_seed: int = 0, identity: str | None = None
) -> Splits:
    """Read a CSV with the columns path and label and, where present, split, identity and group.

    Args:
        csv: The file. Its paths are absolute or relative to its own folder; labels are female and male.
        val_share: Without a column split: the share of people that becomes val.
        split_seed: Without a column split: who becomes val.
        identity: Without a column identity: the pattern that names people, see `check`.

    Raises:
        UserError: the file, a column or a picture is missing, or a cell holds something else than it may.
    """
    path = Path(csv)
    rows = _read_rows(path)
    faces: dict[str, list[Face]] = defaultdict(list)
    missing = []
    for line, row in enumerate(rows, start=2):
        label, split = row["label"].strip().lower(), (row.get("split") or "").strip().lower()
        if label not in CLASSES:
            raise UserError(f"{path} line {line}: label {row['label']!r}; a label is female or male")
        if "split" in row and split not in ("train", "dev", "val"):
            raise UserError(f"{path} line {line}: split {row['split']!r}; a split is train, dev or val")
        picture = os.path.join(path.parent, row["path"])
        if not os.path.isfile(picture):
            missing.append((line, picture))
        faces[split].append(
            Face(picture, CLASSES.index(label), (row.get("identity") or "").strip(), (row.get("group") or "").strip())
        )
    if missing:
        line, picture = missing[0]
        raise UserError(
            f"{path} line {line}: no such file: {picture} ({len(missing)} missing in all); "
            "paths are relative to the CSV's folder"
        )
    if "" in faces:
        named, _ = name_people({"": faces[""]}, identity)
        train, val = split_people(named[""], val_share, split_seed)
        faces = {"train": train, "val": val}
    for split in ("train", "val"):
        absent = {0, 1} - {face.label for face in faces.get(split, [])}
        if absent:
            raise UserError(f"{path} has no {CLASSES[min(absent)]} picture in {split}; each split needs both labels")
    return {split: faces[split] for split in ("train", "dev", "val") if split in faces}


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            absent = [column for column in ("path", "label") if column not in (reader.fieldnames or ())]
            if absent:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UserError(
                    f"{path} has no column {absent[0]!r} (found: {found}); its first line names the columns"
                )
            rows = list(reader)
    except OSError as error:
        raise UserError(f"data.csv={path}: {(error.strerror or str(error)).lower()}; give a CSV file") from error
    except csv.Error as error:
        raise UserError(f"data.csv={path} is no CSV file ({error})") from error
    for line, row in enumerate(rows, start=2):
        if not row["path"] or row["label"] is None:
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


def split_people(faces: Sequence[Face], share: float, seed: int) -> tuple[list[Face], list[Face]]:
    """Part faces by person: about `share` of each class's people go second, at least one.

    Who goes is decided by a hash of the seed and the name alone, so that adding people moves few others.
    """
    label_of = {face.identity: face.label for face in faces}  # someone filed under both labels moves as a whole

    def rank(person: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{person}".encode(errors="surrogateescape")).digest()

    taken: set[str] = set()
    for label in range(len(CLASSES)):
        people = sorted((person for person, of in label_of.items() if of == label), key=rank)
        taken.update(people[: max(1, round(share * len(people)))])
    return [f for f in faces if f.identity not in taken], [f for f in faces if f.identity in taken]


def name_people(splits: Splits, pattern: str | None) -> tuple[Splits, list[str]]:
    """Name the person of each face that has no identity yet.

    Args:
        splits: Faces by split.
        pattern: Regular expression on the file name without its ending; its first group is the person. A name that
            does not match, and every picture where `pattern` is None, is a person of its own.

    Returns:
        The faces with their identities, and notes. If a class has fewer than ten people that way, each picture is
        treated as a person and a note says so.

    Raises:
        UserError: `pattern` is no regular expression with a group.
    """
    try:
        regex = re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise UserError(f"data.identity={pattern} is no regular expression: {error}; null turns it off") from error
    if regex is not None and regex.groups < 1:
        raise UserError(f"data.identity={pattern} has no group (...) around the person's name; null turns it off")

    def person(face: Face, use: re.Pattern[str] | None) -> str:
        found = use.search(os.path.splitext(os.path.basename(face.path))[0]) if use else None
        return face.identity or (found.group(1) if found else face.path)

    notes = []
    for label, name in enumerate(CLASSES):
        pictures = [face for faces in splits.values() for face in faces if face.label == label and not face.identity]
        people = {person(face, regex) for face in pictures}
        if len(people) < min(MIN_PEOPLE, len(pictures)):
            notes.append(
                f"data.identity finds only {len(people)} people in {len(pictures)} {name} pictures, fewer than "
                f"{MIN_PEOPLE}: each picture is treated as a person of its own"
            )
    use = None if notes else regex
    return {split: [replace(f, identity=person(f, use)) for f in faces] for split, faces in splits.items()}, notes
