"""Landmarks that are found once and stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gender_cls.features.landmarks import Landmarks, landmarks_of
from gender_cls.features.store import DIGEST
from gender_cls.transforms.centerface import CenterFace
from gender_cls.transforms.decode import Decoder, content_digest
from gender_cls.transforms.faces import TEMPLATE, Face
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CLEAN, CONDITIONS

ALIGN = Preprocessing(faces="align")
TIGHT = CONDITIONS.index(("framing", 0.5))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of the images that were looked at, by a detector that finds two faces in wide images and none in others."""
    sizes = []

    def find(self: CenterFace, image: Image.Image) -> list[Face]:
        sizes.append(image.size)
        width, height = image.size
        middle = Face((width / 4, height / 4, width / 2, height / 2), TEMPLATE * (width, height), 0.9)
        corner = Face((0.0, 0.0, 5.0, 5.0), TEMPLATE * 5, 0.9)
        return [corner, middle] if width > height else []

    monkeypatch.setattr(CenterFace, "find_faces", find)
    monkeypatch.setattr("gender_cls.transforms.centerface.version", lambda _: "0")
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda _: True)
    return sizes


@pytest.fixture
def images(tmp_path: Path) -> dict[bytes, str]:
    found = {}
    for name, size in (("wide", (80, 40)), ("tall", (40, 80))):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", size, "gray").save(path)
        found[content_digest(path.read_bytes()).encode()] = str(path)
    return found


def test_they_are_found_once_for_each_condition(
    looked: list[Any], images: dict[bytes, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = dict.fromkeys(images, (CLEAN, TIGHT))
    first = Landmarks(tmp_path / "store", ALIGN, Decoder())
    first.compute(images, wanted)
    assert sorted(looked) == [(20, 40), (40, 20), (40, 80), (80, 40)]
    assert "computing landmarks of 4 views of 2 images" in capsys.readouterr().out
    again = Landmarks(tmp_path / "store", ALIGN, Decoder())
    again.compute(images, wanted)
    wide, tall = (digest.decode() for digest in images)
    for image, number in ((Image.new("RGB", (80, 40)), CLEAN), (Image.new("RGB", (40, 20)), TIGHT)):
        assert again(image, wide, number) == pytest.approx(TEMPLATE * image.size, abs=1e-4)
    assert again(Image.new("RGB", (40, 80)), tall, CLEAN) is None
    assert len(looked) == 4
    digests = np.array([*images, b"0" * 32], dtype=DIGEST)
    assert again.counts(digests, CLEAN).tolist() == [2, 0, -1]


def test_what_is_not_stored_is_looked_for(looked: list[Any], tmp_path: Path) -> None:
    find = Landmarks(tmp_path, ALIGN, Decoder())
    assert find(Image.new("RGB", (90, 50)), "0" * 32, CLEAN) == pytest.approx(TEMPLATE * (90, 50))
    assert looked == [(90, 50)]


def test_the_detector_names_the_store(looked: list[Any], tmp_path: Path) -> None:
    stores = [
        Landmarks(tmp_path, Preprocessing(faces="align", min_score=s), Decoder()).store.folder for s in (0.5, 0.6)
    ]
    assert stores[0] != stores[1]
    assert landmarks_of(Preprocessing(), tmp_path, Decoder()) is None
