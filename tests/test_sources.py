import os
import shutil
from pathlib import Path

import pytest

from gender_cls import checks
from gender_cls.checks import check
from gender_cls.errors import UserError
from gender_cls.people import name_people, split_people
from gender_cls.sources import UNSPLIT, Face, demo, folder, manifest

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
    one, other = split_people(faces, 0.25, 0, "share")
    assert not {f.identity for f in one} & {f.identity for f in other}
    assert sorted(one + other, key=lambda f: f.path) == sorted(faces, key=lambda f: f.path)
    women, men = ({f.identity for f in other if f.label == label} for label in (0, 1))
    assert (len(women), len(men)) == (2, 7)  # as many of 10 and 30 as stay within a quarter of the pictures
    assert split_people(faces[::-1], 0.25, 0, "share")[1][::-1] == other  # the order of the files does not matter
    assert split_people(faces, 0.25, 1, "share")[1] != other


def test_someone_filed_under_both_labels_moves_as_a_whole() -> None:
    faces = some_faces() + [Face("x.jpg", 0, "p1"), Face("y.jpg", 1, "p0")]
    for seed in range(20):
        one, other = split_people(faces, 0.5, seed, "share")
        assert not {f.identity for f in one} & {f.identity for f in other}


def test_one_person_is_not_most_of_a_part() -> None:
    faces = some_faces() + [Face(f"star_{n:04d}.jpg", 1, "star") for n in range(60)]
    for seed in range(30):
        other = split_people(faces, 0.1, seed, "share")[1]
        assert "star" not in {face.identity for face in other}
        assert sum(face.label for face in other) == 15  # a tenth of 150 pictures of men


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 1.5])
def test_what_is_no_share(share: float) -> None:
    with pytest.raises(UserError, match="is no share of the people"):
        split_people(some_faces(), share, 0, "data.holdout")


def test_people_are_named_by_the_pattern() -> None:
    names = ["Ann_Lee_0001.jpg", "Ann_Lee_0002.jpg", "007_frontal.jpg", "x_00011.jpg"]
    faces = [Face(name, 0, digest=name) for name in names]
    faces += [Face(f"w{n}_0001.jpg", 0, digest=str(n)) for n in range(10)]
    named, notes = name_people({"train": faces}, PATTERN)
    assert [face.identity for face in named["train"][:4]] == ["Ann_Lee", "Ann_Lee", names[2], names[3]]
    assert notes == []
    named, _ = name_people({"train": faces}, None)
    assert len({face.identity for face in named["train"]}) == len(faces)


def test_a_cameras_file_names_are_no_people() -> None:
    faces = [Face(f"IMG_{n:04d}.jpg", label, digest=f"{n} {label}") for n in range(50) for label in (0, 1)]
    named, notes = name_people({"train": faces}, PATTERN)
    assert "only 1 people in 50 female pictures" in notes[0]
    assert len({face.identity for face in named["train"]}) == 100
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
    unsplit = manifest(tmp_path / "faces.csv")
    assert list(unsplit) == [UNSPLIT]
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
    assert "each picture is treated as a person of its own" in checked.notes[0]
    assert len({face.identity for face in checked.splits["train"]}) == len(checked.splits["train"])


def test_the_line_of_an_error_counts_blank_lines(drawn: Path, tmp_path: Path) -> None:
    picture = next(drawn.glob("*/male/*.jpg"))
    (tmp_path / "faces.csv").write_text(f"path,label\n\n\n{picture},man\n")
    with pytest.raises(UserError, match="line 4: label 'man'"):
        manifest(tmp_path / "faces.csv")


def test_who_is_held_out_does_not_depend_on_where_the_data_lie(
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
    woman = min((faces / "train" / "female").iterdir())
    shutil.copy(woman, faces / "val" / "female" / "copy.jpg")
    name = woman.stem[:-4]
    shutil.copy(max((faces / "val" / "male").iterdir()), faces / "val" / "male" / f"{name}0099.jpg")
    notes = "\n".join(check(folder(faces), PATTERN).notes)
    assert "1 files of val are also in train, byte for byte" in notes
    assert "both labels" not in notes
    assert f"1 people of val are also in train, such as {name[:-1]}" in notes


def test_what_was_read_is_remembered(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = checks._read_one
    monkeypatch.setattr(checks, "_read_one", lambda path: read.append(path) or original(path))
    one = check(folder(faces), PATTERN, cache=tmp_path / "cache")
    assert len(read) == 76
    assert check(folder(faces), PATTERN, cache=tmp_path / "cache") == one
    assert len(read) == 76
    changed = min((faces / "train" / "male").iterdir())
    changed.write_bytes(max((faces / "val" / "male").iterdir()).read_bytes())
    assert check(folder(faces), PATTERN, cache=tmp_path / "cache").fingerprint != one.fingerprint
    assert read[76:] == [str(changed)]


def test_a_cache_that_can_not_be_written_costs_only_the_memory(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pictures.sqlite").write_text("no database at all, but long enough to be looked at")
    check(folder(faces), PATTERN, cache=tmp_path / "late")
    with open(tmp_path / "late" / "pictures.sqlite", "r+b") as file:
        file.seek(4096)
        file.write(b"x" * 4096)  # damaged behind its header
    for name in ("file", "broken", "late"):
        assert len(check(folder(faces), PATTERN, cache=tmp_path / name).splits["train"]) == 48


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
    held = check(folder(drawn), PATTERN, holdout=0.2)
    assert list(held.splits) == ["train", "dev", "val"]
    assert len(held.splits["train"]) + len(held.splits["dev"]) == 48
    assert not {f.identity for f in held.splits["train"]} & {f.identity for f in held.splits["dev"]}
    assert held.splits["val"] == faces.splits["val"]
    assert held.fingerprint == faces.fingerprint


def test_copies_that_end_in_dev_are_said(faces: Path) -> None:
    for split_class in ("train/male", "train/female"):
        for path in sorted((faces / split_class).iterdir()):
            shutil.copy(path, path.with_name(f"copy{path.stem[6:]}.jpg"))  # somebody else, by the name
    notes = "\n".join(check(folder(faces), PATTERN, holdout=0.3).notes)
    assert "files of dev are also in train, byte for byte" in notes
    one = check(folder(faces), None, holdout=0.3)  # by the content, copies are one person
    assert not {f.digest for f in one.splits["train"]} & {f.digest for f in one.splits["dev"]}


def test_a_picture_under_both_labels_is_said(faces: Path) -> None:
    woman = min((faces / "train" / "female").iterdir())
    shutil.copy(woman, faces / "train" / "male" / "x.jpg")
    assert "1 pictures are filed under both labels" in check(folder(faces), PATTERN).notes[0]


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
