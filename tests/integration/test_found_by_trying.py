"""What three attempts to break the program found: a photographer's disk, a data scientist's tables, a web service."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fails, Run, script
from PIL import Image, ImageFile, ImageSequence

from gender_cls import FolderDataModule, Predictor
from gender_cls.data.sources import folder
from gender_cls.errors import ImageError, UserError
from gender_cls.files import cache_folder, relative_paths
from gender_cls.inference.inputs import expand
from gender_cls.models.weights import read_state_dict
from gender_cls.transforms.decode import Decoder

MODEL = "Binary_Classification_model.pth"
SHORT = ("trainer.max_epochs=1", "data.holdout=0")


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor(trained / MODEL)


@pytest.fixture(scope="module")
def photos(drawn: Path) -> list[Path]:
    return sorted((drawn / "val").glob("*/*.jpg"))[:3]


def p_male(predictor: Predictor, images: Any) -> list[float | None]:
    return [found.p_male for found in predictor.predict(images)]


def test_an_iterator_may_reuse_or_close_what_it_yields(predictor: Predictor, photos: list[Path]) -> None:
    arrays = [np.asarray(Image.open(path)) for path in photos]
    expected = p_male(predictor, photos)
    assert len(set(expected)) == 3

    def one_buffer() -> Iterator[np.ndarray]:
        buffer = np.empty_like(arrays[0])
        for array in arrays:
            buffer[:] = array
            yield buffer

    def one_tensor() -> Iterator[torch.Tensor]:
        buffer = torch.empty(3, *arrays[0].shape[:2], dtype=torch.uint8)
        for array in arrays:
            buffer[:] = torch.from_numpy(array.copy()).permute(2, 0, 1)
            yield buffer

    def closed_files() -> Iterator[Any]:
        for path in photos:
            with open(path, "rb") as file:
                yield file

    def closed_images() -> Iterator[Any]:
        for path in photos:
            with Image.open(path) as image:
                yield image

    for images in (one_buffer(), one_tensor(), closed_files(), closed_images()):
        assert p_male(predictor, images) == pytest.approx(expected, abs=1e-6)
    frames = io.BytesIO()
    first, *rest = (Image.open(path) for path in photos)
    first.save(frames, "GIF", save_all=True, append_images=rest)
    moving = Image.open(frames)
    alone = p_male(predictor, [frame.copy() for frame in ImageSequence.Iterator(moving)])
    assert p_male(predictor, ImageSequence.Iterator(moving)) == pytest.approx(alone, abs=1e-6)
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind in ("TIFF", "PNG", "WEBP", "JPEG"):
        buffer = io.BytesIO()
        Image.open(photos[0]).save(buffer, kind, exif=turned)
        copied = p_male(predictor, iter([Image.open(buffer)]))
        assert copied == pytest.approx(p_male(predictor, buffer.getvalue()), abs=1e-6)


def test_one_open_file_given_many_times(predictor: Predictor, photos: list[Path]) -> None:
    with open(photos[0], "rb") as file:
        found = p_male(predictor, [file] * 70)
    assert None not in found


def test_what_an_iterable_yields_before_it_fails_is_predicted(predictor: Predictor, photos: list[Path]) -> None:
    def fails_after(number: int) -> Iterator[Path]:
        for _ in range(number):
            yield photos[0]
        raise KeyError("gone")

    for number in (1, 71):
        predictions = predictor.predict(fails_after(number))
        assert [next(predictions).error for _ in range(number)] == [""] * number
        with pytest.raises(KeyError, match="gone"):
            next(predictions)


class Strange:
    def __init__(self, path: object) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        if isinstance(self.path, Exception):
            raise self.path
        return self.path


def test_strange_objects_have_their_own_row(predictor: Predictor, photos: list[Path]) -> None:
    strange = [Strange(ValueError("no")), Strange(3), float("nan"), 3, True, object(), {"a": b"x"}, Strange(b"/no.jpg")]
    found = list(predictor.predict([*strange, photos[0]]))
    assert [bool(each.error) for each in found] == [True] * len(strange) + [False]
    assert found[-2].path == "/no.jpg"
    for one in strange:
        assert [bool(each.error) for each in predictor.predict(one)] == [True]

    class Array:
        __array_interface__ = np.asarray(Image.open(photos[0])).__array_interface__

    assert p_male(predictor, Array()) == pytest.approx(p_male(predictor, photos[0]), abs=1e-6)
    with pytest.raises(UserError, match="total=5: give an integer"):
        predictor.predict(photos, total="5")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="model=None: give the path"):
        Predictor(None)  # type: ignore[arg-type]


def test_endless_and_awaited_files(predictor: Predictor, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Upload:
        async def read(self, size: int = -1) -> bytes:
            return b""

    class Short(io.RawIOBase):
        content = io.BytesIO(photos[0].read_bytes())

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return self.content.read(min(size, 7))

    monkeypatch.setattr("gender_cls.transforms.content.MAX_BYTES", 2**22)
    with open("/dev/zero", "rb") as endless:
        found = list(predictor.predict([endless, Upload(), Short(), photos[0]]))
    assert "more than 4194304 bytes" in found[0].error
    assert "await file.read()" in found[1].error
    assert found[2].p_male == pytest.approx(found[3].p_male, abs=1e-6)


def test_pillows_switch_is_given_back(
    predictor: Predictor, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = photos[0].read_bytes()[:-300]
    for value in (True, False):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", value)
        list(predictor.predict([half] * 70))
        assert ImageFile.LOAD_TRUNCATED_IMAGES is value
    lazy = Image.open(io.BytesIO(half))
    keep = Decoder("keep")
    assert keep.convert(lazy).info["truncated"]
    assert keep.convert(lazy).info["truncated"]  # also the second time
    with pytest.raises(ImageError, match="truncated"):
        Decoder().convert(lazy)


def test_keep_wants_something_to_keep(photos: list[Path]) -> None:
    noise = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(noise, "JPEG")
    whole = noise.getvalue()
    scan = whole.index(b"\xff\xda") + 14
    bitmap = io.BytesIO()
    Image.open(photos[0]).save(bitmap, "BMP")
    for content in (whole[:scan], bitmap.getvalue()[:54]):
        with pytest.raises(ImageError):
            Decoder("keep").convert(content)


def test_a_jpeg_whose_end_is_zeros(photos: list[Path]) -> None:
    whole = photos[0].read_bytes()
    half = whole[: len(whole) // 2] + bytes(len(whole) // 2)
    with pytest.raises(ImageError, match="ends in zeros"):
        Decoder().convert(half)
    assert Decoder("keep").convert(half).info["truncated"]
    for good in (whole + bytes(500), whole + b"a film" + bytes(500)):  # it has ended before
        assert np.array_equal(Decoder().convert(good), Decoder().convert(whole))


def test_tiffs_that_pillow_reads_wrongly() -> None:
    gray = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    for tags in ({262: 0}, {258: 12}):
        buffer = io.BytesIO()
        gray.save(buffer, "TIFF")
        content = bytearray(buffer.getvalue())
        for tag, value in tags.items():
            at = content.index(tag.to_bytes(2, "little") + b"\x03\0\x01\0\0\0")
            content[at + 8 : at + 10] = value.to_bytes(2, "little")
        with pytest.raises(ImageError, match="Pillow"):
            Decoder().convert(bytes(content))
    assert Decoder().convert(gray).size == (64, 64)


def test_images_that_no_split_or_class_claims_are_named(faces: Path) -> None:
    image = min((faces / "val" / "male").iterdir())
    for name in ("stray.jpg", "train/stray.jpg", "val/odd", "test/male/x.jpg"):
        (faces / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, faces / name)
    (faces / "readme.txt").touch()
    (faces / ".hidden").mkdir()
    notes = "\n".join(folder(faces).notes)
    for name in ("stray.jpg", "train/stray.jpg", "val/odd", "test"):
        assert str(faces / name) in notes
    assert "readme" not in notes
    assert "1 hidden" in notes
    (faces / "train" / "female" / "val").mkdir()
    with pytest.raises(UserError, match="the split comes first: val/female"):
        folder(faces)


def test_links_between_classes(faces: Path) -> None:
    female = faces / "train" / "female"
    (female / "loop").symlink_to("..")
    listed = folder(faces)
    assert len(listed.splits["train"]) == 48
    assert "1 link to a folder above" in "\n".join(listed.notes)
    (faces / "train" / "women").symlink_to(female)  # each real folder once
    assert len(folder(faces).splits["train"]) == 48
    (female / "more").symlink_to(faces / "train" / "male")
    with pytest.raises(UserError, match="by a linked folder, "):
        folder(faces)


def test_lists_that_are_none(in_tmp: Path, photos: list[Path], fails: Fails, trained: Path) -> None:
    shutil.copy(photos[0], "photo.jpg")
    Path("other.csv").write_text("image,label\na.jpg,male\nb.jpg,female\n")
    Path("rows.json").write_text('[{"path": "a.jpg"}]')
    Path("quoted.txt").write_text(f'"{photos[0]}"\n')
    assert expand("@quoted.txt").paths == [str(photos[0])]
    for name, says in (
        ("photo.jpg", "is an image, not a list"),
        ("other.csv", "none of its 3 lines"),
        ("rows.json", "JSON"),
    ):
        assert says in fails(script, "predict.py", f"img=@{name}", f"model={trained}/{MODEL}").line


def test_values_that_can_not_work_are_refused_before_training(train: Run, fails: Fails) -> None:
    for override in (
        "trainer.limit_predict_batches=0", "trainer.limit_train_batches=0", "trainer.limit_val_batches=0.5",
        "trainer.limit_predict_batches=0.5", "data.classes=[female,male]", "data.classes.female=0",
    ):  # fmt: skip
        assert fails(train, override).code == "bad-value"
    failure = fails(script, "train.py", "data.csv=faces.csv", "experiment=robust")
    assert "give data=manifest as well" in failure.line
    Path("file").touch()
    for override in ("run_dir=file", "hydra.run.dir=file", "hydra.sweep.dir=file/x"):
        assert fails(script, "train.py", "data.root=x", override).code in ("not-writable", "not-found")
    with pytest.raises(UserError, match="=20240101: give a path"):
        FolderDataModule(20240101)  # type: ignore[arg-type]


def test_too_many_unreadable_images_are_all_listed(faces: Path, train: Run, fails: Fails, in_tmp: Path) -> None:
    bad = sorted((faces / "train" / "male").iterdir())[:5]
    for path in bad:
        path.write_bytes(b"x")
    assert fails(train, f"data.root={faces}").code == "bad-data"
    log = (in_tmp / "runs" / "run" / "train.log").read_text()
    assert all(str(path) in log for path in bad)


def test_copies_are_said(faces: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    image = min((faces / "train" / "male").iterdir())
    shutil.copy(image, faces / "train" / "male" / "again.jpg")
    shutil.copy(image, faces / "train" / "female" / "wrong.jpg")
    train(f"data.root={faces}", *SHORT)
    said = capsys.readouterr().out
    assert "2 images of train are there twice, byte for byte" in said
    assert "1 images are under both labels, byte for byte, such as" in said
    assert "wrong.jpg" in said


def test_what_is_shown_of_paths(tmp_path: Path) -> None:
    shown = relative_paths(
        ["/home/ann/a.jpg", "/mnt/b.jpg", "/home/ann/set/male/c.jpg", f"{tmp_path}/x/d.jpg"], tmp_path
    )
    assert shown == ["a.jpg", "b.jpg", "male/c.jpg", "x/d.jpg"]
    (tmp_path / "faces.csv").touch()
    assert relative_paths([f"{tmp_path}/x/d.jpg"], tmp_path / "faces.csv") == ["x/d.jpg"]


def test_a_home_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker sets HOME=/ for a bare user ID."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_folder().parent.name == f"cache-{os.getuid()}"


def test_a_dict_in_itself_is_no_state_dict(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "x.pth", "model.weights=x.pth")


@pytest.mark.slow
def test_a_limited_model_is_named_if_it_is_the_only_one(
    train: Run, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("debug=limit", "data.holdout=0")
    assert json.loads((run / MODEL).with_suffix(".json").read_text())["limited"]
    failure = fails(script, "predict.py", "img=x.jpg")
    assert "only Binary_Classification_model.pth of runs on a part of the images" in failure.line
