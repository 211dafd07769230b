import os
import shutil
from pathlib import Path

import pytest

from gender_cls import checks
from gender_cls.checks import check
from gender_cls.errors import UserError
from gender_cls.sources import Face, demo, folder, manifest, name_people, split_people

PATTERN = r"^(.+)_\d{4}$"


def some_faces(people: int = 40, pictures: int = 3) -> list[Face]:
    return [Face(f"p{p}_{n:04d}.jpg", int(p % 4 > 0), f"p{p}") for p in range(people) for n in range(pictures)]


def test_a_folder_is_read_as_imagefolder_reads_it(drawn: Path) -> None:
    faces = folder(drawn)
    assert list(faces) == ["train", "val"]
    for face in faces["train"] + faces["val"]:
        assert face.label == ("female", "male").index(Path(face.path).parent.name)
    assert len(faces["train"]) == 48


def test_people_are_never_split() -> None:
    faces = some_faces()
    one, other = split_people(faces, 0.25, seed=0)
    assert not {f.identity for f in one} & {f.identity for f in other}
    assert sorted(one + other, key=lambda f: f.path) == sorted(faces, key=lambda f: f.path)
    women, men = ({f.identity for f in other if f.label == label} for label in (0, 1))
    assert (len(women), len(men)) == (2, 8)  # round(0.25 * 10), round(0.25 * 30)
    assert split_people(faces[::-1], 0.25, seed=0)[1][::-1] == other  # the order of the files does not matter
    assert split_people(faces, 0.25, seed=1)[1] != other


def test_someone_filed_under_both_labels_moves_as_a_whole() -> None:
    faces = some_faces() + [Face("x.jpg", 0, "p1"), Face("y.jpg", 1, "p0")]
    for seed in range(20):
        one, other = split_people(faces, 0.5, seed)
        assert not {f.identity for f in one} & {f.identity for f in other}


def test_people_are_named_by_the_pattern() -> None:
    names = ["Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg", "007_frontal.jpg", "x_00011.jpg"]
    faces = [Face(name, 0) for name in names] + [Face(f"w{n}_0001.jpg", 0) for n in range(10)]
    named, notes = name_people({"train": faces}, PATTERN)
    assert [face.identity for face in named["train"][:4]] == ["Ann_Lee", "Ann_Lee", names[2], names[3]]
    assert notes == []
    named, _ = name_people({"train": faces}, None)
    assert len({face.identity for face in named["train"]}) == len(faces)


def test_a_cameras_file_names_are_no_people() -> None:
    faces = [Face(f"IMG_{n:04d}.jpg", label) for n in range(50) for label in (0, 1)]
    named, notes = name_people({"train": faces}, PATTERN)
    assert "only 1 people in 50 female pictures" in notes[0]
    assert len({face.identity for face in named["train"]}) == 50
    given = [Face("IMG_0001.jpg", 0, identity="me"), Face("IMG_0002.jpg", 0, identity="me")]
    assert name_people({"train": given}, PATTERN) == ({"train": given}, [])  # what a manifest says is believed


def test_a_manifest_with_all_its_columns(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "train", tmp_path / "in")
    pictures = sorted((tmp_path / "in").glob("*/*.jpg"))
    lines = ["path,label,split,identity,group"]
    for n, path in enumerate(pictures):
        shown = path if n % 2 else path.relative_to(tmp_path)  # absolute and relative to the CSV
        lines.append(f"{shown},{path.parent.name.upper()},{'val' if n % 3 == 0 else 'train'},who{n},{n % 5}")
    (tmp_path / "faces.csv").write_text("\ufeff" + "\n".join(lines))  # as a spreadsheet saves it
    faces = manifest(tmp_path / "faces.csv")
    assert list(faces) == ["train", "val"]
    assert len(faces["val"]) == 16
    first = faces["val"][0]
    assert (first.identity, first.group, first.label) == ("who0", "0", 0)
    assert all(os.path.exists(face.path) for face in faces["train"])


def test_a_manifest_without_a_split_is_split_by_people(drawn: Path, tmp_path: Path) -> None:
    lines = [f"{path},{path.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
    (tmp_path / "faces.csv").write_text("\n".join(["path,label", *lines]))
    faces = manifest(tmp_path / "faces.csv", val_share=0.3, identity=PATTERN)
    assert not {f.identity for f in faces["train"]} & {f.identity for f in faces["val"]}
    assert 0.1 < len(faces["val"]) / len(lines) < 0.5
    assert faces == manifest(tmp_path / "faces.csv", val_share=0.3, identity=PATTERN)


def test_the_fingerprint_is_of_the_content_not_of_the_place(drawn: Path, faces: Path) -> None:
    one = check(folder(drawn), PATTERN).fingerprint
    assert check(folder(faces), PATTERN).fingerprint == one
    moved = min((faces / "train" / "male").iterdir())
    moved.rename(faces / "train" / "female" / moved.name)
    assert check(folder(faces), PATTERN).fingerprint != one


def test_leaks_between_splits_are_said(faces: Path) -> None:
    woman = min((faces / "train" / "female").iterdir())
    shutil.copy(woman, faces / "val" / "female" / "copy.jpg")
    name = woman.stem[:-4]
    shutil.copy(max((faces / "val" / "male").iterdir()), faces / "val" / "male" / f"{name}0099.jpg")
    notes = "\n".join(check(folder(faces), PATTERN).notes)
    assert "1 files of val are also in train, byte for byte" in notes
    assert f"1 people of val are also in train, such as {name[:-1]}" in notes


def test_what_was_read_is_remembered(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = checks._read_one
    monkeypatch.setattr(checks, "_read_one", lambda path: read.append(path) or original(path))
    one = check(folder(faces), PATTERN, tmp_path / "cache")
    assert len(read) == 76
    assert check(folder(faces), PATTERN, tmp_path / "cache") == one
    assert len(read) == 76
    changed = min((faces / "train" / "male").iterdir())
    changed.write_bytes(max((faces / "val" / "male").iterdir()).read_bytes())
    assert check(folder(faces), PATTERN, tmp_path / "cache").fingerprint != one.fingerprint
    assert read[76:] == [str(changed)]


def test_a_cache_that_can_not_be_written_costs_only_the_memory(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pictures.sqlite").write_text("no database at all, but long enough to be looked at")
    for cache in (tmp_path / "file", tmp_path / "broken"):
        assert len(check(folder(faces), PATTERN, cache).splits["train"]) == 48


def test_a_class_of_which_nothing_can_be_read(faces: Path) -> None:
    shutil.rmtree(faces / "val" / "female")
    (faces / "val" / "female").mkdir()
    (faces / "val" / "female" / "x.jpg").touch()
    for n in range(30):  # one in 47 is below 5 %
        shutil.copy(min((faces / "val" / "male").iterdir()), faces / "val" / "male" / f"y{n}_0001.jpg")
    with pytest.raises(UserError, match="no female picture of val can be read"):
        check(folder(faces), PATTERN)


def test_holding_people_out(drawn: Path) -> None:
    faces = check(folder(drawn), PATTERN)
    held = faces.hold_out(0.2, seed=0)
    assert list(held.splits) == ["train", "dev", "val"]
    assert len(held.splits["train"]) + len(held.splits["dev"]) == 48
    assert not {f.identity for f in held.splits["train"]} & {f.identity for f in held.splits["dev"]}
    assert held.fingerprint == faces.fingerprint
    assert faces.hold_out(0, seed=0) is faces
    with pytest.raises(UserError, match="too few people"):
        faces.hold_out(0.99, seed=0)


def test_the_demo_is_seeded_and_kept(tmp_path: Path) -> None:
    one = demo(tmp_path / "one", (5, 9), (2, 3), side=32, seed=0)
    assert {split: len(faces) for split, faces in one.items()} == {"train": 14, "val": 5}
    other = demo(tmp_path / "other", (5, 9), (2, 3), side=32, seed=0)
    fingerprint = check(one, PATTERN).fingerprint
    assert fingerprint == check(other, PATTERN).fingerprint
    assert fingerprint != check(demo(tmp_path / "seed", (5, 9), (2, 3), side=32, seed=1), PATTERN).fingerprint
    before = os.stat(one["train"][0].path).st_mtime_ns
    demo(tmp_path / "one", (5, 9), (2, 3), side=32, seed=0)
    assert os.stat(one["train"][0].path).st_mtime_ns == before
    assert not list(tmp_path.glob("*.part*"))
    with pytest.raises(UserError, match="not this demo set"):
        demo(tmp_path / "one", (5, 9), (2, 3), side=32, seed=1)
