"""What a model can be made into, and that it answers the same there."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT, Run
from PIL import Image

from gender_cls import calibration, export
from gender_cls.card import model_card
from gender_cls.predictor import Predictor
from gender_cls.words import run_command

MODEL = "Binary_Classification_model.pth"
FACECOM = ROOT.parent / "shared" / "data" / "facecom"
STAND_IN = ROOT.parent / "shared" / "weights" / "resnet18-standin.pth"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for ending in ("onnx", "safetensors"):
        assert export.main([f"model={trained / MODEL}", f"to={folder / f'model.{ending}'}"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.safetensors"]
    return folder


@pytest.mark.parametrize("ending", ["onnx", "safetensors"])
def test_it_answers_the_same(ending: str, exported: Path, trained: Path, drawn: Path) -> None:
    paths = sorted(map(str, drawn.glob("*/*/*.jpg")))
    for prior in (None, 0.8):
        one, other = Predictor(trained / MODEL, prior, "fp32"), Predictor(exported / f"model.{ending}", prior, "fp32")
        assert (one.preprocessing, one.calibration, one.note) == (other.preprocessing, other.calibration, other.note)
        for some in (paths[:1], paths[:5], paths):  # other batches, and above 64 by threads
            for a, b in zip(one.predict(some), other.predict(some), strict=True):
                assert a.p_male == pytest.approx(b.p_male, abs=1e-4)
                assert a.label == b.label


def test_a_stranger_needs_nothing_but_onnx_runtime(exported: Path, trained: Path, drawn: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    facts = json.loads(session.get_modelmeta().custom_metadata_map["facts"])
    side = facts["preprocessing"]["size"]
    path = next(drawn.glob("val/male/*.jpg"))
    picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    image = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
    (p_male,) = session.run(["p_male"], {"image": image})[0]
    (answer,) = Predictor(trained / MODEL).predict([path])
    assert answer.p_male == pytest.approx(float(p_male), abs=1e-4)
    assert facts["calibration"]["prior"] == 0.5
    assert facts["classes"] == ["female", "male"]


def test_onnx_is_run_without_torch(exported: Path, drawn: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['torchvision'] = None\nimport predict\n"
        "code = predict.main(sys.argv[1:])\n"
        "print(code, sorted({name.split('.')[0] for name in sys.modules} & {'tqdm', 'matplotlib', 'pyarrow', 'onnx'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"img={drawn / 'val'}", f"model={exported / 'model.onnx'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"
    assert len(done.stdout.splitlines()) == 28 + 1


def test_what_it_refuses(
    trained: Path, in_tmp: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*words: str) -> None:
        run_command(lambda _: export.main([f"model={trained / MODEL}", *words]))

    assert "give to=FILE that ends in .onnx or .safetensors" in fails(start, "to=model.pt")
    assert "no/model.safetensors: no such file" in fails(start, "to=no/model.safetensors")
    for name in ("broken.onnx", "broken.safetensors"):
        Path(name).write_bytes(b"no model")
        assert f"model={name} is" in fails(lambda *words: run_command(lambda _: bool(Predictor(words[0]))), name)
    monkeypatch.setattr(export, "NEAR", 0.0)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a handler that Hydra has left writes to a closed stream
    assert "ONNX Runtime answers otherwise than torch" in fails(start, "to=model.onnx")
    assert not list(Path().glob("*model*"))


def test_a_model_has_its_card(trained: Path) -> None:
    card = (trained / MODEL).with_suffix(".md").read_text()
    assert card.startswith("---\nlicense: other\n")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"| val | 28 | {metrics['val']['people']} | {metrics['val']['f1_macro']:.3f} (" in card
    for words in ("## Not for", "random (hash", "12 female pictures"):
        assert words in card
    facts = json.loads((trained / MODEL).with_suffix(".json").read_text())
    found = {"Calibrated for pictures of which 80% show men": 1.0, "says male with about 80%": calibration.LEAST_SLOPE}
    for words, slope in found.items():
        assert words in model_card(facts | {"calibration": facts["calibration"] | {"slope": slope, "prior": 0.8}})


@pytest.mark.slow
@pytest.mark.skipif(not FACECOM.is_dir(), reason="the FACECOM pictures are not at hand")
def test_onnx_agrees_on_facecom(train: Run, in_tmp: Path) -> None:
    run = train(
        f"data.root={FACECOM}", f"model.weights={STAND_IN}", "data.size=224", "views=1", "trainer.max_epochs=2",
        "model.optimizer.lr=0.01", "data.num_workers=2",
    )  # fmt: skip
    assert export.main([f"model={run / MODEL}", "to=model.onnx"]) == 0
    paths = sorted(map(str, (FACECOM / "val").glob("*/*.jpg")))
    one, other = (Predictor(model, precision="fp32").predict(paths) for model in (run / MODEL, "model.onnx"))
    for a, b in zip(one, other, strict=True):
        assert a.p_male == pytest.approx(b.p_male, abs=1e-4)
        assert a.label == b.label
