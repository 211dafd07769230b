"""The command that fits slope and bias again, on other people's faces."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fails, script

from gender_cls.data import drawn as drawing
from gender_cls.evaluation import calibration, recalibrate
from gender_cls.inference import export
from gender_cls.inference.predictor import Predictor
from gender_cls.models.network import GenderNet
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.preprocessing import Preprocessing

MODEL = "Binary_Classification_model.pth"
PREPROCESSING = Preprocessing(size=32)
SHIFT = 3.0
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> GenderNet:
    """Random weights with a head that tells drawn faces apart, by ridge regression."""
    root = tmp_path_factory.mktemp("train") / "faces"
    drawing.draw(root, {"train": (60, 60)}, side=48, seed=1)
    paths = sorted(root.glob("*/*/*.jpg"))
    pixels = torch.from_numpy(np.stack([PREPROCESSING.pixels(Decoder().load(str(path))) for path in paths]))
    labels = torch.tensor([path.parent.name == "male" for path in paths]).float()
    torch.manual_seed(0)
    network = GenderNet(None).eval()
    with torch.no_grad():
        features = network.features(PREPROCESSING.normalize(pixels))
        center = features.mean(0)
        features = features - center
        ridge = features.T @ features / len(features) + features.var() * torch.eye(features.shape[1])
        weight = 8 * torch.linalg.solve(ridge, features.T @ (labels - 0.5) / len(features))
        network.head.weight.copy_(weight[None])
        network.head.bias.copy_(-(weight @ center)[None])
    return network


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/{female,male} with 60 and 75 images of other people, whose names a model's run would tell apart."""
    root = tmp_path_factory.mktemp("others") / "drawn"
    drawing.draw(root, {"train": (60, 75)}, side=48, seed=2)
    return Path(shutil.move(root / "train", root.with_name("faces")))


@pytest.fixture
def save(network: GenderNet, in_tmp: Path) -> Save:
    """Write the model as a run writes it, with `shift` in fc; returns its path."""

    def write(shift: float = 0.0, known: dict[str, Any] | None = None, name: str = "run") -> Path:
        changed = GenderNet(None)
        changed.load_state_dict(network.state_dict())
        if known:
            calibration.fold(changed.head, known["slope"], known["bias"])
        with torch.no_grad():
            changed.head.bias += shift
        counts = {"class": "male", "images": 60, "identities": 30, "split": "train"}
        row = {"images": 9, "identities": 9, "f1_macro": None, "f1_female": None, "f1_male": None}
        about = {
            "weights": {"name": None, "hash": "123", "trainable": "head"},
            "features": {"precision": "fp32", "dtype": "float32", "engine": "torch"},
            "report": {"identity": r"^(.+)_\d{4}$", "group": "age", "report_exclude": None},
            "data": {"fingerprint": "abc", "counts": [counts], "skipped": []},
            "calibration": known,
            "metrics": {"val": row},
        }
        folder = in_tmp / "runs" / name
        folder.mkdir(parents=True)
        return export.save_model(folder, changed, PREPROCESSING, about)

    return write


def trained_calibration() -> dict[str, Any]:
    rows = {what: {"calibrated": {"ece_debiased": 0.01}} for what in ("clean", "corrupted")}
    return {
        "prior": 0.5,
        "slope": 0.8,
        "bias": 0.5,
        "blind": False,
        "split": "train",
        "images": 9,
        "identities": 9,
    } | rows


def facts_of(model: Path) -> Any:
    return json.loads(model.with_suffix(".json").read_text())


def log_odds(model: Path, images: Path) -> torch.Tensor:
    paths = sorted(images.rglob("*.jpg"))[:40]
    return torch.tensor([calibration.log_odds(found.p_male) for found in Predictor(model).predict(paths)])


def test_a_shifted_head_is_repaired(save: Save, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(SHIFT, trained_calibration())
    assert recalibrate.main([f"model={model}", f"data.root={others}", "out=new/recalibrated.pth"]) == 0
    said = capsys.readouterr().out
    new = Path("new/recalibrated.pth")
    assert sorted(path.name for path in new.parent.iterdir()) == [
        f"recalibrated.{end}" for end in ("json", "md", "pth")
    ]
    entry = facts_of(new)["calibration"]
    before, after = entry["refit"]["before"], entry["refit"]["after"]
    assert before["f1_macro"] + 0.2 < after["f1_macro"]
    assert before["recall_female"] + 0.3 < after["recall_female"]
    assert before["intercept"] < -1.5
    assert abs(after["intercept"]) < 0.5
    assert after["slope"] == pytest.approx(1, abs=0.3)
    assert before["ece_debiased"] > 0.1 > after["ece_debiased"]
    assert before["auroc"] == after["auroc"] > 0.9
    for name in ("f1_macro", "recall_female", "auroc", "ece_debiased", "intercept", "nll"):
        assert f"{before[name]:.3f}" in said
        assert f"{after[name]:.3f}" in said
    assert "model=new/recalibrated.pth img=photo.jpg" in said

    old_state, state = (torch.load(path, weights_only=True) for path in (model, new))
    assert list(state) == list(old_state)
    assert all(torch.equal(state[name], old_state[name]) for name in state if not name.startswith("fc."))
    slope, bias = entry["refit"]["slope"], entry["refit"]["bias"]
    assert torch.allclose(state["fc.weight"], slope * old_state["fc.weight"], rtol=1e-6)
    old_logits, logits = log_odds(model, others), log_odds(new, others)
    assert torch.allclose(logits, slope * old_logits + bias, atol=1e-4)
    assert torch.equal(logits.argsort(), old_logits.argsort())
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"model={new}", f"img={others}", "out=table.csv", "precision=fp32")
    with open("table.csv", newline="") as file:
        p_male = {row["path"]: float(row["p_male"]) for row in csv.DictReader(file)}
    shown = [p_male[str(path)] for path in sorted(others.rglob("*.jpg"))[:40]]
    assert shown == pytest.approx(logits.sigmoid().tolist(), abs=1e-4)


def test_the_json_keeps_what_was_known(save: Save, others: Path) -> None:
    known = trained_calibration()
    model = save(SHIFT, known)
    old = facts_of(model)
    assert recalibrate.main([f"model={model}", f"data.root={others}"]) == 0
    new = model.with_name("recalibrated_faces.pth")
    facts = facts_of(new)
    entry = facts.pop("calibration")
    assert old.pop("calibration") == known == entry["original"]
    assert facts == old
    assert list(facts_of(new)) == list(facts_of(model))
    refit = entry["refit"]
    assert (refit["data"], refit["images"], refit["folds"]) == ("faces", 135, 5)
    assert refit["identities"] == len({path.stem[:-5] for path in others.rglob("*.jpg")}) < 135
    assert len(refit["fingerprint"]) == 16
    for path in (new.with_suffix(".json"), new.with_suffix(".md")):
        assert str(others.parent) not in path.read_text()
    assert entry["slope"] == pytest.approx(refit["slope"] * known["slope"])
    assert entry["bias"] == pytest.approx(refit["slope"] * known["bias"] + refit["bias"])
    assert (entry["prior"], entry["blind"]) == (0.5, False)
    head = [(log_odds(path, others) - row["bias"]) / row["slope"] for path, row in ((model, known), (new, entry))]
    assert torch.allclose(*head, atol=1e-3)  # the logit of the uncalibrated head, as a report computes it
    card = new.with_suffix(".md").read_text()
    assert 'torch.load("recalibrated_faces.pth"' in card
    assert (
        f"Recalibrated for a prior (share of male images) of 50%, on 135 images of {refit['identities']} identities"
        in card
    )
    assert "All of these are of the model before it was recalibrated." in card
    assert MODEL in model.with_suffix(".md").read_text()
    assert "before it was recalibrated" not in model.with_suffix(".md").read_text()

    assert recalibrate.main([f"model={new}", f"data.root={others}", "out=again.pth"]) == 0  # nothing is left to correct
    again = facts_of(Path("again.pth"))["calibration"]
    assert again["refit"]["slope"] == pytest.approx(1, abs=0.02)
    assert again["refit"]["bias"] == pytest.approx(0, abs=0.02)
    assert again["slope"] == pytest.approx(again["refit"]["slope"] * entry["slope"])
    assert again["original"] == known


def test_an_uncalibrated_model_and_priors(save: Save, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(SHIFT)
    assert recalibrate.main([f"data.root={others}", "prior=0.8", "out=most.pth"]) == 0  # the newest model
    assert recalibrate.main([f"data.root={others}", "out=even.pth"]) == 0
    assert capsys.readouterr().out.count(f"model: {model.relative_to(Path.cwd())}, uncalibrated") == 2
    most, even = (facts_of(Path(name))["calibration"] for name in ("most.pth", "even.pth"))
    assert (even["prior"], most["prior"], even["original"]) == (0.5, 0.8, None)
    assert most["slope"] == even["slope"] == even["refit"]["slope"]
    assert most["bias"] - even["bias"] == pytest.approx(math.log(4))
    assert torch.allclose(
        log_odds(Path("most.pth"), others) - log_odds(Path("even.pth"), others), torch.tensor(math.log(4)), atol=1e-4
    )
    assert recalibrate.main(["model=most.pth", f"data.root={others}", "out=kept.pth"]) == 0
    assert facts_of(Path("kept.pth"))["calibration"]["prior"] == 0.8


def test_a_table_with_identities_and_splits(save: Save, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All splits are used, and one person with a third of the images stays in one fold."""
    paths = sorted(others.rglob("*.jpg"))
    with open("own faces.csv", "w", newline="") as file:
        rows = [
            (
                path,
                "w" if path.parent.name == "female" else "m",
                ("train", "dev", "val")[at % 3],
                "ann" if at < 55 else f"p{at // 2}",
            )
            for at, path in enumerate(paths)
        ]
        csv.writer(file).writerows([("path", "label", "split", "identity"), *rows])
    folds: list[np.ndarray] = []
    identities: list[str] = []
    cross_fit, compare = recalibrate.cross_fit, recalibrate.compare

    def spy_folds(logits: torch.Tensor, labels: np.ndarray, found: np.ndarray) -> torch.Tensor:
        folds.append(found)
        return cross_fit(logits, labels, found)

    def spy_identities(*given: Any) -> Any:
        identities.extend(given[3])
        return compare(*given)

    monkeypatch.setattr(recalibrate, "cross_fit", spy_folds)
    monkeypatch.setattr(recalibrate, "compare", spy_identities)
    model = save(SHIFT)
    arguments = ["data.csv=own faces.csv", "data.classes={female: [w], male: [m]}"]
    assert recalibrate.main([f"model={model}", *arguments]) == 0
    entry = facts_of(model.with_name("recalibrated_own faces.pth"))["calibration"]
    assert entry["refit"]["data"] == "own faces.csv"
    assert (entry["refit"]["images"], entry["refit"]["identities"]) == (135, len({row[3] for row in rows}))
    assert entry["refit"]["folds"] == len(set(folds[0])) == 4  # the 60 female images are of ann and three others
    assert sorted(identities) == sorted(row[3] for row in rows)
    assert len(set(zip(identities, folds[0]))) == len(set(identities))


def test_splits_of_a_folder_are_used_together(save: Save, drawn: Path) -> None:
    model = save()
    assert recalibrate.main([f"model={model}", f"data.root={drawn}", "out=new.pth"]) == 0
    assert facts_of(Path("new.pth"))["calibration"]["refit"]["images"] == 16 + 32 + 12 + 16
    assert recalibrate.main([f"model={model}", f"data.root={drawn / 'val'}", "out=new.pth"]) == 0  # its own may go
    refit = facts_of(Path("new.pth"))["calibration"]["refit"]
    assert (refit["images"], refit["data"]) == (28, "val")
    shutil.copytree(drawn / "val", "alone/val")
    assert recalibrate.main([f"model={model}", "data.root=alone", "out=alone.pth"]) == 0
    assert facts_of(Path("alone.pth"))["calibration"]["refit"]["images"] == 28


@pytest.mark.parametrize("name", [pytest.param("new.onnx", marks=pytest.mark.slow), "new.safetensors"])
def test_exports_of_it_predict_the_same(name: str, save: Save, others: Path) -> None:
    assert recalibrate.main([f"model={save(SHIFT)}", f"data.root={others}", "out=new.pth"]) == 0
    assert export.main(["model=new.pth", f"to={name}"]) == 0
    assert Predictor(name).calibration == Predictor("new.pth").calibration
    assert torch.allclose(log_odds(Path(name), others), log_odds(Path("new.pth"), others), atol=1e-3)


def test_a_model_as_safetensors(save: Save, others: Path) -> None:
    assert export.main([f"model={save(SHIFT)}", "to=old.safetensors"]) == 0
    assert recalibrate.main(["model=old.safetensors", f"data.root={others}", "out=new.pth"]) == 0
    assert facts_of(Path("new.pth"))["calibration"]["refit"]["before"]["intercept"] < -1.5
    assert recalibrate.main(["model=new.pth", f"data.root={others}", "out=newer.pth"]) == 0
    assert facts_of(Path("newer.pth"))["calibration"]["refit"]["slope"] == pytest.approx(1, abs=0.02)


def test_labels_that_are_swapped_are_noted(save: Save, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one, other in (("female", "male"), ("male", "female")):
        shutil.copytree(others / one, Path("swapped") / other)
    assert recalibrate.main([f"model={save()}", "data.root=swapped", "out=blind.pth"]) == 0
    assert "note: here the model is no better than chance" in capsys.readouterr().out
    assert facts_of(Path("blind.pth"))["calibration"]["blind"] is True
    assert "does no better than chance" in " ".join(Path("blind.md").read_text().split())


def test_a_json_that_is_too_old_for_a_card(save: Save, others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save()
    model.with_suffix(".json").write_text(json.dumps({"preprocessing": asdict(PREPROCESSING)}))
    assert recalibrate.main([f"model={model}", f"data.root={others}", "out=new.pth"]) == 0
    assert "note: No model card" in capsys.readouterr().out
    assert "No model card" in Path("new.md").read_text()
    assert set(facts_of(Path("new.pth"))) == {"preprocessing", "calibration"}
    assert Predictor("new.pth").calibration


def test_what_the_command_refuses(save: Save, others: Path, fails: Fails) -> None:
    model = save()

    def check(code: str, part: str, *arguments: str) -> None:
        given = arguments if arguments[0].startswith("model=") else (f"model={model}", *arguments)
        failure = fails(lambda: recalibrate.run_main(lambda _: recalibrate.main(list(given))))
        assert failure.code == code
        assert part in failure.line

    faces = f"data.root={others}"
    check("conflict", "give either data.root=DIR or data.csv=FILE", "prior=0.5")
    check("unknown-option", "'data.group=age' is none of model=", faces, "data.group=age")
    for prior in ("1.0", "0.0", "x", "nan"):
        check("bad-value", f"prior={prior}: give a number above 0 and below 1", faces, f"prior={prior}")
    check("bad-value", "out=new.onnx: give a name that ends in .pth", faces, "out=new.onnx")
    check("conflict", f"out={model} would replace the model or its JSON; give out=FILE", faces, f"out={model}")
    Path("link.pth").symlink_to(model)
    check("conflict", "out=link.pth would replace the model", faces, "out=link.pth")
    shutil.copy(model, model.with_suffix(".pt"))
    check("conflict", "would replace the model or its JSON", f"model={model.with_suffix('.pt')}", faces, f"out={model}")
    other = save(name="other")
    check("conflict", f"out={other}: {MODEL} is there already, and not from this command", faces, f"out={other}")
    Path("notes.md").write_text("mine")
    check("conflict", "out=notes.pth: notes.md is there already", faces, "out=notes.pth")
    Path("file").write_text("")
    check("not-writable", "out=file/new.pth: ", faces, "out=file/new.pth")
    check("bad-model", "give the .pth that it was exported from, then export", "model=model.onnx", faces)
    shutil.copy(model, "plain.pth")
    check("bad-model", "model=plain.pth has no JSON with its preprocessing", "model=plain.pth", faces)
    check("not-found", "data.root=nowhere: no such folder", "data.root=nowhere")
    for label, number in (("female", 1), ("male", 4)):
        Path("few", label).mkdir(parents=True)
        for image in sorted((others / label).iterdir())[:number]:
            shutil.copy(image, Path("few", label))
    check(
        "too-few-identities",
        "data.root=few: recalibration needs at least 2 identities of each class, 1 female and 4 male",
        "data.root=few",
    )
    state = torch.load(model, weights_only=True)
    state["fc.weight"][:] = 3e38
    torch.save(state, other)
    check("bad-model", "its logits are not finite numbers", f"model={other}", faces)
    assert (
        not list(Path().glob("recalibrated*")) + list(Path().glob("runs/*/recalibrated*")) + list(Path().glob("new*"))
    )
    assert Path("notes.md").read_text() == "mine"


def test_a_failed_write_leaves_nothing(save: Save, others: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = save()
    monkeypatch.setattr(export, "write_json", full)
    arguments = [f"model={model}", f"data.root={others}", "out=new/it.pth"]
    failure = fails(lambda: recalibrate.run_main(lambda _: recalibrate.main(arguments)))
    assert failure.code == "not-writable"
    assert "out=new/it.pth: no space left on device" in failure.line
    assert not list(Path("new").iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert recalibrate.main([]) == recalibrate.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {key}=" in said for key in recalibrate.KEYS if key != "data.csv")
