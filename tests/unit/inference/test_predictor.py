"""Prediction from Python, by models made here."""

import io
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gender_cls
from gender_cls.errors import UserError
from gender_cls.inference.predictor import CHUNK, FEW, Predictor
from gender_cls.models.network import GenderNet

PREPROCESSING = {"size": 32, "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OLD = {  # as the first versions wrote it, by their names
    "backbone": "resnet18",
    "classes": ["female", "male"],
    "answer": "male where sigmoid(logit) > 0.5, else female",
    "preprocessing": {**PREPROCESSING, "crop": 1.0, "median": False},
    "features": {"precision": "auto", "dtype": "float16", "engine": "torch"},
    "report": {"data.without": None},
    "weights": {"name": None, "hash": "0123456789abcdef", "trainable": "head"},
    "data": {"fingerprint": "0", "counts": [{"split": "val", "class": "male", "pictures": 2, "people": 1}]},
    "calibration": {
        "prior": 0.5, "slope": 1.5, "bias": 0.1, "split": "train", "pictures": 40, "people": 20,
        "clean": {"raw": {"error": 0.1}, "calibrated": {"error": 0.1, "error_corrected": 0.0}},
    },
    "metrics": {"val": {"pictures": 2, "people": 1, "f1_macro": None}},
}  # fmt: skip


@pytest.fixture
def model(in_tmp: Path) -> Path:
    torch.manual_seed(0)
    network = GenderNet(None)
    network.head.weight.data *= 5  # probabilities that differ
    torch.save(network.plain_state(), "model.pth")
    Path("model.json").write_text(json.dumps(OLD))
    return Path("model.pth")


@pytest.fixture
def image(drawn: Path) -> Path:
    return min(drawn.glob("val/male/*.jpg"))


@pytest.fixture
def many(drawn: Path) -> list[str]:
    """More images than are predicted at once."""
    return (2 * sorted(map(str, drawn.glob("*/*/*.jpg"))))[:100]


def test_files_images_arrays_and_tensors(image: Path, model: Path) -> None:
    path = image
    face = Image.open(path).convert("RGB")
    array = np.asarray(face)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    given = [str(path), path, face, array, array / 255, tensor, tensor / 255]
    predictor = gender_cls.Predictor(model)
    predictions = list(predictor.predict(given))
    assert [prediction.path for prediction in predictions] == [str(path), str(path), *[""] * 5]
    for prediction in predictions:
        assert prediction.p_male == pytest.approx(predictions[0].p_male, abs=1e-5)
    for one in given:
        (prediction,) = predictor.predict(one)  # not in a list
        assert prediction.p_male == pytest.approx(predictions[0].p_male, abs=1e-5)
    wrong = [array.astype(float), np.zeros((2, 3, 4, 5), np.uint8), None, array / np.nan]
    assert all(prediction.error for prediction in predictor.predict(wrong))
    assert [prediction.error for prediction in predictor.predict(array.astype(np.int64))] == [
        "holds int64; give uint8, or floats in 0..1"
    ]
    assert len(list(predictor.predict(face for _ in range(FEW + CHUNK + 1)))) == FEW + CHUNK + 1  # from a generator
    assert list(predictor.predict([])) == []


def test_many_are_predicted_as_few_are(many: list[str], model: Path) -> None:
    exact = [prediction.p_male for prediction in Predictor(model, precision="fp32").predict(many)]
    one_by_one = [next(Predictor(model).predict([path])).p_male for path in many[:5]]
    assert exact[:5] == pytest.approx(one_by_one, abs=1e-5)
    usual = [prediction.p_male for prediction in Predictor(model).predict(many)]
    assert usual == pytest.approx(exact, abs=0.01)


def test_an_output_that_is_not_a_number_is_an_error(model: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(model)
    monkeypatch.setattr(predictor.runtime, "few", lambda _: lambda pixels: np.full(len(pixels), np.nan))
    (prediction,) = predictor.predict(image)
    assert (prediction.label, prediction.error) == ("", "the output of the model is not a number")


def test_a_json_of_an_earlier_version_is_read(model: Path, image: Path) -> None:
    predictor = Predictor(model)
    assert predictor.preprocessing.size == 32
    assert predictor.calibration == {"prior": 0.5, "slope": 1.5, "bias": 0.1}
    assert predictor.note == ", calibrated for a prior of 0.5"
    (usual,) = predictor.predict(image)
    (other,) = Predictor(model, prior=0.8).predict(image)
    assert usual.p_male is not None
    assert other.p_male is not None
    odds = [p_male / (1 - p_male) for p_male in (usual.p_male, other.p_male)]
    assert odds[1] / odds[0] == pytest.approx(4)
    oldest = {key: PREPROCESSING[key] for key in PREPROCESSING}
    model.with_suffix(".json").write_text(json.dumps({"preprocessing": oldest}))
    assert next(Predictor(model).predict(image)) == usual
    assert Predictor(model).note == ", uncalibrated: its confidence is a score"


@pytest.mark.parametrize(
    "wrong",
    [
        {"preprocessing": {**PREPROCESSING, "size": "32"}}, {"preprocessing": {**PREPROCESSING, "std": [1, 1, 0]}},
        {"preprocessing": {**PREPROCESSING, "mean": [0.5, 0.5]}}, {"preprocessing": {**PREPROCESSING, "crop": 2}},
        {"preprocessing": {**PREPROCESSING, "interpolation": "no"}}, {"preprocessing": {"size": 32}}, {}, [1],
        {"preprocessing": {**PREPROCESSING, "mean": [float("nan")] * 3}}, {**OLD, "classes": ["male", "female"]},
        {**OLD, "calibration": {"prior": 1, "slope": 1, "bias": 0}}, {**OLD, "calibration": {"prior": 0.5}},
    ],
)  # fmt: skip
def test_facts_that_can_not_be_used(wrong: Any, model: Path) -> None:
    model.with_suffix(".json").write_text(json.dumps(wrong))
    with pytest.raises(UserError) as failure:
        Predictor(model)
    assert failure.value.code == "bad-model"
    assert "model.json" in str(failure.value)


def test_wrong_arguments(model: Path, in_tmp: Path) -> None:
    Path("plain.pth").write_bytes(model.read_bytes())
    Path("model.onnx").write_bytes(b"no model")
    for arguments, code, names in (
        (("no.pth",), "not-found", "model=no.pth"), ((model, 1.0), "bad-value", "prior=1.0"),
        (("plain.pth", 0.5), "conflict", "model=plain.pth"), ((model, None, "fp16"), "bad-value", "precision=fp16"),
        (("model.onnx",), "bad-model", "model=model.onnx"),
    ):  # fmt: skip
        with pytest.raises(UserError) as failure:
            Predictor(*arguments)  # type: ignore[arg-type]
        assert failure.value.code == code
        assert names in str(failure.value)


def mutated(random_: random.Random, content: bytes) -> bytes:
    """Change, delete, repeat or overwrite a few bytes."""
    data = bytearray(content)
    for _ in range(random_.randrange(1, 8)):
        at = random_.randrange(len(data))
        what = random_.randrange(4)
        if what == 0:
            data[at] = random_.randrange(256)
        elif what == 1:
            del data[at : at + random_.randrange(1, 64)]
        elif what == 2:
            data[at:at] = data[at : at + random_.randrange(1, 64)]
        else:
            data[at : at + 4] = random_.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.slow
def test_fuzz(drawn: Path, model: Path, tmp_path: Path) -> None:
    """Each of many mutated files gets its prediction or error, without a crash or a hang; try FUZZ=50000."""
    random_ = random.Random(0)
    face = Image.open(next(drawn.glob("val/male/*.jpg"))).convert("RGB")
    sources = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        face.save(buffer, kind)
        sources.append(buffer.getvalue())
    number = int(os.environ.get("FUZZ", 2000))
    predictor = Predictor(model)
    decoded, started = 0, time.monotonic()
    for first in range(0, number, 500):
        paths = []
        for place in range(first, min(number, first + 500)):
            paths.append(str(tmp_path / f"{place % 500}.jpg"))
            Path(paths[-1]).write_bytes(mutated(random_, random_.choice(sources)))
        predictions = list(predictor.predict(paths))
        assert [prediction.path for prediction in predictions] == paths
        assert all(bool(prediction.error) != (prediction.p_male is not None) for prediction in predictions)
        decoded += sum(not prediction.error for prediction in predictions)
    assert 0.1 * number < decoded < 0.9 * number  # both cases occur
    assert time.monotonic() - started < 0.1 * number
