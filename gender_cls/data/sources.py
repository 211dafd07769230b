"""Sources of faces: a folder tree, a table or drawings. Labels come from paths or cells, not from decoding."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gender_cls.errors import UserError, check_choice, unreadable
from gender_cls.files import user_path
from gender_cls.labels import CLASSES
from gender_cls.manifests import Table, locate, read_table
from gender_cls.transforms.listing import SYSTEM, ignored_note, list_images

UNSPLIT = "all"  # split of faces that `validation.check` has to split into train and val
SPLITS = ("train", "dev", "val")
ALIASES = (("f", "females", "woman", "women"), ("m", "males", "man", "men"))  # usual names of the classes, by label


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


@dataclass(frozen=True)
class Listed:
    """Faces as a source lists them.

    Attributes:
        splits: Faces by split, or all of them under `UNSPLIT`.
        notes: What the source ignored.
    """

    splits: Splits
    notes: list[str] = field(default_factory=list)


def class_names(classes: Mapping[str, Sequence[object] | object] | None) -> dict[str, int]:
    """Return the label of each name of a class, in lower case.

    Args:
        classes: Names of female and of male; where a class is not given, the usual ones. `female` and `male` are always
            known.

    Raises:
        UserError: A key is neither female nor male, or a name is given to both.
    """
    labels: dict[str, int] = {}
    for key in classes or {}:
        check_choice("data.classes: a key is", key, CLASSES)
    for label, name in enumerate(CLASSES):
        given = (classes or {}).get(name, ALIASES[label])
        for alias in (name, *(given if isinstance(given, list | tuple) else [given])):
            if labels.setdefault(_key(alias), label) != label:
                raise UserError("conflict", f"data.classes: {alias!r} stands for female and for male; give it to one")
    return labels


def _key(name: object) -> str:
    return str(name).strip().lower().removesuffix(".0")  # a column with gaps holds numbers as 0.0 and 1.0


def _unknown(name: str) -> str:
    """What to say of a name that is not known."""
    if re.fullmatch(r"[-+]?\d+(\.0)?", name.strip()):
        way_out = "a number may stand for either (in UTKFace 0 is male)"
        return f"{way_out}: say which by 'data.classes={{female: [1], male: [0]}}' or the reverse"
    return "name it by 'data.classes={female: [...], male: [...]}'"


def folder(
    root: str | os.PathLike[str], needed: Sequence[str] = ("train", "val"), classes: dict[str, int] | None = None
) -> Listed:
    """List `root/SPLIT/CLASS/**` of each needed split or, where there is no split, `root/CLASS/**`.

    Args:
        root: The folder; see `list_images` for what is listed of it.
        needed: Splits that must exist if there is any.
        classes: Label of each name that a folder of a class may have, see `class_names`.
    """
    root, classes = Path(user_path(root)), classes or class_names(None)
    if not root.is_dir():
        way_out = "give the one that holds train/ and val/, or try experiment=demo"
        raise UserError("not-found", f"data.root={root}: no such folder; {way_out}")
    ignored: Counter[str] = Counter()
    if any((root / split).is_dir() for split in ("train", "val")):
        splits = {split: _list_split(root / split, classes, ignored) for split in needed}
    else:
        splits = {UNSPLIT: _list_split(root, classes, ignored)}
    for split in {"train", UNSPLIT} & set(splits):  # in the others one class may do
        for absent in {0, 1} - {face.label for face in splits[split]}:
            where = root if split == UNSPLIT else root / split
            raise UserError("no-images", f"{where} holds no {CLASSES[absent]} image; training needs both classes")
    note = ignored_note(ignored)
    return Listed(splits, [note] if note else [])


def _list_split(directory: Path, classes: dict[str, int], ignored: Counter[str]) -> list[Face]:
    needs = "train/ and val/ with female/ and male/, or female/ and male/"
    if not directory.is_dir():
        raise UserError("not-found", f"{directory} is missing; data.root needs {needs}")
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith(".") and name not in SYSTEM]
    others = [name for name in names if _key(name) not in classes]
    if len(others) == len(names):
        found = ", ".join(names[:5]) or "no folder"
        way_out = f"data.root needs {needs}, or {_unknown(names[0] if names else '')}"
        raise UserError("not-found", f"{directory} holds {found}; {way_out}")
    if others:
        way_out = f"rename or remove it, or {_unknown(others[0])}"
        raise UserError("bad-data", f"{directory} holds {others[0]!r} beside the folders of female and male; {way_out}")
    faces = []
    for label in range(len(CLASSES)):
        for name in (name for name in names if classes[_key(name)] == label):
            listing = list_images(directory / name)
            faces += [Face(path, label) for path in listing.paths]
            ignored.update(listing.ignored)
    return faces


def manifest(
    path: str | os.PathLike[str],
    group: str = "group",
    needed: Sequence[str] = ("train", "val"),
    classes: dict[str, int] | None = None,
) -> Listed:
    """Read a table with the columns path and label and, where present, split, identity and a group.

    Args:
        path: CSV or Parquet, see `read_table`. Paths in it are absolute or relative to its folder.
        group: Column whose values a report compares.
        needed: Splits that must occur if the rows name splits.
        classes: Label of each name that a label may have, see `class_names`.

    Returns:
        Faces by split; without a column split, all of them under `UNSPLIT`.
    """
    path, classes, column = Path(user_path(path)), classes or class_names(None), group.strip().lower()
    table = _table(path)
    if column != "group" and column not in table.columns:
        found = ", ".join(filter(None, table.columns))
        raise UserError("bad-value", f"data.group={group}: {path} has no such column (found: {found})")
    faces: dict[str, list[Face]] = defaultdict(list)
    missing = []
    for where, row in table.rows:
        if not row["path"] or not row["label"].strip():
            raise UserError("bad-data", f"{path} {where}: path or label is empty; fill it in or delete the row")
        label, split = classes.get(_key(row["label"])), row.get("split", UNSPLIT).strip().lower()
        if label is None:
            what = f"label {row['label']!r} is not known"
            raise UserError("bad-data", f"{path} {where}: {what}; {_unknown(row['label'])}")
        if "split" in row and split not in SPLITS:
            raise UserError("bad-data", f"{path} {where}: split {row['split']!r}; a split is train, dev or val")
        image = locate(path.parent, row["path"])
        if not os.path.isfile(image):
            missing.append(f"{path} {where}: no such file: {image}")
        faces[split].append(Face(image, label, row.get("identity", "").strip(), row.get(column, "").strip()))
    if missing:
        raise UserError("not-found", f"{missing[0]} ({len(missing)} in all); paths are relative to the table's folder")
    if not faces:
        raise UserError("no-images", f"{path} has no row below its first line; add images")
    splits = [UNSPLIT] if UNSPLIT in faces else [split for split in SPLITS if split in needed or split in faces]
    return Listed({split: faces[split] for split in splits})


def _table(path: Path) -> Table:
    source = f"data.csv={path}"
    try:
        table = read_table(path.read_bytes(), source)
    except OSError as error:
        raise unreadable(source, error, "; give a CSV or Parquet file") from error
    if absent := [name for name in ("path", "label") if name not in table.columns]:
        found = f"(found: {', '.join(filter(None, table.columns)) or 'nothing'})"
        raise UserError("bad-data", f"{path} has no column {absent[0]!r} {found}; its first line names the columns")
    return table
