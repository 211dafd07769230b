import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gender_cls.data import validation
from gender_cls.data.datamodule import DemoDataModule
from gender_cls.data.identities import assign_identities, fold_identities, split_identities
from gender_cls.data.sources import UNSPLIT, Face, Listed, folder, manifest
from gender_cls.data.validation import check
from gender_cls.errors import UserError

PATTERN = r"^(.+)_\d{4}$"


def refused(code: str, part: str, start: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(UserError) as failure:
        start(*args, **kwargs)
    assert failure.value.code == code
    assert part in str(failure.value)


def some_faces(identities: int = 40, images: int = 3) -> list[Face]:
    return [Face(f"p{p}_{n:04d}.jpg", int(p % 4 > 0), f"p{p}") for p in range(identities) for n in range(images)]


def test_a_folder_is_read_as_imagefolder_reads_it(drawn: Path) -> None:
    faces = folder(drawn).splits
    assert list(faces) == ["train", "val"]
    for face in faces["train"] + faces["val"]:
        assert face.label == ("female", "male").index(Path(face.path).parent.name)
    assert len(faces["train"]) == 48


def test_identities_are_never_split() -> None:
    faces = some_faces()
    one, other = split_identities(faces, 0.25, 0, "share")
    assert not {f.identity for f in one} & {f.identity for f in other}
    assert sorted(one + other, key=lambda f: f.path) == sorted(faces, key=lambda f: f.path)
    females, males = ({f.identity for f in other if f.label == label} for label in (0, 1))
    assert (len(females), len(males)) == (2, 7)  # as many of 10 and 30 as stay within a quarter of the images
    assert split_identities(faces[::-1], 0.25, 0, "share")[1][::-1] == other  # the order of the files does not matter
    assert split_identities(faces, 0.25, 1, "share")[1] != other


def test_an_identity_with_both_labels_moves_as_a_whole() -> None:
    faces = some_faces() + [Face("x.jpg", 0, "p1"), Face("y.jpg", 1, "p0")]
    for seed in range(20):
        one, other = split_identities(faces, 0.5, seed, "share")
        assert not {f.identity for f in one} & {f.identity for f in other}


def test_one_identity_is_not_most_of_a_part() -> None:
    faces = some_faces() + [Face(f"star_{n:04d}.jpg", 1, "star") for n in range(60)]
    for seed in range(30):
        other = split_identities(faces, 0.1, seed, "share")[1]
        assert "star" not in {face.identity for face in other}
        assert sum(face.label for face in other) == 15  # a tenth of 150 male images


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 1.5])
def test_what_is_no_share(share: float) -> None:
    refused("bad-value", f"data.holdout={share}", split_identities, some_faces(), share, 0, "data.holdout")


def test_a_share_that_leaves_a_class_without_identities() -> None:
    faces = [Face(f"{n}.jpg", int(n > 0), f"p{n}") for n in range(9)]
    refused("too-few-identities", "data.val_share=0.5", split_identities, faces, 0.5, 0, "data.val_share")


def test_an_identity_is_never_in_two_folds() -> None:
    rng = np.random.default_rng(0)
    faces = [Face(f"{p}_{n}", int(p > 40), f"p{p}") for p in range(200) for n in range(rng.integers(1, 9))]
    faces += [Face(f"one_{n}", 1, "one") for n in range(200)]
    folds = fold_identities(faces, 5, seed=0)
    found: dict[str, set[int]] = {}
    for face, fold in zip(faces, folds):
        found.setdefault(face.identity, set()).add(fold)
    assert all(len(folds_of_one) == 1 for folds_of_one in found.values())
    females = Counter(fold for face, fold in zip(faces, folds) if face.label == 0)
    assert sorted(females) == [0, 1, 2, 3, 4]
    assert max(females.values()) - min(females.values()) <= 8
    assert folds == fold_identities(faces, 5, seed=0) != fold_identities(faces, 5, seed=1)


def test_identities_are_assigned_by_the_pattern() -> None:
    names = ["Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg", "007_frontal.jpg", "x_00011.jpg"]
    faces = [Face(name, 0, digest=name) for name in names]
    faces += [Face(f"w{n}_0001.jpg", 0, digest=str(n)) for n in range(10)]
    named, notes = assign_identities({"train": faces}, PATTERN)
    assert [face.identity for face in named["train"][:4]] == ["Ann_Lee", "Ann_Lee", names[2], names[3]]
    assert notes == []
    named, _ = assign_identities({"train": faces}, None)
    assert len({face.identity for face in named["train"]}) == len(faces)


def test_a_cameras_file_names_are_no_identities() -> None:
    faces = [Face(f"IMG_{n:04d}.jpg", label, digest=f"{n} {label}") for n in range(50) for label in (0, 1)]
    named, notes = assign_identities({"train": faces}, PATTERN)
    assert "data.identity finds only 1 identities in 50 female images" in notes[0]
    assert len({face.identity for face in named["train"]}) == 100
    given = [Face("IMG_0001.jpg", 0, identity="me"), Face("IMG_0002.jpg", 0, identity="me")]
    assert assign_identities({"train": given}, PATTERN) == ({"train": given}, [])  # what a manifest says is believed


def test_a_manifest_with_all_its_columns(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "train", tmp_path / "in")
    images = sorted((tmp_path / "in").glob("*/*.jpg"))
    lines = ["path,label,split,identity,group"]
    for n, path in enumerate(images):
        shown = path if n % 2 else path.relative_to(tmp_path)  # absolute and relative to the CSV
        lines.append(f"{shown},{path.parent.name.upper()},{'val' if n % 3 == 0 else 'train'},who{n},{n % 5}")
    (tmp_path / "faces.csv").write_text("\ufeff" + "\n".join(lines))  # as a spreadsheet saves it
    faces = manifest(tmp_path / "faces.csv").splits
    assert list(faces) == ["train", "val"]
    assert len(faces["val"]) == 16
    first = faces["val"][0]
    assert (first.identity, first.group, first.label) == ("who0", "0", 0)
    assert all(os.path.exists(face.path) for face in faces["train"])


def test_a_manifest_without_a_split_is_split_by_identity(drawn: Path, tmp_path: Path) -> None:
    lines = [f"{path},{path.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
    (tmp_path / "faces.csv").write_text("\n".join(["path,label", *lines]))
    unsplit = manifest(tmp_path / "faces.csv")
    assert list(unsplit.splits) == [UNSPLIT]
    faces = check(unsplit, PATTERN, val_share=0.3).splits
    assert not {f.identity for f in faces["train"]} & {f.identity for f in faces["val"]}
    assert 0.2 < len(faces["val"]) / len(lines) <= 0.3
    assert faces == check(unsplit, PATTERN, val_share=0.3).splits


def test_a_manifest_of_camera_names_says_so(faces: Path, tmp_path: Path) -> None:
    lines = ["path,label"]
    for n, path in enumerate(sorted(faces.glob("*/*/*.jpg"))):
        path.rename(path.with_name(f"IMG_{n:04d}.jpg"))
        lines.append(f"{path.with_name(f'IMG_{n:04d}.jpg')},{path.parent.name}")
    (tmp_path / "faces.csv").write_text("\n".join(lines))
    checked = check(manifest(tmp_path / "faces.csv"), PATTERN)
    assert "each image is treated as an identity of its own" in checked.notes[0]
    assert len({face.identity for face in checked.splits["train"]}) == len(checked.splits["train"])


def test_the_line_of_an_error_counts_blank_lines(drawn: Path, tmp_path: Path) -> None:
    image = next(drawn.glob("*/male/*.jpg"))
    (tmp_path / "faces.csv").write_text(f"path,label\n\n\n{image},person\n")
    refused("bad-data", "faces.csv line 4: label 'person'", manifest, tmp_path / "faces.csv")


def test_which_identities_are_held_out_does_not_depend_on_the_folder(
    drawn: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(faces.parent)
    for pattern in (PATTERN, None):
        one, other = (check(folder(root), pattern, holdout=0.3).splits["dev"] for root in (drawn, faces.name))
        assert [Path(face.path).name for face in one] == [Path(face.path).name for face in other]


def test_the_fingerprint_is_of_the_content_not_of_the_place(drawn: Path, faces: Path) -> None:
    one = check(folder(drawn), PATTERN).fingerprint
    assert check(folder(faces), PATTERN).fingerprint == one
    moved = min((faces / "train" / "male").iterdir())
    moved.rename(faces / "train" / "female" / moved.name)
    assert check(folder(faces), PATTERN).fingerprint != one


def test_leaks_between_splits_are_said(faces: Path) -> None:
    female = min((faces / "train" / "female").iterdir())
    shutil.copy(female, faces / "val" / "female" / "copy.jpg")
    name = female.stem[:-4]
    shutil.copy(max((faces / "val" / "male").iterdir()), faces / "val" / "male" / f"{name}0099.jpg")
    notes = "\n".join(check(folder(faces), PATTERN).notes)
    assert "1 files of val are also in train, byte for byte" in notes
    assert "both labels" not in notes
    assert f"1 identities of val are also in train, such as {name[:-1]}" in notes


def test_digests_are_cached(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = validation._read_one
    monkeypatch.setattr(validation, "_read_one", lambda path, decoder: read.append(path) or original(path, decoder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = check(folder(faces), PATTERN)
    assert len(read) == 76
    assert check(folder(faces), PATTERN) == one
    assert len(read) == 76
    changed = min((faces / "train" / "male").iterdir())
    changed.write_bytes(max((faces / "val" / "male").iterdir()).read_bytes())
    assert check(folder(faces), PATTERN).fingerprint != one.fingerprint
    assert read[76:] == [str(changed)]


def test_a_cache_that_can_not_be_written_costs_only_the_memory(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    broken = tmp_path / "broken" / "gender_cls"
    broken.mkdir(parents=True)
    (broken / "pictures.sqlite").write_text("no database at all, but long enough to be looked at")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "late"))
    check(folder(faces), PATTERN)
    with open(tmp_path / "late" / "gender_cls" / "pictures.sqlite", "r+b") as file:
        file.seek(4096)
        file.write(b"x" * 4096)  # damaged behind its header
    for name in ("file", "broken", "late"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        assert len(check(folder(faces), PATTERN).splits["train"]) == 48


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_of_which_nothing_can_be_read(split: str, faces: Path) -> None:
    shutil.rmtree(faces / split / "female")
    (faces / split / "female").mkdir()
    (faces / split / "female" / "x.jpg").touch()
    for n in range(30):  # one in 47 is below 5 %
        shutil.copy(min((faces / split / "male").iterdir()), faces / split / "male" / f"y{n}_0001.jpg")
    if split == "train":
        refused("no-images", "there is no female image in train", check, folder(faces), PATTERN)
    else:
        assert "there is no female image in val that can be read" in "\n".join(check(folder(faces), PATTERN).notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [("identity", "("), ("identity", "^x$"), ("val_share", 1), ("holdout", 1.5), ("holdout", "x"), ("split_seed", 0.5)],
)
def test_values_are_checked_before_any_image_is_read(key: str, value: object) -> None:
    unread = Listed({split: [Face("nowhere.jpg", label) for label in (0, 1)] for split in ("train", "val")})
    refused("bad-value", f"data.{key}={value}", check, unread, **{"identity": None, key: value})


def test_holding_identities_out(drawn: Path) -> None:
    faces = check(folder(drawn), PATTERN)
    held = check(folder(drawn), PATTERN, holdout=0.2)
    assert list(held.splits) == ["train", "dev", "val"]
    assert len(held.splits["train"]) + len(held.splits["dev"]) == 48
    assert not {f.identity for f in held.splits["train"]} & {f.identity for f in held.splits["dev"]}
    assert held.splits["val"] == faces.splits["val"]
    assert held.fingerprint == faces.fingerprint


def test_copies_that_end_in_dev_are_said(faces: Path) -> None:
    for split_class in ("train/male", "train/female"):
        for path in sorted((faces / split_class).iterdir()):
            shutil.copy(path, path.with_name(f"copy{path.stem[6:]}.jpg"))  # another identity, by the name
    notes = "\n".join(check(folder(faces), PATTERN, holdout=0.3).notes)
    assert "files of dev are also in train, byte for byte" in notes
    one = check(folder(faces), None, holdout=0.3)  # by the content, copies are one identity
    assert not {f.digest for f in one.splits["train"]} & {f.digest for f in one.splits["dev"]}


def test_an_image_under_both_labels_is_said(faces: Path) -> None:
    female = min((faces / "train" / "female").iterdir())
    shutil.copy(female, faces / "train" / "male" / "x.jpg")
    assert "1 images are under both labels" in check(folder(faces), PATTERN).notes[0]


def draw_demo(root: Path, seed: int) -> Listed:
    return DemoDataModule(root, train=(5, 9), val=(2, 3), side=32, draw_seed=seed).list_faces()


def test_the_demo_is_seeded_and_kept(tmp_path: Path) -> None:
    one = draw_demo(tmp_path / "one", 0)
    assert {split: len(faces) for split, faces in one.splits.items()} == {"train": 14, "val": 5}
    other = draw_demo(tmp_path / "other", 0)
    fingerprint = check(one, PATTERN).fingerprint
    assert fingerprint == check(other, PATTERN).fingerprint
    assert fingerprint != check(draw_demo(tmp_path / "seed", 1), PATTERN).fingerprint
    before = os.stat(one.splits["train"][0].path).st_mtime_ns
    draw_demo(tmp_path / "one", 0)
    assert os.stat(one.splits["train"][0].path).st_mtime_ns == before
    assert not list(tmp_path.glob("*.part*"))
    refused("conflict", f"data.root={tmp_path / 'one'}", draw_demo, tmp_path / "one", 1)
