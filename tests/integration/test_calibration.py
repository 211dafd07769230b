"""What makes a confidence mean something: the fit, its folding, the error, and the whole way through both scripts."""

import csv
import json
import math
import re
import shlex
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, script
from hydra import compose, initialize_config_dir
from torch import nn
from torchvision.models import resnet18
from tqdm import tqdm

from gender_cls.evaluation import calibration

from gender_cls.training import crossfit as folds
from gender_cls.evaluation.robustness import Predictions
from gender_cls.data.datamodule import DrawSampler
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.evaluation.metrics import auroc
from gender_cls.training.module import GenderModule
from gender_cls.models.network import GenderNet
from gender_cls.inference.predictor import Predictor
from gender_cls.evaluation.reliability import coverage_at, measure_calibration
from gender_cls.data.sources import Face
from gender_cls.transforms.views import REPORTED, CONDITIONS

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
    apart = calibration.figures(torch.tensor([-2.0, -1.0, 1.0, 2.0]), labels, 0.5)
    assert apart["slope"] is apart["intercept"] is None


def test_a_refit_of_a_perfect_model_that_is_nearly_always_right_finds_nothing() -> None:
    labels = np.repeat((0, 1), (105, 317))
    found = []
    for seed in range(40):
        logits = 4.5 * np.random.default_rng(seed).normal(2.25 * (2 * labels - 1))  # AUROC 0.999
        found.append(calibration.figures(torch.from_numpy(logits), labels, 0.5))
    assert np.median([figures["slope"] or np.inf for figures in found]) == pytest.approx(1, abs=0.25)
    assert np.median([figures["intercept"] or 0 for figures in found]) == pytest.approx(0, abs=0.25)


def test_folding_is_the_map_and_leaves_the_ranking() -> None:
    torch.manual_seed(0)
    images, net, plain = torch.rand(16, 3, 32, 32), GenderNet(None).eval(), resnet18(num_classes=1).eval()
    with torch.no_grad():
        raw = net(images)
        calibration.fold(net.head, 0.83, -0.4)
        plain.load_state_dict(net.plain_state())
        folded = plain(images).squeeze(1).sigmoid()
    assert torch.allclose(folded, (0.83 * raw - 0.4).sigmoid(), rtol=0, atol=1e-6)
    assert torch.equal(folded.argsort(), raw.argsort())
    labels = torch.arange(16) % 2
    assert auroc(folded, labels) == auroc(raw.sigmoid(), labels)


def test_the_error_of_cases_done_by_hand() -> None:
    labels = np.array([0, 1])  # a bin for each
    assert calibration.expected_calibration_error(np.array([0.2, 0.7]), labels, 0.5) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert calibration.expected_calibration_error(np.array([0.2, 0.7]), labels, 0.8) == pytest.approx(0.2 * 0.2 + 0.8 * 0.3)
    labels = np.tile((0, 1), 15)  # two images a bin, of which the one is a man
    assert calibration.expected_calibration_error(np.full(30, 0.6), labels, 0.5) == pytest.approx(0.1)
    assert calibration.expected_calibration_error(np.full(30, 0.5), np.sort(labels), 0.5) == pytest.approx(0)  # in any order


def test_the_error_of_a_perfect_model_is_noise_and_a_bias_is_not() -> None:
    found = [calibration.figures(*drawn_logits(105, 317, seed), 0.5) for seed in range(40)]
    assert 0.02 < np.mean([figures["error"] for figures in found]) < 0.06  # though it is perfect
    assert abs(np.mean([figures["ece_debiased"] for figures in found])) < 0.006
    assert np.mean([figures["slope"] for figures in found]) == pytest.approx(1, abs=0.1)
    assert np.mean([figures["intercept"] for figures in found]) == pytest.approx(0, abs=0.1)
    logits, labels = drawn_logits(105, 317)
    for shift in (-1.5, 1.5):
        biased = calibration.figures(logits + shift, labels, 0.5)
        assert biased["ece_debiased"] > 0.05
        assert biased["intercept"] == pytest.approx(-shift, abs=0.4)
    min_confidence = calibration.figures(3 * logits, labels, 0.5)
    assert min_confidence["slope"] == pytest.approx(1 / 3, abs=0.1)
    assert min_confidence["ece_debiased"] > 0.04


def test_the_noise_floor_of_a_model_that_favours_one_class_is_no_excuse() -> None:
    labels = np.repeat((0, 1), (105, 317))
    always = calibration.figures(torch.full((422,), 3.0).double() + drawn_logits(105, 317)[0] / 100, labels, 0.5)
    assert always["error"] == pytest.approx(0.45, abs=0.03)  # says 95 % male of everybody
    assert (always["ece_debiased"] or 0) > 0.4


def test_another_prior_is_another_weight() -> None:
    logits, labels = drawn_logits(20_000, 20_000)
    moved = logits + calibration.log_odds(0.8)
    assert abs(calibration.figures(moved, labels, 0.8)["ece_debiased"]) < 0.01
    assert calibration.figures(moved, labels, 0.5)["ece_debiased"] > 0.05
    weights = calibration.class_weights(np.array([0, 0, 0, 1]), 0.8)
    assert weights.tolist() == pytest.approx([0.2 / 3] * 3 + [0.8])


def test_coverage_by_hand() -> None:
    logits, labels = torch.tensor([4.0, -3.0, 2.0, -1.0]), np.array([1, 0, 0, 1])  # the surest two are right
    covered, wrong, confidence = curve = calibration.coverage(logits, labels, 0.5)
    assert covered.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert wrong.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert confidence.tolist() == pytest.approx(logits.double().abs().sigmoid().tolist())
    found = coverage_at(*curve, 0.01)
    assert (found["coverage"], found["confidence"]) == (0.5, pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6))
    wrong_way = calibration.coverage(-logits, labels, 0.5)
    assert coverage_at(*wrong_way, 0.05) == {"error": 0.05, "coverage": 0.0, "confidence": None}
    tied = calibration.coverage(torch.tensor([2.0, 2.0, -2.0, 1.0]), np.array([1, 0, 0, 1]), 0.5)
    assert tied[0].tolist() == [0.75, 1]  # all of one confidence or none


def test_what_a_report_says_before_and_after() -> None:
    logits, labels = drawn_logits(100, 300)
    identities = [Face(f"{n}.jpg", int(label), f"p{n // 2}", "", f"{n}") for n, label in enumerate(labels)]
    every = Predictions(identities, logits.expand(len(CONDITIONS), -1))
    found = measure_calibration(every, {"prior": 0.5, "slope": 0.5, "bias": 1.0})
    assert found
    assert found["model"]["clean"]["slope"] == pytest.approx(1, abs=0.2)
    assert found["raw"]["clean"]["slope"] == pytest.approx(0.5 * found["model"]["clean"]["slope"], rel=1e-3)
    assert found["raw"]["clean"]["ece_debiased"] > 0.05 > found["model"]["clean"]["ece_debiased"]
    assert list(found["coverage"]) == list(REPORTED)
    rows = found["bins"]["foggy"]
    assert len(rows) == 15
    assert sum(row["low"] <= row["share"] <= row["high"] for row in rows) >= 13  # a perfect model
    assert all(row["low"] <= row["p_male"] <= row["high"] for row in rows)
    off = measure_calibration(Predictions(identities, (logits + 2).expand(len(CONDITIONS), -1)), None)
    assert off
    assert sum(row["low"] <= row["share"] <= row["high"] for row in off["bins"]["foggy"]) < 8
    assert measure_calibration(every.of(labels == 1), None) is None


def test_pictures_of_a_person_are_lucky_together() -> None:
    logits, labels = (values.repeat(5) for values in map(np.asarray, drawn_logits(40, 120)))
    every = torch.from_numpy(logits).expand(len(CONDITIONS), -1)

    def width(images: int) -> float:
        faces = [Face(f"{n}", int(label), f"p{n // images}") for n, label in enumerate(labels)]
        found = measure_calibration(Predictions(faces, every), None)
        assert found
        return sum(row["high"] - row["low"] for row in found["bins"]["clean"])

    assert width(5) > 1.4 * width(1)


def predictions_of(run: Path, drawn: Path, *arguments: str) -> list[dict[str, str]]:
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={drawn / 'val'}", f"model={run / MODEL}", "out=said.csv", *arguments)
    with open("said.csv", newline="") as file:
        return list(csv.DictReader(file))


def raw_head(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("network.head."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("how", [("data.holdout=0",), ("views=0", "data.holdout=0.2")])
def test_a_run_folds_what_it_says(
    how: tuple[str, ...], train: Run, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("calibration=platt", "trainer.max_epochs=2", "model.optimizer.lr=0.01", *how)
    run = train(*arguments, name="half")
    told = json.loads((run / MODEL).with_suffix(".json").read_text())["calibration"]
    assert told == json.loads((run / "metrics.json").read_text())["calibration"]
    assert told["split"] == ("dev" if "views=0" in how else "train")
    assert "calibration" in capsys.readouterr().out
    state, raw = torch.load(run / MODEL, weights_only=True), raw_head(run)
    assert torch.allclose(state["fc.weight"], told["slope"] * raw["weight"], rtol=1e-5)
    assert torch.allclose(state["fc.bias"], told["slope"] * raw["bias"] + told["bias"], atol=1e-6)
    nll = {
        what: sum(told[condition][what]["nll"] for condition in ("clean", "corrupted")) for what in ("raw", "calibrated")
    }
    assert nll["calibrated"] <= nll["raw"] + 1e-3
    other = train(*arguments, "calibration.prior=0.8", name="most")
    for one, two in zip(predictions_of(run, drawn), predictions_of(other, drawn)):
        odds = [calibration.log_odds(float(row["p_male"])) for row in (one, two)]
        assert odds[1] - odds[0] == pytest.approx(math.log(4), abs=1e-4)


def test_the_prior_of_train_is_its_share_of_men(train: Run) -> None:
    run = train("calibration=platt", "calibration.prior=train", "trainer.max_epochs=1", "data.holdout=0")
    assert json.loads((run / "metrics.json").read_text())["calibration"]["prior"] == pytest.approx(32 / 48)


def test_the_same_seed_calibrates_the_same(train: Run) -> None:
    arguments = ("calibration=platt", "trainer.max_epochs=1")
    runs = [train(*arguments, f"data.num_workers={n}", f"features.dir=store{n}", name=str(n)) for n in (0, 2)]
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
    arguments = ("calibration=platt", "trainer.max_epochs=1", "data.holdout=0")
    train(*arguments)
    whole, *parts = kept
    assert len(parts) == 5
    left_out = [whole - part for part in parts]
    assert set.union(*left_out) == whole
    assert sum(map(len, left_out)) == len(whole)  # each person once
    assert sum(seen) == 2 * len(everybody)

    kept.clear(), seen.clear()
    monkeypatch.setattr(folds, "MOST_PICTURES", 28)
    train(*arguments, name="large")
    whole, *parts = kept
    assert 1 < len(parts) < 5
    left_out = [whole - part for part in parts]
    assert sum(map(len, left_out)) == len(set.union(*left_out)) < len(whole)
    assert sum(seen) == 2 * sum(face.identity in set.union(*left_out) for face in everybody)


def test_interrupted_while_it_calibrates_it_goes_on_from_the_last_epoch(
    train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("calibration=platt", "trainer.max_epochs=2")
    whole = train(*arguments, name="whole")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folds, "logits_of", interrupt)
        with pytest.raises(SystemExit):
            train(*arguments, name="cut")
    said = capsys.readouterr().out
    assert "stopped after the last epoch" in said
    again = shlex.split(next(line for line in said.splitlines() if line.startswith("python train.py")))
    resumed = train(*again[2:], name="resumed")
    one, two = (torch.load(run / MODEL, weights_only=True) for run in (whole, resumed))
    assert torch.equal(one["fc.weight"], two["fc.weight"])
    assert torch.equal(one["fc.bias"], two["fc.bias"])


@pytest.mark.parametrize("views", [0, 2])
def test_a_sweep_keeps_the_raw_heads_and_its_best_job_again_is_calibrated(
    views: int, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    train("-m", "seed=1", "calibration=platt", "trainer.max_epochs=1", f"views={views}", "hydra.sweep.dir=sweep")
    assert json.loads(Path("sweep/0/metrics.json").read_text())["calibration"] is None
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python train.py")]
    best = train(*shlex.split(again[-1])[2:], name="best")
    assert json.loads((best / "metrics.json").read_text())["calibration"]["slope"] > 0


def test_a_head_of_a_fold_is_trained_as_lightning_trains(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody left out, from the same start and in the same order, it is the final head, bit for bit."""
    kept: dict[str, nn.Linear] = {}

    def start(self: GenderModule) -> None:
        kept["start"] = deepcopy(self.network.head)

    def end(self: GenderModule) -> None:
        kept["final"], kept["again"] = self.network.head, deepcopy(kept["start"])
        data: Any = self.trainer.datamodule
        sampler = data.make_sampler(np.ones(len(data.images["train"]), dtype=bool), data.sampler.seed)
        folds.train_head(kept["again"], data, sampler, self, self.trainer.global_step, tqdm(disable=True))

    monkeypatch.setattr(GenderModule, "on_fit_start", start)
    monkeypatch.setattr(GenderModule, "on_fit_end", end)
    schedule = "{_target_: torch.optim.lr_scheduler.CosineAnnealingLR, _partial_: true, T_max: 3}"
    train("trainer.max_epochs=3", "model.optimizer.lr=0.05", f"model.scheduler={schedule}", "views=3")
    assert not torch.equal(kept["start"].weight, kept["final"].weight)
    assert torch.equal(kept["again"].weight, kept["final"].weight)
    assert torch.equal(kept["again"].bias, kept["final"].bias)


def test_each_picture_is_asked_of_its_own_fold_clean_and_degraded(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def mark(head: nn.Linear, data: object, sampler: DrawSampler, *_: object) -> None:
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, sampler.seed)

    found = []

    def keep(held_out: folds.HeldOut, module: GenderModule, steps: int, prior: float) -> None:
        held_out.find()
        found.append((held_out, held_out.logits(module, steps)))

    monkeypatch.setattr(folds, "train_head", mark)
    monkeypatch.setattr(
        folds, "derive_seed", lambda kind, *parts: parts[-1] if kind == "fold" else int(parts[0][:6], 16)
    )
    monkeypatch.setattr(
        folds.FaceDataModule, "make_sampler", lambda self, kept, seed: DrawSampler(kept.astype(float), seed)
    )
    monkeypatch.setattr("gender_cls.training.crossfit.calibrate", keep)
    train("calibration=platt", "trainer.max_epochs=1", "data.holdout=0", "views=1")
    held_out, logits = found[0]
    assert torch.equal(logits, torch.from_numpy(held_out.folds).float().expand(2, -1))
    digests = np.array([face.digest.encode() for face in held_out.faces])
    middle = [CONDITIONS.index((name, 3)) for name in CORRUPTIONS]
    places = np.array([held_out.store.find(digests, column) for column in middle])
    assert (held_out.places[0] == held_out.store.find(digests, 0)).all()
    assert (held_out.places[1] == places).any(0).all()
    assert len({int(np.flatnonzero(row)[0]) for row in (held_out.places[1] == places).T}) > 3  # of many kinds


def test_balancing_twice_is_said_once_in_logits(train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> list[str]:
        capsys.readouterr()
        train("trainer.max_epochs=1", *arguments)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: the sampler")]

    (line,) = said("data.holdout=0")
    assert "sampler moves the logit by -0.69" in line  # -log(32 / 16)
    assert "class weight by -0.29" in line  # log(48 / (2 x 32))
    assert "0.98 towards female, so that an even chance is called female with 73%" in line
    assert said("model.class_weight=false") == said("data.balanced_sampler=false") == said("calibration=platt") == []
    assert len(said("-m", "seed=1,2", "hydra.sweep.dir=sweep")) == 1


def test_sure_and_prior_of_predict(
    trained: Path, drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = predictions_of(trained, drawn)
    moved = predictions_of(trained, drawn, "prior=0.9")
    for one, two in zip(usual, moved):
        odds = [calibration.log_odds(float(row["p_male"])) for row in (one, two)]
        assert odds[1] - odds[0] == pytest.approx(math.log(9), abs=1e-3)  # of p to six digits
    confidences = [100 * max(p, 1 - p) for p in (float(row["p_male"]) for row in usual)]
    limit = sum(sorted(confidences)[9:11]) / 2
    capsys.readouterr()
    careful = predictions_of(trained, drawn, f"sure={limit}")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={drawn / 'val'}", f"model={trained / MODEL}", f"sure={limit}")
    lines = capsys.readouterr().out.splitlines()
    unsure = [row["path"] for row in careful if row["label"] == "unsure"]
    assert unsure == [row["path"] for row, confidence in zip(usual, confidences) if confidence < limit]
    assert len(unsure) == 10
    assert [line.split("  ")[0] for line in lines if re.search(r"  unsure  \((fe)?male [\d.]+ %\)$", line)] == unsure
    assert [row["p_male"] for row in careful] == [row["p_male"] for row in usual]


def test_what_predict_refuses(train: Run, trained: Path, drawn: Path, fails: Callable[..., str]) -> None:
    def start(*arguments: str, model: Path = trained / MODEL) -> None:
        script("predict.py", f"img={drawn / 'val'}", f"model={model}", *arguments)

    assert "sure=0.9: give % from 50 to 100" in fails(start, "sure=0.9")
    assert "prior=80% is no number" in fails(start, "prior=80%")
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
    for prior in ("0", "1", "half"):
        line = fails(train, "calibration=platt", f"calibration.prior={prior}")
        assert "give a share of men above 0 and below 1, or train" in line
    line = fails(train, "calibration=platt", "+trainer.gradient_clip_val=1")
    assert "trainer.gradient_clip_val: calibration trains its heads without" in line
    line = fails(train, "calibration=platt", "views=0", "data.holdout=0")
    assert "give data.holdout=0.1, or views=8 with a frozen backbone, or calibration=none" in line
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
    few = [row for row in rows if not row.endswith("female,train")] + [row for row in rows if "female,train" in row][:1]
    Path("faces.csv").write_text("\n".join(["path,label,split", *few]))
    line = fails(train, "data=manifest", "data.csv=faces.csv", "data.holdout=0", "calibration=platt")
    assert "calibration needs 2 female people in train or more, and there are 1" in line


def test_the_recipe_stays_raw_unless_told_otherwise() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", ["experiment=seed"]).calibration.prior is None
        assert compose("train", ["experiment=seed", "calibration=platt"]).calibration.prior == 0.5
        assert compose("train", ["experiment=robust"]).calibration.prior == 0.5
