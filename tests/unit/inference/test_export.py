"""Exports of a model, which predict as the model does."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT, Fails, Run
from PIL import Image

from gender_cls.inference import export
from gender_cls.inference.arguments import run_main
from gender_cls.inference.model_card import model_card
from gender_cls.inference.predictor import Predictor

MODEL = "Binary_Classification_model.pth"
FACECOM = ROOT.parent / "shared" / "data" / "facecom"
STAND_IN = ROOT.parent / "shared" / "weights" / "resnet18-standin.pth"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for suffix in ("onnx", "safetensors"):
        assert export.main([f"model={trained / MODEL}", f"to={folder / f'model.{suffix}'}"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.safetensors"]
    return folder


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_exports_predict_the_same(suffix: str, exported: Path, trained: Path, drawn: Path) -> None:
    paths = sorted(map(str, drawn.glob("*/*/*.jpg")))
    for prior in (None, 0.8):
        one, other = Predictor(trained / MODEL, prior, "fp32"), Predictor(exported / f"model.{suffix}", prior, "fp32")
        assert (one.preprocessing, one.calibration, one.note) == (other.preprocessing, other.calibration, other.note)
        for some in (paths[:1], paths[:5], paths):  # other batches, and above 64 by threads
            for a, b in zip(one.predict(some), other.predict(some), strict=True):
                assert a.p_male == pytest.approx(b.p_male, abs=1e-4)
                assert a.label == b.label


def test_onnx_runtime_and_the_metadata_suffice(exported: Path, trained: Path, drawn: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    facts = json.loads(session.get_modelmeta().custom_metadata_map["facts"])
    side = facts["preprocessing"]["size"]
    path = next(drawn.glob("val/male/*.jpg"))
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    image = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    (p_male,) = session.run(["p_male"], {"image": image})[0]
    (prediction,) = Predictor(trained / MODEL).predict([path])
    assert prediction.p_male == pytest.approx(float(p_male), abs=1e-4)
    assert facts["calibration"]["prior"] == 0.5
    assert facts["classes"] == ["female", "male"]


def test_onnx_is_run_without_torch(exported: Path, drawn: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "from gender_cls.inference.cli import main\ncode = main(sys.argv[1:])\n"
        "print(code, sorted({name.split('.')[0] for name in sys.modules} & {'tqdm', 'matplotlib', 'pyarrow', 'onnx'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"img={drawn / 'val'}", f"model={exported / 'model.onnx'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"
    assert len(done.stdout.splitlines()) == 28 + 1


def test_exports_that_are_refused(trained: Path, in_tmp: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: str) -> None:
        run_main(lambda _: export.main([f"model={trained / MODEL}", *arguments]))

    for argument, code, names in (
        ("to=model.pt", "bad-value", "to=FILE that ends in .onnx or .safetensors"),
        ("to=no/model.safetensors", "not-writable", "to=no/model.safetensors: no such file"),
    ):
        failure = fails(start, argument)
        assert failure.code == code
        assert names in failure.line
    for name in ("broken.onnx", "broken.safetensors"):
        Path(name).write_bytes(b"no model")
        failure = fails(lambda *arguments: run_main(lambda _: bool(Predictor(arguments[0]))), name)
        assert failure.code == "bad-model"
        assert f"model={name} is" in failure.line
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a handler left by Hydra writes to a closed stream
    failure = fails(start, "to=model.onnx")
    assert failure.code == "bad-model"
    assert "to=model.onnx: ONNX Runtime and torch differ" in failure.line
    assert not list(Path().glob("*model*"))
    Path("plain.pth").write_bytes((trained / MODEL).read_bytes())
    failure = fails(lambda *given: run_main(lambda _: export.main([*given])), "model=plain.pth", "to=plain.onnx")
    assert failure.code == "bad-model"
    assert "model=plain.pth has no JSON" in failure.line


def test_a_model_has_its_card(trained: Path) -> None:
    card = (trained / MODEL).with_suffix(".md").read_text()
    assert card.startswith("---\nlicense: other\n")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"| val | 28 | {metrics['val']['identities']} | {metrics['val']['f1_macro']:.3f} (" in card
    for text in ("## Uses to avoid", "random (hash", "12 female images"):
        assert text in card
    facts = json.loads((trained / MODEL).with_suffix(".json").read_text())
    found = {
        "Calibrated for a prior (share of male images) of 80%": False,
        "predicts male with a probability of about 80%": True,
    }
    for text, blind in found.items():
        card = model_card(facts | {"calibration": facts["calibration"] | {"blind": blind, "prior": 0.8}})
        assert text in " ".join(card.split())
    assert "Uncalibrated" in model_card(facts | {"calibration": None})


def test_a_saved_model_is_the_same_file_each_time(trained: Path, in_tmp: Path) -> None:
    predictor = Predictor(trained / MODEL)
    for name in ("one", "two"):
        Path(name).mkdir()
        path = export.save_model(Path(name), predictor.network, predictor.preprocessing, predictor.facts)
        assert sorted(file.suffix for file in Path(name).iterdir()) == [".json", ".md", ".pth"]
    assert path.read_bytes() == (Path("one") / MODEL).read_bytes() == (trained / MODEL).read_bytes()


def test_the_commit_is_that_of_this_project_alone(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    module = Path("project/gender_cls/inference/export.py")
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(export, "__file__", str(module.resolve()))
    git("init", "project")
    assert export._git_commit() is None  # nothing is committed
    git("-C", "project", "add", ".")
    git("-C", "project", "commit", "-m", "first")
    commit = git("-C", "project", "rev-parse", "HEAD")
    assert export._git_commit() == commit
    module.write_text("changed")
    assert export._git_commit() == f"{commit}+"
    inside = Path("project/lib/gender_cls/inference/export.py")  # as installed below another repository
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(export, "__file__", str(inside.resolve()))
    assert export._git_commit() is None


@pytest.mark.slow
@pytest.mark.skipif(not FACECOM.is_dir(), reason="needs the FACECOM images")
def test_onnx_agrees_on_facecom(train: Run, in_tmp: Path) -> None:
    for split, number in (("train", 60), ("val", 40)):  # of each class, as links
        for image in (
            path for name in ("female", "male") for path in sorted((FACECOM / split / name).iterdir())[:number]
        ):
            link = in_tmp / "some" / image.relative_to(FACECOM)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(image)
    run = train(
        "data.root=some", f"model.weights={STAND_IN}", "data.size=224", "cached_views=1", "trainer.max_epochs=2",
        "model.optimizer.lr=0.01", "data.num_workers=2",
    )  # fmt: skip
    assert export.main([f"model={run / MODEL}", "to=model.onnx"]) == 0
    paths = sorted(map(str, Path("some/val").glob("*/*.jpg")))
    assert len(paths) == 80
    one, other = (Predictor(model, precision="fp32").predict(paths) for model in (run / MODEL, "model.onnx"))
    for a, b in zip(one, other, strict=True):
        assert a.p_male == pytest.approx(b.p_male, abs=1e-4)
        assert a.label == b.label
