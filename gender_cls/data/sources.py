"""Sources of faces: a folder tree, a table or drawings. Labels come from paths or cells, not from decoding."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gender_cls.errors import UserError, unreadable
from gender_cls.files import user_path
from gender_cls.labels import CLASSES
from gender_cls.manifests import Table, locate, read_table
from gender_cls.transforms.formats import is_image
from gender_cls.transforms.listing import SYSTEM, ignored_note, list_images

UNSPLIT = "all"  # split of faces that `validation.check` has to split into train and val
SPLITS = ("train", "dev", "val")
SHOWN = 5  # names in a note
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
    if classes is not None and not (isinstance(classes, Mapping) and set(classes) <= set(CLASSES)):
        raise UserError("bad-value", f"data.classes={classes}: give {{female: [...], male: [...]}}, with names of each")
    for label, name in enumerate(CLASSES):
        given = (classes or {}).get(name)
        given = ALIASES[label] if given is None else given
        for alias in (name, *(given if isinstance(given, list | tuple) else [given])):
            if labels.setdefault(_key(alias), label) != label:
                raise UserError("conflict", f"data.classes: {alias!r} stands for female and for male; give it to one")
    return labels


def _key(name: object) -> str:
    return str(name).strip().lower().removesuffix(".0")  # a column with gaps holds numbers as 0.0 and 1.0


def _unknown(names: Sequence[str]) -> str:
    """What to say of names that are no class; empty if there are none."""
    if not names:
        return ""
    if any(_key(name) in ("train", "training", "test", "val", "valid", "validation") for name in names):
        return "; the folders of splits are train and val"
    if re.fullmatch(r"[-+]?\d+(\.0)?", names[0].strip()):
        other = _key(names[-1]) if names[1:] else "..."
        example = f"'data.classes={{female: [{other}], male: [{_key(names[0])}]}}'"
        return f"; a number may stand for either class (in UTKFace 0 is male): say which by {example} or the reverse"
    return "; other names of the classes are given by 'data.classes={female: [...], male: [...]}'"


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
        way_out = "give the one that holds train/ and val/, or female/ and male/, or try experiment=demo"
        raise UserError("not-found", f"data.root={root}: no such folder; {way_out}")
    ignored: Counter[str] = Counter()
    if any((root / split).is_dir() for split in ("train", "val")):
        needed = [split for split in SPLITS if split in needed or ("train" in needed and (root / split).is_dir())]
        splits = {split: _list_split(root / split, classes, ignored) for split in needed}
        unused = _unused(root, SPLITS) + [name for split in needed for name in _unused(root / split, classes)]
    else:
        splits = {UNSPLIT: _list_split(root, classes, ignored)}
        unused = _unused(root, classes)
    for directory in (root, *(root / split for split in splits if split != UNSPLIT)):
        if hidden := sum(entry.name.startswith(".") for entry in directory.iterdir()):
            ignored["hidden"] += hidden
    more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
    notes = [f"not used, since no split or class claims it: {', '.join(unused[:SHOWN])}{more}"] if unused else []
    notes += [ignored_note(ignored)] if ignored else []
    return Listed(splits, notes)


def _list_split(directory: Path, classes: dict[str, int], ignored: Counter[str]) -> list[Face]:
    needs = "train/ and val/ with female/ and male/, or female/ and male/"
    if not directory.is_dir():
        raise UserError("not-found", f"{directory} is missing; data.root needs {needs}")
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith(".") and name not in SYSTEM]
    others = [name for name in names if _key(name) not in classes]
    if len(others) == len(names):
        found = ", ".join(names[:SHOWN]) or "no folder (for images in one folder give a table: data=manifest)"
        raise UserError("not-found", f"{directory} holds {found}; data.root needs {needs}{_unknown(others)}")
    if others:
        found = f"{others[0]!r} beside the folders of female and male"
        raise UserError("bad-data", f"{directory} holds {found}; rename or remove it{_unknown(others)}")
    for name, split in ((n, s) for n in names for s in SPLITS if (directory / n / s).is_dir()):
        raise UserError("bad-data", f"{directory / name} holds {split}/; the split comes first: {split}/{name}")
    faces, linked = [], False
    for label in range(len(CLASSES)):
        listing = list_images(*(directory / name for name in names if classes[_key(name)] == label))
        faces += [Face(path, label) for path in listing.paths]
        ignored.update(listing.ignored)
        linked |= listing.linked
    if linked:
        _check_links(faces)
    return faces


def _check_links(faces: Sequence[Face]) -> None:
    """Raise a `UserError` if a linked folder brings a file under a second label."""
    labels: dict[str, Face] = {}
    for face in faces:
        first = labels.setdefault(os.path.realpath(face.path), face)
        if first.label != face.label:
            found = f"{first.path} is {CLASSES[first.label]} and, by a linked folder, {CLASSES[face.label]}"
            raise UserError("bad-data", f"{found}: {face.path}; remove the link")


def _unused(directory: Path, used: Collection[str]) -> list[str]:
    """Return the folders and images in a folder that are neither used nor hidden, as paths."""
    shown = (
        entry for entry in sorted(directory.iterdir()) if not entry.name.startswith(".") and entry.name not in SYSTEM
    )
    beside = (entry for entry in shown if not (entry.is_dir() and _key(entry.name) in used))
    return [str(entry) for entry in beside if entry.is_dir() or is_image(entry)]


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
            raise UserError("bad-data", f"{path} {where}: {what}{_unknown([row['label']])}")
        if "split" in row and split not in SPLITS:
            way_out = "rename it" if split else "fill it in, or delete the column"
            raise UserError(
                "bad-data", f"{path} {where}: split {row['split']!r}; a split is train, dev or val; {way_out}"
            )
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
        found = f"(found: {', '.join(filter(None, table.columns))[:200] or 'nothing'})"
        raise UserError("bad-data", f"{path} has no column {absent[0]!r} {found}; give the columns their names")
    return table
