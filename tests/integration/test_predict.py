"""predict.py as it is used, and the model file as other programs use it."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Fails, Run, script
from PIL import Image
from torchvision.models import resnet18
from torchvision.transforms import v2

from gender_cls.evaluation.metrics import Evaluation
from gender_cls.inference.predictor import Predictor

MODEL = "Binary_Classification_model.pth"


@pytest.fixture
def image(drawn: Path) -> Path:
    return min(drawn.glob("val/female/*.jpg"))


def run_predict(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], list[str]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        script("predict.py", *arguments)
    assert stop.value.code == code
    output = capsys.readouterr()
    return output.out.splitlines(), output.err.splitlines()


def test_the_real_command_predicts_with_the_newest_model(trained: Path, image: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", f"img={image}"],
        cwd=trained.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    path, label, confidence, sign = done.stdout.rstrip("\n").rsplit(maxsplit=3)
    assert (path, sign) == (str(image), "%")
    assert label in ("female", "male")
    assert 50 <= float(confidence) <= 100
    assert done.stdout == f"{image}  {label}  {confidence} %\n"
    assert done.stderr == f"model: runs/one/{MODEL}, calibrated for a prior of 0.5\n"


def test_a_plain_script_gets_the_same_confidence(
    trained: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs only torch, torchvision and the JSON; the head is calibrated."""
    assert json.loads((trained / MODEL).with_suffix(".json").read_text())["calibration"]
    net = resnet18(num_classes=1)
    net.load_state_dict(torch.load(trained / MODEL, weights_only=True), strict=True)
    net.eval()
    known = json.loads((trained / MODEL).with_suffix(".json").read_text())["preprocessing"]
    transform = v2.Compose(
        [
            v2.Resize((known["size"], known["size"]), v2.InterpolationMode(known["interpolation"])),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(known["mean"], known["std"]),
        ]
    )
    paths = [str(path) for path in sorted(drawn.glob("val/*/*.jpg"))]
    views = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        plain = torch.sigmoid(net(views)).flatten().tolist()
    ours = [prediction.p_male for prediction in Predictor(trained / MODEL).predict(paths)]
    assert ours == pytest.approx(plain, abs=1e-5)
    assert max(plain) - min(plain) > 0.01  # else any model would do
    lines, _ = run_predict(capsys, f"model={trained / MODEL}", f"img={drawn / 'val'}")
    for line, path, p_male in zip(lines, paths, plain, strict=True):
        name, label, confidence = re.fullmatch(r"(.+)  (female|male)  ([\d.]+) %", line).groups()  # type: ignore[union-attr]
        assert (name, label) == (path, ("female", "male")[p_male > 0.5])
        assert float(confidence) == pytest.approx(100 * max(p_male, 1 - p_male), abs=0.101)


@pytest.mark.parametrize(
    "how",
    [("cached_views=0",), ("features.precision=fp32", "features.dtype=float32"), ("features.precision=bf16",)],
    ids=str,
)
def test_the_reported_scores_are_those_of_predict(how: tuple[str, ...], train: Run, drawn: Path) -> None:
    """The evaluation in training and the Predictor agree; in bf16 a probability may differ a little."""
    run = train("trainer.max_epochs=2", "data.holdout=0", "model.optimizer.lr=0.01", *how)
    predictions = list(Predictor(run / MODEL).predict(sorted(map(str, drawn.glob("val/*/*.jpg")))))
    labels = torch.tensor([float(Path(prediction.path).parent.name == "male") for prediction in predictions])
    logged = json.loads((run / "metrics.json").read_text())["val"]
    probabilities = torch.tensor([[prediction.p_male for prediction in predictions]])
    found = Evaluation(probabilities, labels.numpy(), ["one"] * len(labels)).metrics(0)
    near = 0.05 if "features.precision=bf16" in how else 1e-6
    for name in ("f1_macro", "f1_female", "precision_male", "recall_female", "accuracy", "auroc"):
        assert logged[name] == pytest.approx(found[name], abs=near)


@pytest.mark.parametrize("name", ["my photo (1).jpg", "C=1.png", "[x],y.jpg", "größe.webp", "'quoted' $x.bmp"])
def test_names_are_taken_literally(
    name: str, trained: Path, image: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(image).save(name)
    lines, _ = run_predict(capsys, f"img={name}", f"model={trained / MODEL}")
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}  ")


def test_a_name_that_is_not_utf8_gets_its_line(trained: Path, image: Path, tmp_path: Path) -> None:
    name = tmp_path / b"f\xff.jpg".decode(errors="surrogateescape")
    name.write_bytes(image.read_bytes())
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", f"img={name}", f"model={trained / MODEL}", f"out={tmp_path}/o.csv"],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"f\xff.jpg" in (tmp_path / "o.csv").read_bytes()


def test_folders_and_files_in_order(
    trained: Path, drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = drawn / "val" / "male"
    first = min(drawn.glob("val/female/*.jpg"))
    (in_tmp / "notes.txt").write_text("no image")
    given = [f"img={path}" for path in (first, folder, "notes.txt", "gone.jpg")]
    lines, errors = run_predict(capsys, *given, f"model={trained / MODEL}", code=1)
    expected = [str(first), *sorted(map(str, folder.glob("*.jpg")))]
    assert [line.split("  ")[0] for line in lines] == expected
    failures = [
        "notes.txt  error: not an image (no format that Pillow knows)",
        "gone.jpg  error: no such file or directory",
    ]
    assert errors[1:3] == failures
    assert re.fullmatch(r"19 images in [\d.]+ s: (\d+ male, )?(\d+ female, )?2 failed", errors[3])
    lines, errors = run_predict(capsys, *given, f"model={trained / MODEL}", "out=o.csv", code=1)
    assert (lines, errors[1:3]) == ([], failures)
    with open("o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [*expected, "notes.txt", "gone.jpg"]
    known = ["path", "label", "confidence", "p_male", "error", "note"]
    assert list(rows[0]) == [*known, "face", "x", "y", "width", "height", "score"]
    for row in rows[:-2]:
        p_male = float(row["p_male"])
        assert row["label"] == ("male" if p_male > 0.5 else "female")
        assert float(row["confidence"]) == pytest.approx(100 * max(p_male, 1 - p_male), abs=0.01)
    assert rows[-1] == {
        "path": "gone.jpg",
        "label": "",
        "confidence": "",
        "p_male": "",
        "error": "no such file or directory",
        "note": "",
        **dict.fromkeys(("face", "x", "y", "width", "height", "score"), ""),
    }
    assert not list(Path().glob("*.part"))


def test_without_its_json_the_recipe_is_assumed_with_a_note(
    trained: Path, image: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.pth").write_bytes((trained / MODEL).read_bytes())
    _, errors = run_predict(capsys, f"img={image}", "model=old.pth")
    assert errors == ["model: old.pth, without its JSON: the preprocessing of the recipe is assumed"]
    assert Predictor("old.pth").preprocessing.size == 224


def test_an_old_out_stays_until_the_new_one_is_whole(
    trained: Path, image: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("o.csv").write_text("old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "_predict_chunk", stop)
    with pytest.raises(SystemExit, match="stopped"):
        script("predict.py", f"img={image}", f"model={trained / MODEL}", "out=o.csv")
    assert Path("o.csv").read_text() == "old"
    assert list(Path().glob("o.csv*")) == [Path("o.csv")]  # there was no row to keep


def test_any_format_gives_the_same_prediction(
    trained: Path, image: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Turned by EXIF, in other modes and depths, the prediction stays close."""
    face = Image.open(image).convert("RGB")
    grey = face.convert("L")
    turned = face.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 270 degrees
    turned.save("turned.png", exif=exif)
    face.save("plain.png")
    face.convert("CMYK").save("cmyk.tif")
    face.quantize(256).save("palette.png")
    rgba = face.convert("RGBA")
    rgba.putalpha(255)
    rgba.save("alpha.png")
    grey.save("grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save("deep.png")
    rows = {
        prediction.path: prediction.p_male
        for prediction in Predictor(trained / MODEL).predict(sorted(map(str, Path().glob("*.*"))))
    }
    for name in ("turned.png", "alpha.png"):
        assert rows[name] == pytest.approx(rows["plain.png"], abs=1e-6)
    for name in ("cmyk.tif", "palette.png"):
        assert rows[name] == pytest.approx(rows["plain.png"], abs=0.05)
    assert rows["deep.png"] == pytest.approx(rows["grey.png"], abs=1e-6)
    assert len(run_predict(capsys, "img=.", f"model={trained / MODEL}")[0]) == 7


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run_predict(capsys, "--help")
    assert any("img=PATH" in line for line in lines)
    assert run_predict(capsys)[0] == lines


def test_a_single_image_imports_nothing_heavy_but_torch(trained: Path, image: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from gender_cls.inference.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('pytorch_lightning', 'hydra', 'omegaconf', 'torchmetrics', 'matplotlib', 'tensorboard', "
        "'pandas', 'scipy', 'sklearn', 'onnx', 'onnxruntime', 'openvino', 'pyarrow', 'gender_cls.data', "
        "'gender_cls.evaluation', 'gender_cls.training') if m in sys.modules])"
    )
    arguments = [f"img={image}", f"model={trained / MODEL}", f"montage={tmp_path / 'sheet.png'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_arguments_that_are_wrong(trained: Path, image: Path, in_tmp: Path, fails: Fails) -> None:
    for argument, code in {
        "sure=90": "renamed", "min_confidence=0.9": "bad-value", "prior=80%": "bad-value", "prior=1": "bad-value",
        "precision=fp16": "bad-value", "model=no.pth": "not-found",
    }.items():  # fmt: skip
        model = [] if argument.startswith("model=") else [f"model={trained / MODEL}"]
        failure = fails(script, "predict.py", f"img={image}", *model, argument)
        assert failure.code == code
        assert argument.split("=")[0] in failure.line
    assert "min_confidence=90" in fails(script, "predict.py", f"img={image}", "sure=90").line
    assert fails(script, "predict.py", "prior=0.5").code == "no-images"
