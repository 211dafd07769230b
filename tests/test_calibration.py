"""What makes a confidence mean something: the fit, its folding, the error, and the whole way through both scripts."""

import csv
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, script
from hydra import compose, initialize_config_dir
from torchvision.models import resnet18

from gender_cls import calibration, folds
from gender_cls.answers import Answers
from gender_cls.metrics import auroc
from gender_cls.network import GenderNet
from gender_cls.predictor import Predictor
from gender_cls.reliability import coverage_at, measure_calibration
from gender_cls.sources import Face
from gender_cls.views import ASKED, CONDITIONS

MODEL = "Binary_Classification_model.pth"


def drawn_logits(women: int, men: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Log-odds of male at as many women as men, and labels: x of women from N(-1, 1), of men from N(1, 1), is 2 x."""
    labels = np.repeat((0, 1), (women, men))
    return torch.from_numpy(2 * np.random.default_rng(seed).normal(2 * labels - 1)), labels


def test_a_known_slope_and_bias_are_recovered_whatever_the_mixture() -> None:
    logits, labels = drawn_logits(40_000, 160_000)
    slope, bias = calibration.fit(((logits - 1.8) / 2.5)[None], labels)
    assert slope == pytest.approx(2.5, rel=0.02)
    assert bias == pytest.approx(1.8, abs=0.03)


def test_a_fit_never_turns_the_ranking_round_and_survives_classes_apart() -> None:
    labels = np.array([0, 0, 1, 1])
    slope, bias = calibration.fit(torch.tensor([[2.0, 1.0, -1.0, -2.0]]), labels)
    assert slope > 0
    slope, bias = calibration.fit(torch.tensor([[-2.0, -1.0, 1.0, 2.0]]), labels)
    assert 0 < slope < 20
    assert bias == pytest.approx(0, abs=1e-4)
    assert calibration.fit(torch.zeros(1, 4), labels)[0] > 0  # a head that says nothing


def test_folding_is_the_map_and_leaves_the_ranking() -> None:
    torch.manual_seed(0)
    images, net, plain = torch.rand(16, 3, 32, 32), GenderNet(None).eval(), resnet18(num_classes=1).eval()
    with torch.no_grad():
        raw = net(images)
        calibration.fold(net.head, 0.83, -0.4)
        plain.load_state_dict(net.resnet18_state())
        folded = plain(images).squeeze(1).sigmoid()
    assert torch.allclose(folded, (0.83 * raw - 0.4).sigmoid(), rtol=0, atol=1e-6)
    assert torch.equal(folded.argsort(), raw.argsort())
    labels = torch.arange(16) % 2
    assert auroc(folded, labels) == auroc(raw.sigmoid(), labels)


def test_the_error_of_cases_done_by_hand() -> None:
    labels = np.array([0, 1])  # a bin for each
    assert calibration.calibration_error(np.array([0.2, 0.7]), labels, 0.5) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert calibration.calibration_error(np.array([0.2, 0.7]), labels, 0.8) == pytest.approx(0.2 * 0.2 + 0.8 * 0.3)
    labels = np.tile((0, 1), 15)  # two pictures a bin, of which the one is a man
    assert calibration.calibration_error(np.full(30, 0.6), labels, 0.5) == pytest.approx(0.1)
    rows = np.stack([labels, 1 - labels, labels])
    assert calibration.calibration_error(np.full(30, 0.6), rows, 0.5).tolist() == pytest.approx([0.1] * 3)


def test_the_error_of_a_perfect_model_is_noise_and_a_bias_is_not() -> None:
    found = [calibration.figures(*drawn_logits(105, 317, seed), 0.5) for seed in range(40)]
    assert 0.02 < np.mean([figures["error"] for figures in found]) < 0.06  # though it is perfect
    assert abs(np.mean([figures["error_corrected"] for figures in found])) < 0.006
    assert np.mean([figures["slope"] for figures in found]) == pytest.approx(1, abs=0.1)
    assert np.mean([figures["intercept"] for figures in found]) == pytest.approx(0, abs=0.1)
    logits, labels = drawn_logits(105, 317)
    for shift in (-1.5, 1.5):
        biased = calibration.figures(logits + shift, labels, 0.5)
        assert biased["error_corrected"] > 0.05
        assert biased["intercept"] == pytest.approx(-shift, abs=0.4)
    sure = calibration.figures(3 * logits, labels, 0.5)
    assert sure["slope"] == pytest.approx(1 / 3, abs=0.1)
    assert sure["error_corrected"] > 0.04


def test_another_prior_is_another_weight() -> None:
    logits, labels = drawn_logits(20_000, 20_000)
    moved = logits + calibration.log_odds(0.8)
    assert abs(calibration.figures(moved, labels, 0.8)["error_corrected"]) < 0.01
    assert calibration.figures(moved, labels, 0.5)["error_corrected"] > 0.05
    weights = calibration.class_weights(np.array([0, 0, 0, 1]), 0.8)
    assert weights.tolist() == pytest.approx([0.2 / 3] * 3 + [0.8])


def test_coverage_by_hand() -> None:
    logits, labels = torch.tensor([4.0, -3.0, 2.0, -1.0]), np.array([1, 0, 0, 1])  # the surest two are right
    covered, wrong, confidence = calibration.coverage(logits, labels, 0.5)
    assert covered.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert wrong.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert confidence.tolist() == pytest.approx(logits.double().abs().sigmoid().tolist())
    found = coverage_at(logits, labels, 0.5, 0.01)
    assert (found["coverage"], found["confidence"]) == (0.5, pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6))
    assert coverage_at(-logits, labels, 0.5, 0.05) == {"error": 0.05, "coverage": 0.0, "confidence": None}


def test_what_a_report_says_before_and_after() -> None:
    logits, labels = drawn_logits(100, 300)
    people = [Face(f"{n}.jpg", int(label), f"p{n // 2}", "", f"{n}") for n, label in enumerate(labels)]
    every = Answers(people, logits.expand(len(CONDITIONS), -1))
    found = measure_calibration(every, {"prior": 0.5, "slope": 0.5, "bias": 1.0})
    assert found
    assert found["model"]["clean"]["slope"] == pytest.approx(1, abs=0.2)
    assert found["raw"]["clean"]["slope"] == pytest.approx(0.5 * found["model"]["clean"]["slope"], rel=1e-3)
    assert found["raw"]["clean"]["error_corrected"] > 0.05 > found["model"]["clean"]["error_corrected"]
    assert list(found["coverage"]) == list(ASKED)
    rows = found["model"]["foggy"]["bins"]
    assert len(rows) == 15
    inside = sum(row["low"] <= row["p_male"] <= row["high"] for row in rows)
    assert inside >= 10
    assert all(row["low"] <= row["share"] <= row["high"] for row in rows)
    assert measure_calibration(every.of(labels == 1), None) is None


def answers_of(run: Path, drawn: Path, *words: str) -> list[dict[str, str]]:
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={drawn / 'val'}", f"model={run / MODEL}", "out=said.csv", *words)
    with open("said.csv", newline="") as file:
        return list(csv.DictReader(file))


def raw_head(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("network.head."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("how", [("data.holdout=0",), ("views=0", "data.holdout=0.2")])
def test_a_run_folds_what_it_says(
    how: tuple[str, ...], train: Run, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("calibration=platt", "trainer.max_epochs=2", "model.optimizer.lr=0.01", *how)
    run = train(*words, name="half")
    told = json.loads((run / MODEL).with_suffix(".json").read_text())["calibration"]
    assert told == json.loads((run / "metrics.json").read_text())["calibration"]
    assert told["split"] == ("dev" if "views=0" in how else "train")
    assert "calibration" in capsys.readouterr().out
    state, raw = torch.load(run / MODEL, weights_only=True), raw_head(run)
    assert torch.allclose(state["fc.weight"], told["slope"] * raw["weight"], rtol=1e-5)
    assert torch.allclose(state["fc.bias"], told["slope"] * raw["bias"] + told["bias"], atol=1e-6)
    for condition in ("clean", "degraded"):
        assert told[condition]["calibrated"]["nll"] < told[condition]["raw"]["nll"] + 0.02
    other = train(*words, "calibration.prior=0.8", name="most")
    for one, two in zip(answers_of(run, drawn), answers_of(other, drawn)):
        odds = [calibration.log_odds(float(row["p_male"])) for row in (one, two)]
        assert odds[1] - odds[0] == pytest.approx(math.log(4), abs=1e-4)


def test_the_prior_of_train_is_its_share_of_men(train: Run) -> None:
    run = train("calibration=platt", "calibration.prior=train", "trainer.max_epochs=1", "data.holdout=0")
    assert json.loads((run / "metrics.json").read_text())["calibration"]["prior"] == pytest.approx(32 / 48)


def test_the_same_seed_calibrates_the_same(train: Run) -> None:
    words = ("calibration=platt", "trainer.max_epochs=1")
    runs = [train(*words, f"data.num_workers={n}", f"features.dir=store{n}", name=str(n)) for n in (0, 2)]
    one, two = (json.loads((run / "metrics.json").read_text())["calibration"] for run in runs)
    assert one == two


def test_nobody_is_asked_of_a_head_that_was_trained_on_them(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a large train a part is asked, of fewer heads."""
    make, asked = folds.FaceDataModule.make_sampler, folds.logits_of
    kept: list[set[str]] = []
    seen: list[int] = []
    everybody: list[Face] = []

    def spy(self: folds.FaceDataModule, chosen: np.ndarray, seed: int) -> object:
        everybody[:] = self.faces.splits["train"]
        kept.append({face.identity for face, it in zip(everybody, chosen) if it})
        sampler = make(self, chosen, seed)
        assert len(list(sampler)) == len(everybody)  # as many draws as the final head's
        return sampler

    def ask(head: object, store: object, places: np.ndarray) -> torch.Tensor:
        seen.append(len(places))
        return asked(head, store, places)  # type: ignore[arg-type]

    monkeypatch.setattr(folds.FaceDataModule, "make_sampler", spy)
    monkeypatch.setattr(folds, "logits_of", ask)
    words = ("calibration=platt", "trainer.max_epochs=1", "data.holdout=0")
    train(*words)
    whole, *parts = kept
    assert len(parts) == 5
    left_out = [whole - part for part in parts]
    assert set.union(*left_out) == whole
    assert sum(map(len, left_out)) == len(whole)  # each person once
    assert sum(seen) == 2 * len(everybody)

    kept.clear(), seen.clear()
    monkeypatch.setattr(folds, "MOST_PICTURES", 28)
    train(*words, name="large")
    whole, *parts = kept
    assert 1 < len(parts) < 5
    left_out = [whole - part for part in parts]
    assert sum(map(len, left_out)) == len(set.union(*left_out)) < len(whole)
    assert sum(seen) == 2 * sum(face.identity in set.union(*left_out) for face in everybody)


def test_interrupted_while_it_calibrates_it_goes_on_from_the_last_epoch(
    train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("calibration=platt", "trainer.max_epochs=2")
    whole = train(*words, name="whole")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folds, "logits_of", interrupt)
        with pytest.raises(SystemExit):
            train(*words, name="cut")
    said = capsys.readouterr().out
    assert "stopped after the last epoch" in said
    again = shlex.split(next(line for line in said.splitlines() if line.startswith("python train.py")))
    resumed = train(*again[2:], name="resumed")
    one, two = (torch.load(run / MODEL, weights_only=True) for run in (whole, resumed))
    assert torch.equal(one["fc.weight"], two["fc.weight"])
    assert torch.equal(one["fc.bias"], two["fc.bias"])


def test_a_sweep_keeps_the_raw_heads(train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    train("-m", "seed=1", "calibration=platt", "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    assert json.loads(Path("sweep/0/metrics.json").read_text())["calibration"] is None


def test_balancing_twice_is_said_once_in_logits(train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> list[str]:
        capsys.readouterr()
        train("trainer.max_epochs=1", *words)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: the sampler")]

    (line,) = said("data.holdout=0")
    assert "by +0.69" in line  # log(32 / 16)
    assert "by +0.29" in line  # -log(48 / (2 x 32))
    assert "together 0.98 towards female" in line
    assert said("model.class_weight=false") == said("data.balanced_sampler=false") == said("calibration=platt") == []
    assert len(said("-m", "seed=1,2", "hydra.sweep.dir=sweep")) == 1


def test_sure_and_prior_of_predict(
    trained: Path, drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = answers_of(trained, drawn)
    moved = answers_of(trained, drawn, "prior=0.9")
    for one, two in zip(usual, moved):
        odds = [calibration.log_odds(float(row["p_male"])) for row in (one, two)]
        assert odds[1] - odds[0] == pytest.approx(math.log(9), abs=1e-3)  # of p to six digits
    confidences = [100 * max(p, 1 - p) for p in (float(row["p_male"]) for row in usual)]
    limit = sum(sorted(confidences)[9:11]) / 2
    capsys.readouterr()
    careful = answers_of(trained, drawn, f"sure={limit}")
    lines = capsys.readouterr().out.splitlines()
    unsure = [row["path"] for row in careful if row["label"] == "unsure"]
    assert unsure == [row["path"] for row, confidence in zip(usual, confidences) if confidence < limit]
    assert len(unsure) == 10
    assert [line.split("  ")[0] for line in lines if re.search(r"  unsure  [\d.]+ %$", line)] == unsure
    assert [row["p_male"] for row in careful] == [row["p_male"] for row in usual]


def test_what_predict_refuses(train: Run, trained: Path, drawn: Path, fails: Callable[..., str]) -> None:
    def start(*words: str, model: Path = trained / MODEL) -> None:
        script("predict.py", f"img={drawn / 'val'}", f"model={model}", *words)

    assert "sure=0.9: give a number from 50 to 100" in fails(start, "sure=0.9")
    assert "prior=80%: give a number from 0 to 1" in fails(start, "prior=80%")
    assert "prior=1.0: give a share of men above 0 and below 1" in fails(start, "prior=1")
    raw = train("trainer.max_epochs=1") / MODEL
    assert "needs a calibrated model, and model=" in fails(lambda: start("prior=0.8", model=raw))
    facts = json.loads(raw.with_suffix(".json").read_text())
    for broken in ({"prior": 0.5}, {"prior": 2, "slope": 1, "bias": 0}, "yes"):
        raw.with_suffix(".json").write_text(json.dumps({**facts, "calibration": broken}))
        assert "does not say the model's preprocessing and calibration" in fails(lambda: start(model=raw))
    raw.with_suffix(".json").unlink()
    assert Predictor(raw).calibration is None


def test_what_training_refuses(train: Run, fails: Callable[..., str], in_tmp: Path, drawn: Path) -> None:
    for prior in ("0", "1", "half", "null"):
        line = fails(train, "calibration=platt", f"calibration.prior={prior}")
        assert "give a share of men above 0 and below 1, or train" in line
    line = fails(train, "calibration=platt", "views=0", "data.holdout=0")
    assert "give data.holdout=0.1, or views=8, or calibration=none" in line
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
    few = [row for row in rows if not row.endswith("female,train")] + [row for row in rows if "female,train" in row][:1]
    Path("faces.csv").write_text("\n".join(["path,label,split", *few]))
    line = fails(train, "data=manifest", "data.csv=faces.csv", "data.holdout=0", "calibration=platt")
    assert "calibration needs two people of each class in train, and there are 1 of one" in line


def test_the_recipe_stays_raw_unless_told_otherwise() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert not compose("train", ["experiment=seed"]).calibration
        assert compose("train", ["experiment=seed", "calibration=platt"]).calibration.prior == 0.5
        assert compose("train", ["experiment=robust"]).calibration.prior == 0.5
