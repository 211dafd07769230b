"""Calibration the whole way through both scripts: the identities, the folds, the fit and what is folded."""

import csv
import json
import math
import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Fails, Run, script
from hydra import compose, initialize_config_dir
from torch import nn
from tqdm import tqdm

from gender_cls.data.base import FaceDataModule
from gender_cls.data.sampler import DrawSampler
from gender_cls.data.sources import Face
from gender_cls.evaluation import calibration
from gender_cls.inference.predictor import Predictor
from gender_cls.training import crossfit
from gender_cls.training.module import GenderModule
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.transforms.views import CONDITIONS

MODEL = "Binary_Classification_model.pth"


def predictions_of(run: Path, drawn: Path, *arguments: str) -> list[dict[str, str]]:
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={drawn / 'val'}", f"model={run / MODEL}", "out=table.csv", *arguments)
    with open("table.csv", newline="") as file:
        return list(csv.DictReader(file))


def uncalibrated_head(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("network.head."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("how", [("data.holdout=0",), ("cached_views=0", "data.holdout=0.2")])
def test_a_run_folds_what_it_says(
    how: tuple[str, ...], train: Run, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("calibration=platt", "trainer.max_epochs=2", "model.optimizer.lr=0.01", *how)
    run = train(*arguments, name="half")
    told = json.loads((run / MODEL).with_suffix(".json").read_text())["calibration"]
    assert told == json.loads((run / "metrics.json").read_text())["calibration"]
    assert told["split"] == ("dev" if "cached_views=0" in how else "train")
    assert "calibration" in capsys.readouterr().out
    state, before = torch.load(run / MODEL, weights_only=True), uncalibrated_head(run)
    assert torch.allclose(state["fc.weight"], told["slope"] * before["weight"], rtol=1e-5)
    assert torch.allclose(state["fc.bias"], told["slope"] * before["bias"] + told["bias"], atol=1e-6)
    nll = {
        what: sum(told[condition][what]["nll"] for condition in ("clean", "corrupted"))
        for what in ("uncalibrated", "calibrated")
    }
    assert nll["calibrated"] <= nll["uncalibrated"] + 1e-3
    other = train(*arguments, "calibration.prior=0.8", name="most")
    for one, two in zip(predictions_of(run, drawn), predictions_of(other, drawn)):
        odds = [calibration.log_odds(float(row["p_male"])) for row in (one, two)]
        assert odds[1] - odds[0] == pytest.approx(math.log(4), abs=1e-4)


def test_the_prior_of_train_is_its_share_of_male_images(train: Run) -> None:
    run = train("calibration=platt", "calibration.prior=train", "trainer.max_epochs=1", "data.holdout=0")
    assert json.loads((run / "metrics.json").read_text())["calibration"]["prior"] == pytest.approx(32 / 48)


@pytest.mark.slow
def test_the_same_seed_calibrates_the_same(train: Run) -> None:
    arguments = ("calibration=platt", "trainer.max_epochs=1")
    runs = [train(*arguments, f"data.num_workers={n}", f"features.dir=store{n}", name=str(n)) for n in (0, 2)]
    one, two = (json.loads((run / "metrics.json").read_text())["calibration"] for run in runs)
    assert one == two


def test_no_identity_is_predicted_by_a_head_that_was_trained_on_it(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a large train a part is predicted, by fewer heads."""
    make, logits_of = FaceDataModule.make_sampler, crossfit.logits_of
    kept: list[set[str]] = []
    predicted: list[int] = []
    everything: list[Face] = []

    def spy(self: FaceDataModule, chosen: np.ndarray, seed: int) -> object:
        everything[:] = self.faces.splits["train"]
        kept.append({face.identity for face, it in zip(everything, chosen) if it})
        sampler = make(self, chosen, seed)
        assert len(list(sampler)) == len(everything)  # as many draws as the final head's
        return sampler

    def predict(head: object, store: object, places: np.ndarray) -> torch.Tensor:
        predicted.append(len(places))
        return logits_of(head, store, places)  # type: ignore[arg-type]

    monkeypatch.setattr(FaceDataModule, "make_sampler", spy)
    monkeypatch.setattr(crossfit, "logits_of", predict)
    overrides = ("calibration=platt", "trainer.max_epochs=1", "data.holdout=0")
    train(*overrides)
    whole, *parts = kept
    assert len(parts) == 5
    left_out = [whole - part for part in parts]
    assert set.union(*left_out) == whole
    assert sum(map(len, left_out)) == len(whole)  # each identity once
    assert sum(predicted) == 2 * len(everything)

    kept.clear(), predicted.clear()
    monkeypatch.setattr(crossfit, "MAX_IMAGES", 28)
    train(*overrides, name="large")
    whole, *parts = kept
    assert 1 < len(parts) < 5
    left_out = [whole - part for part in parts]
    assert sum(map(len, left_out)) == len(set.union(*left_out)) < len(whole)
    assert sum(predicted) == 2 * sum(face.identity in set.union(*left_out) for face in everything)


def test_interrupted_while_it_calibrates_it_goes_on_from_the_last_epoch(
    train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("calibration=platt", "trainer.max_epochs=2")
    whole = train(*arguments, name="whole")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crossfit, "logits_of", interrupt)
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
def test_a_sweep_keeps_the_uncalibrated_heads_and_its_best_job_again_is_calibrated(
    views: int, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    train("-m", "seed=1", "calibration=platt", "trainer.max_epochs=1", f"cached_views={views}", "hydra.sweep.dir=sweep")
    assert json.loads(Path("sweep/0/metrics.json").read_text())["calibration"] is None
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python train.py")]
    best = train(*shlex.split(again[-1])[2:], name="best")
    assert json.loads((best / "metrics.json").read_text())["calibration"]["slope"] > 0


ONE_CYCLE = ("model/scheduler=one_cycle", "model.scheduler.scheduler.pct_start=0.3")
PLATEAU = ("model/scheduler=plateau", "model.scheduler.scheduler.patience=0", "data.holdout=0.2")


@pytest.mark.parametrize(
    "how",
    [("model/scheduler=cosine",), (*ONE_CYCLE, "model/optimizer=sgd"), (*PLATEAU, "model/optimizer=adamw")],
)
def test_a_head_of_a_fold_is_trained_as_lightning_trains(
    how: tuple[str, ...], train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no identity left out, from the same start and in the same order, it is the final head, bit for bit."""
    kept: dict[str, nn.Linear] = {}
    rates: set[float] = set()

    def start(self: GenderModule) -> None:
        kept["start"] = deepcopy(self.network.head)

    def end(self: GenderModule) -> None:
        kept["final"], kept["again"] = self.network.head, deepcopy(kept["start"])
        rates.update(values["lr"] for _, values in self.steps)
        data: Any = self.trainer.datamodule
        sampler = data.make_sampler(np.ones(len(data.datasets["train"]), dtype=bool), data.sampler.seed)
        crossfit.train_head(kept["again"], data, sampler, self, tqdm(disable=True))

    monkeypatch.setattr(GenderModule, "on_fit_start", start)
    monkeypatch.setattr(GenderModule, "on_fit_end", end)
    train("trainer.max_epochs=3", "model.optimizer.lr=0.05", "cached_views=3", *how)
    assert len(rates) > 1
    assert not torch.equal(kept["start"].weight, kept["final"].weight)
    assert torch.equal(kept["again"].weight, kept["final"].weight)
    assert torch.equal(kept["again"].bias, kept["final"].bias)


def test_each_image_is_predicted_by_its_own_fold_clean_and_corrupted(
    train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mark(head: nn.Linear, data: object, sampler: DrawSampler, *_: object) -> None:
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, sampler.seed)

    found = []

    def keep(held_out: crossfit.HeldOut, module: GenderModule) -> None:
        held_out.find()
        found.append((held_out, held_out.logits(module)))

    monkeypatch.setattr(crossfit, "train_head", mark)
    monkeypatch.setattr(
        crossfit, "derive_seed", lambda kind, *parts: parts[-1] if kind == "fold" else int(parts[0][:6], 16)
    )
    monkeypatch.setattr(FaceDataModule, "make_sampler", lambda self, kept, seed: DrawSampler(kept.astype(float), seed))
    monkeypatch.setattr("gender_cls.training.run.calibrate", keep)
    train("calibration=platt", "trainer.max_epochs=1", "data.holdout=0", "cached_views=1")
    held_out, logits = found[0]
    assert torch.equal(logits, torch.from_numpy(held_out.folds).float().expand(2, -1))
    digests = np.array([face.digest.encode() for face in held_out.faces])
    middle = [CONDITIONS.index((name, 3)) for name in CORRUPTIONS]
    places = np.array([held_out.store.find(digests, column) for column in middle])
    assert (held_out.places[0] == held_out.store.find(digests, 0)).all()
    assert (held_out.places[1] == places).any(0).all()
    assert len({int(np.flatnonzero(row)[0]) for row in (held_out.places[1] == places).T}) > 3  # of many kinds


@pytest.mark.slow
def test_balancing_twice_is_said_once_in_logits(train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> list[str]:
        capsys.readouterr()
        train("trainer.max_epochs=1", *arguments)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: the sampler")]

    (line,) = said("data.holdout=0")
    assert "sampler moves the logit by -0.69" in line  # -log(32 / 16)
    assert "class weight by -0.29" in line  # log(48 / (2 x 32))
    assert "0.98 towards female, so that an even chance is predicted female with 73%" in line
    assert said("model.class_weight=false") == said("data.balanced_sampler=false") == said("calibration=platt") == []
    assert len(said("-m", "seed=1,2", "hydra.sweep.dir=sweep")) == 1


def test_min_confidence_and_prior_of_predict(
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
    careful = predictions_of(trained, drawn, f"min_confidence={limit}")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={drawn / 'val'}", f"model={trained / MODEL}", f"min_confidence={limit}")
    lines = capsys.readouterr().out.splitlines()
    unsure = [row["path"] for row in careful if row["label"] == "unsure"]
    assert unsure == [row["path"] for row, confidence in zip(usual, confidences) if confidence < limit]
    assert len(unsure) == 10
    assert [line.split("  ")[0] for line in lines if re.search(r"  unsure  \((fe)?male [\d.]+ %\)$", line)] == unsure
    assert [row["p_male"] for row in careful] == [row["p_male"] for row in usual]


def test_what_predict_refuses(train: Run, trained: Path, drawn: Path, fails: Fails) -> None:
    def refused(code: str, *parts: str, model: Path = trained / MODEL, arguments: tuple[str, ...] = ()) -> None:
        failure = fails(script, "predict.py", f"img={drawn / 'val'}", f"model={model}", *arguments)
        assert failure.code == code
        assert all(part in failure.line for part in parts), failure.line

    refused("bad-value", "min_confidence=0.9: give", "from 50 to 100", arguments=("min_confidence=0.9",))
    refused("bad-value", "prior=80% is not a number", arguments=("prior=80%",))
    refused("bad-value", "prior=1.0: give a number above 0 and below 1", arguments=("prior=1",))
    uncalibrated = train("trainer.max_epochs=1") / MODEL
    refused("conflict", "prior=0.8 needs a calibrated model", "model=", model=uncalibrated, arguments=("prior=0.8",))
    facts = json.loads(uncalibrated.with_suffix(".json").read_text())
    for broken in ({"prior": 0.5}, {"prior": 2, "slope": 1, "bias": 0}, "yes"):
        uncalibrated.with_suffix(".json").write_text(json.dumps({**facts, "calibration": broken}))
        name = str(uncalibrated.with_suffix(".json"))
        refused("bad-model", name, "holds no valid preprocessing and calibration", model=uncalibrated)
    uncalibrated.with_suffix(".json").unlink()
    assert Predictor(uncalibrated).calibration is None


def test_what_training_refuses(train: Run, fails: Fails, in_tmp: Path, drawn: Path) -> None:
    for prior in ("0", "1", "half"):
        failure = fails(train, "calibration=platt", f"calibration.prior={prior}")
        assert failure.code == "bad-value"
        assert f"calibration.prior={prior}: give a number above 0 and below 1" in failure.line
        assert "train" in failure.line
    failure = fails(train, "calibration=platt", "+trainer.gradient_clip_val=1")
    assert failure.code == "conflict"
    assert "trainer.gradient_clip_val" in failure.line
    assert "calibration=none" in failure.line
    failure = fails(train, "calibration=platt", "cached_views=0", "data.holdout=0")
    assert failure.code == "conflict"
    assert "give data.holdout=0.1, or cached_views=8 with a frozen backbone, or calibration=none" in failure.line
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
    few = [row for row in rows if not row.endswith("female,train")] + [row for row in rows if "female,train" in row][:1]
    Path("faces.csv").write_text("\n".join(["path,label,split", *few]))
    failure = fails(train, "data=manifest", "data.csv=faces.csv", "data.holdout=0", "calibration=platt")
    assert failure.code == "too-few-identities"
    assert "calibration needs at least 2 female identities in train, 1 found" in failure.line
    assert "calibration=none" in failure.line


def test_the_recipe_stays_uncalibrated_unless_told_otherwise() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", ["experiment=baseline"]).calibration.prior is None
        assert compose("train", ["experiment=baseline", "calibration=platt"]).calibration.prior == 0.5
        assert compose("train", ["experiment=robust"]).calibration.prior == 0.5
