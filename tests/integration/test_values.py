"""What programs hold in their hands: bytes, file objects, arrays, tensors, state dicts of others."""

import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fails, Run, script
from PIL import Image
from torchvision.models import resnet18

from gender_cls import Predictor
from gender_cls.errors import UserError
from gender_cls.inference.export import to_onnx, to_safetensors
from gender_cls.models.network import GenderNet

MODEL = "Binary_Classification_model.pth"


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor(trained / MODEL)


@pytest.fixture(scope="module")
def photo(drawn: Path) -> Path:
    return min((drawn / "val" / "male").iterdir())


@pytest.fixture(scope="module")
def pixels(photo: Path) -> np.ndarray:
    return np.asarray(Image.open(photo).convert("RGB"))


def spooled(content: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(content)
    return file  # as an upload that was just received


def in_zip(content: bytes) -> Any:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.jpg", content)
    return zipfile.ZipFile(buffer).open("x.jpg")


def written(content: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    buffer.write(content)
    return buffer


CONTENTS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes, "bytearray": bytearray, "memoryview": memoryview, "BytesIO": io.BytesIO, "at its end": written,
    "spooled": spooled, "zip": in_zip, "a slice": lambda content: memoryview(b"x" + content)[1:],
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_alone_and_in_lists(kind: str, predictor: Predictor, photo: Path) -> None:
    content, make = photo.read_bytes(), CONTENTS[kind]
    (expected,) = predictor.predict(photo)
    (alone,) = predictor.predict(make(content))
    two = list(predictor.predict(make(content) for _ in range(2)))
    assert [found.p_male for found in (alone, *two)] == pytest.approx([expected.p_male] * 3, abs=1e-6)
    assert alone.path == ""


def test_an_open_file(predictor: Predictor, photo: Path) -> None:
    with open(photo, "rb") as file, open(photo, encoding="latin-1") as text:
        good, bad = predictor.predict([file, text])
    assert good.p_male is not None
    assert "mode 'rb'" in bad.error


def test_arrays_and_tensors_by_their_documented_shapes(predictor: Predictor, pixels: np.ndarray, photo: Path) -> None:
    gray = np.asarray(Image.open(photo).convert("L"))
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    (color,) = predictor.predict(pixels)
    same = [opaque, pixels / 255, (pixels / 255).astype(np.float32), tensor, tensor / 255, tensor.double() / 255]
    same += [pixels[None], tensor[None], [pixels], np.asfortranarray(pixels), (tensor / 255).requires_grad_()]
    for image in same:
        (found,) = predictor.predict(image)
        assert found.p_male == pytest.approx(color.p_male, abs=1e-4)
    (expected,) = predictor.predict(gray)
    for image in (gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None], gray / 255):
        (found,) = predictor.predict(image)  # a tensor (H, W) is height by width
        assert found.p_male == pytest.approx(expected.p_male, abs=1e-4)


def test_a_batch_and_arrays_of_paths(predictor: Predictor, pixels: np.ndarray, photo: Path) -> None:
    batch = np.stack([pixels, pixels[::-1]])
    one, other = predictor.predict(batch)
    assert [one.p_male, other.p_male] == [p.p_male for p in predictor.predict([pixels, pixels[::-1]])]
    for paths in (np.array([str(photo)] * 2), np.array([photo, photo], dtype=object)):
        assert [found.error for found in predictor.predict(paths)] == ["", ""]
    assert list(predictor.predict([])) == list(predictor.predict(np.array([]))) == []


def test_bgr_is_read_as_opencv_writes_it(predictor: Predictor, pixels: np.ndarray) -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    (rgb,), (swapped,) = predictor.predict(red), predictor.predict(red[..., ::-1])
    assert rgb.p_male != swapped.p_male
    alpha = np.dstack([red[..., ::-1], np.full((32, 32), 255, np.uint8)])
    for image in (red[..., ::-1], alpha, torch.from_numpy(red[..., ::-1].copy()).permute(2, 0, 1)):
        (found,) = predictor.predict(image, channels="bgr")
        assert found.p_male == rgb.p_male
    (gray,) = predictor.predict(red[..., 0], channels="bgr")
    assert gray.p_male == next(predictor.predict(red[..., 0])).p_male
    with pytest.raises(UserError, match="channels=hsv: give rgb or bgr"):
        list(predictor.predict(red, channels="hsv"))


def others(photo: Path) -> list[bytes]:
    """The photograph in formats of other signatures."""
    image, found = Image.open(photo), []
    for kind in ("PNG", "AVIF", "JPEG2000", "PPM", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def test_what_is_refused_says_why(predictor: Predictor, photo: Path, pixels: np.ndarray) -> None:
    buffer = np.frombuffer(photo.read_bytes(), np.uint8)
    refused = {
        "give them as bytes": [
            buffer,
            buffer[:, None],
            buffer[None],
            torch.from_numpy(buffer.copy()),
            buffer[:0],
            buffer[:, None, None],
            buffer[None, :, None],
            buffer[: len(buffer) // 3 * 3].reshape(1, -1, 3),
            buffer[: len(buffer) // 3 * 3].reshape(-1, 3),
            torch.from_numpy(buffer.copy())[None, None],
            (buffer / 255)[:, None],
            *(np.frombuffer(content, np.uint8)[:, None] for content in others(photo)),
        ],
        "readers such as cv2.imread return it": [None],
        "an array of shape (3, 48, 48); give (H, W) or (H, W, C)": [pixels.transpose(2, 0, 1)],
        "a tensor of shape (48, 48, 3); give (H, W) or (C, H, W)": [torch.from_numpy(pixels.copy())],
        "an array of shape (48, 48, 2)": [pixels[..., :2]],
        "an array of shape (1, 1, 48, 48, 3)": [pixels[None, None]],
        "an array of shape ()": [np.array(3)],
        "a tensor of shape (3, 0, 5)": [torch.zeros(3, 0, 5)],
        "not in 0..1": [pixels.astype(float), torch.randn(3, 9, 9), pixels / 254],
        "holds int32; give uint8": [pixels.astype(np.int32)],
        "not finite": [np.full((9, 9), np.nan)],
        "a buffer of 3 dimensions": [memoryview(np.ascontiguousarray(pixels))],
        "not an image: dict": [{"bytes": b"x"}],
        "not an image: int": [7],
        "is empty": [b"", io.BytesIO()],
        "not an image but a web page": [b"<html>404"],
        "a URL is not fetched": ["https://example.org/a.jpg", "data:image/jpeg;base64,xx"],
    }
    for says, images in refused.items():
        for image in images:
            found = list(predictor.predict([image, photo]))
            assert says in found[0].error, (says, found[0])
            assert found[0].p_male is None
            assert found[1].error == ""
    for alone in (buffer, None, np.array(3), torch.from_numpy(buffer.copy())):
        (found,) = predictor.predict(alone)
        assert found.error


def test_the_predictor_takes_the_options_of_the_command(trained: Path, photo: Path) -> None:
    half = photo.read_bytes()[:-200]
    (refused,) = Predictor(trained / MODEL).predict(half)
    assert "truncated" in refused.error
    (kept,) = Predictor(trained / MODEL, truncated="keep").predict(half)
    assert kept.note == "the file is cut off or damaged; what is there was decoded"
    assert kept.label
    (small,) = Predictor(trained / MODEL, max_pixels=100).predict(Image.open(photo).convert("RGB"))
    assert "max_pixels=100" in small.error
    with pytest.raises(UserError, match="truncated=pad: give refuse or keep"):
        Predictor(trained / MODEL, truncated="pad")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return resnet18(num_classes=7).state_dict()


def test_state_dicts_as_others_save_them(state: dict[str, torch.Tensor], train: Run) -> None:
    def prefixed(prefix: str) -> dict[str, torch.Tensor]:
        return {prefix + name: tensor for name, tensor in state.items()}

    saved = {
        "plain": state,
        "parallel": prefixed("module."),
        "compiled": prefixed("_orig_mod."),
        "lightning": {"epoch": 3, "pytorch-lightning_version": "2.4", "state_dict": prefixed("model.")},
        "both": {"model_state_dict": prefixed("module._orig_mod."), "optimizer": {"state": {}}, "loss": 0.1},
        "nested": {"net": {"state_dict": prefixed("backbone.")}},
        "model": {"model": prefixed("model.backbone."), "lr": [1e-3]},
        "averaged": {"n_averaged": torch.tensor(3), **prefixed("module.")},
    }
    for name, content in saved.items():
        torch.save(content, f"{name}.pth")
    assert len({GenderNet(f"{name}.pth").backbone_hash() for name in saved}) == 1
    run = train("model.weights=lightning.pth", "data.size=8", "trainer.max_epochs=1", "data.holdout=0")
    assert Predictor(run / MODEL).network.backbone_hash() == GenderNet("plain.pth").backbone_hash()
    torch.save({"model": torch.load(run / MODEL, weights_only=True)}, "wrapped.pth")
    assert Predictor("wrapped.pth").network


@pytest.mark.slow
def test_weights_of_other_kinds_are_called_what_they_are(trained: Path, train: Run, fails: Fails, in_tmp: Path) -> None:
    module = torch.nn.Linear(2, 2)
    torch.jit.trace(module, torch.zeros(1, 2)).save("script.pth")
    torch.save(module, "whole.pth")
    to_onnx(Predictor(trained / MODEL), Path("model.onnx"))
    to_safetensors(Predictor(trained / MODEL), Path("model.safetensors"))
    os.mkdir("folder.pth")
    Path("page.pth").write_text("<!DOCTYPE html><title>Sign in</title>")
    Path("pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    Path("model.onnx").rename("onnx.pth")
    np.savez("arrays.pth", x=np.zeros(3))
    Path("arrays.pth.npz").rename("arrays.pth")
    Path("keras.pth").write_bytes(b"\x89HDF\r\n\x1a\n")
    kinds = {
        "script": "TorchScript file; save its state dict: torch.save(torch.jit.load(FILE).state_dict()",
        "whole": "holds a torch.nn.modules.linear.Linear, as a whole pickled module does, and loading it would",
        "folder": "is a folder; give",
        "page": "is a web page; give",
        "pointer": "a pointer of Git LFS, not the file itself (git lfs pull)",
        "onnx": "is an ONNX file; a state dict is needed",
        "arrays": "is a zip archive; give",
        "keras": "is an HDF5 file; give",
    }
    image = f"img={trained}/x.jpg"
    for name, says in kinds.items():
        assert says in fails(train, f"model.weights={name}.pth").line
        if name != "onnx":  # which predict.py takes under any name
            assert says.split("; ")[0] in fails(script, "predict.py", f"model={name}.pth", image).line
    assert Predictor("onnx.pth").calibration == Predictor(trained / MODEL).calibration
    Path("model.safetensors").rename("tensors.pth")
    assert Predictor("tensors.pth").calibration == Predictor(trained / MODEL).calibration
    failure = fails(script, "predict.py", f"model={trained}/last.ckpt", image)
    assert "is the checkpoint of a run" in failure.line
    assert "give the .pth beside it" in failure.line
    assert (
        "give the Binary_Classification_model.pth in it" in fails(script, "predict.py", f"model={trained}", image).line
    )
