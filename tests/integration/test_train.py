"""train.py as it is used: what a run leaves and says, that it repeats, resumes and sweeps."""

import csv
import json
import math
import random
import re
import shlex
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import ROOT, Fails, Run, script
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchvision.models import resnet18

from gender_cls.data.sampler import DrawSampler
from gender_cls.data.sources import folder
from gender_cls.data.validation import check
from gender_cls.training import crossfit, module
from gender_cls.training.compose import Run as Job
from gender_cls.training.run import evaluate
from gender_cls.transforms.augmentation import Augmentation
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import TrainingViews

PATTERN = r"^(.+)_\d{4}$"


def head(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "Binary_Classification_model.pth", weights_only=True)
    return {name: state[name] for name in ("fc.weight", "fc.bias")}


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(head(one).values(), head(other).values()))


def test_a_run_leaves_everything(trained: Path) -> None:
    left = {path.name for path in trained.iterdir() if not path.name.startswith("events")}
    assert left >= {"metrics.json", "last.ckpt", "Binary_Classification_model.pth", "Binary_Classification_model.json"}
    assert (trained / ".hydra" / "config.yaml").exists()
    assert not list(trained.rglob("*.part*"))
    assert (trained / "last.ckpt").stat().st_size < 1e5  # the frozen backbone is not in it
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["objective"] == {"name": "dev/f1_macro", "value": metrics["dev"]["f1_macro"]}
    assert metrics["val"]["images"] == 28
    low, high = metrics["val"]["f1_macro_ci95"]
    assert 0 <= low <= metrics["val"]["f1_macro"] <= high <= 1
    facts = json.loads((trained / "Binary_Classification_model.json").read_text())
    assert facts["classes"] == ["female", "male"]
    assert facts["preprocessing"]["size"] == 32
    assert re.fullmatch("[0-9a-f]{16}", facts["weights"]["hash"])
    assert facts["data"]["fingerprint"] == metrics["data"]["fingerprint"]
    assert torch.__version__.startswith(facts["versions"]["torch"])


def test_a_run_says_what_a_person_wants_to_know(trained: Path) -> None:
    said = (trained.parent.parent / "stdout.txt").read_text()
    assert "female = 0, male = 1" in said
    assert re.search(r"val +female +12 ", said)
    assert re.search(
        r"macro-F1 [\d.]+, 95 % interval [\d.]+ to [\d.]+ \(2000 bootstrap samples of \d+ identities\)", said
    )
    assert f"python {ROOT}/predict.py model=" in said
    warned = (trained.parent.parent / "stderr.txt").read_text()
    assert warned == ""
    assert "train/loss_step=" in said  # the progress bar
    assert "val/f1_macro=" in said


def test_tensorboard_has_every_metric_and_plot(trained: Path) -> None:
    events = EventAccumulator(str(trained), size_guidance={"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    for split in ("dev", "val"):
        assert scalars >= {f"{split}/{n}" for n in ("loss", "f1_macro", "f1_female", "f1_male", "accuracy")}
        assert scalars >= {f"{split}/{n}_{c}" for n in ("precision", "recall") for c in ("female", "male")}
        assert f"final/{split}_f1_macro" in scalars
    assert scalars >= {"train/loss", "train/loss_step", "lr-Adam"}
    assert len(events.Scalars("val/f1_macro")) == 2  # one an epoch
    assert set(events.Tags()["images"]) == {"train/views", "dev/confusion", "val/confusion"}
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize("views", [0, 2])
def test_same_seed_same_head_whatever_the_workers(views: int, train: Run) -> None:
    arguments = ("trainer.max_epochs=2", "data.holdout=0", f"cached_views={views}")
    runs = [train(*arguments, f"data.num_workers={n}", f"features.dir=store{n}", name=str(n)) for n in (0, 1, 2)]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    assert not same(runs[0], train(*arguments, "seed=1", name="seed"))


AVERAGE = "+callbacks.average={_target_: gender_cls.training.ema.WeightAverage, decay: 0.9}"
ONE_CYCLE = ("model/scheduler=one_cycle", "model.scheduler.scheduler.pct_start=0.3")


@pytest.mark.parametrize(
    "how",
    [
        ["cached_views=0", "model/scheduler=cosine"],
        ["cached_views=4", "model/scheduler=cosine"],
        pytest.param(["cached_views=4", "model/scheduler=plateau"], marks=pytest.mark.slow),
        pytest.param(["model.trainable=layer4", *ONE_CYCLE, AVERAGE, "model.backbone_lr=1e-3"], marks=pytest.mark.slow),
    ],
)
def test_interrupted_in_an_epoch_and_resumed_is_uninterrupted(
    how: list[str], train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("trainer.max_epochs=3", "data.holdout=0.2", "model.optimizer.lr=0.01", "data.num_workers=1", *how)
    whole = train(*arguments, name="whole")
    step = module.GenderModule.training_step

    def interrupt(self: module.GenderModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        if (self.current_epoch, batch_idx) == (1, 3):
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(module.GenderModule, "training_step", interrupt)
        with pytest.raises(SystemExit):
            train(*arguments, name="cut")
    said = capsys.readouterr().out
    command = next(line for line in said.splitlines() if line.startswith("python train.py"))
    last = shlex.split(command)[-1].removeprefix("ckpt_path=")
    assert last == "runs/cut/last.ckpt"
    assert not (Path("runs/cut") / "Binary_Classification_model.pth").exists()
    resumed = train(*arguments, f"ckpt_path={last}", name="resumed")
    states = [torch.load(run / "Binary_Classification_model.pth", weights_only=True) for run in (whole, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_interrupted_in_the_first_epoch_says_that_nothing_is_left(
    train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.GenderModule, "training_step", interrupt)
    with pytest.raises(SystemExit):
        train()
    assert "stopped in epoch 1; no checkpoint is saved yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "how", [("cached_views=0",), ("cached_views=20", "features.precision=fp32", "features.dtype=float32")]
)
def test_a_plain_loop_finds_the_same_head(how: tuple[str, ...], train: Run, drawn: Path, backbone_file: Path) -> None:
    """The recipe as people write it, on the project's order and views, computed online or stored."""
    epochs = 3
    run = train(
        "experiment=baseline", f"data.root={drawn}", f"model.weights={backbone_file}", f"trainer.max_epochs={epochs}",
        "model.optimizer.lr=0.003", *how,
    )  # fmt: skip
    faces = check(folder(drawn), PATTERN).splits["train"]
    labels = torch.tensor([float(face.label) for face in faces])
    counts = torch.bincount(labels.long())
    preprocessing = Preprocessing(size=32)
    views_of = TrainingViews(preprocessing, Augmentation(flip=0.5, jitter=(0.2, 0.2, 0.2), blur=3))

    torch.manual_seed(0)
    net = resnet18(weights=None)
    net.load_state_dict(torch.load(backbone_file, weights_only=True))
    net.requires_grad_(False).eval()
    net.fc = nn.Linear(512, 1)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=len(faces) / (2 * counts[1]))
    optimizer = torch.optim.Adam(net.fc.parameters(), lr=0.003)
    most = 0
    order = DrawSampler([1 / counts[face.label].item() for face in faces], seed=0)
    for epoch in range(epochs):
        order.set_epoch(epoch)
        keys = list(order)
        most = max(most, 1 + max(draw for _, draw in keys))
        for first in range(0, len(keys), 8):
            batch = keys[first : first + 8]
            views = [views_of(Decoder().load(faces[i].path), faces[i].digest, [draw]) for i, draw in batch]
            loss = loss_of(net(preprocessing.normalize(torch.cat(views))).squeeze(1), labels[[i for i, _ in batch]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert most <= 20  # as many views as are stored, at most
    for name, value in head(run).items():
        assert torch.allclose(net.state_dict()[name], value, rtol=0, atol=1e-5 if "cached_views=0" in how else 1e-4)


def test_the_backbone_is_bit_equal_after_a_fit(
    train: Run, backbone_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm statistics included, also when someone calls train() in the middle of it."""
    step = module.GenderModule.training_step

    def meddle(self: module.GenderModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        self.train()
        self.network.backbone.requires_grad_(True)  # not even so: the features are computed without a gradient
        return step(self, batch, batch_idx)

    monkeypatch.setattr(module.GenderModule, "training_step", meddle)
    run = train(f"model.weights={backbone_file}", "trainer.max_epochs=2", "cached_views=0")
    before = torch.load(backbone_file, weights_only=True)
    after = torch.load(run / "Binary_Classification_model.pth", weights_only=True)
    assert set(before) == set(after)
    for name, tensor in after.items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, before[name].to(tensor.dtype)), name


class Returned(Callback):
    """Keeps what each job returned to Hydra."""

    values: ClassVar[list[object]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        self.values.append(job_return.return_value)


@pytest.mark.parametrize(("holdout", "split"), [(0.2, "dev"), (0, "val")])
def test_hydra_gets_the_score_of_dev_or_without_it_of_val(holdout: float, split: str, train: Run) -> None:
    probe = "+hydra.callbacks.probe._target_=test_train.Returned"
    run = train("trainer.max_epochs=1", f"data.holdout={holdout}", probe)
    assert Returned.values[-1] == json.loads((run / "metrics.json").read_text())[split]["f1_macro"]


def test_a_sweep_ends_with_one_table(train: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("trainer.max_epochs=2", "data.holdout=0.2", "features.dir=store", "hydra.sweep.dir=sweep")
    with pytest.raises(SystemExit, match="1 of 3 jobs failed"):
        train("-m", "model.optimizer.lr=1e-3,oops,1e-1", *arguments)
    with open("sweep/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[0]["score"]) >= float(rows[1]["score"])
    assert {row["ranked by"] for row in rows[:2]} == {"dev/f1_macro"}
    assert "model.optimizer.lr=oops" in rows[2]["overrides"]
    assert rows[2]["error"]
    assert rows[2]["score"] == ""
    said = capsys.readouterr().out
    assert said.count("data fingerprint") == 1
    assert "sweep/sweep.csv" in said
    assert not list(Path("sweep").glob("*.part*"))
    assert said.count("computing ") == 2  # training and evaluation views; the other jobs read what the first has stored
    left = {path.name for path in Path("sweep/0").iterdir() if not path.name.startswith("events")}
    assert left <= {"metrics.json", "train.log", "hparams.yaml", ".hydra"}
    assert sum(path.stat().st_size for path in Path("sweep/0").rglob("*")) < 1e6
    again = shlex.split(next(line for line in said.splitlines() if line.startswith("python train.py")))
    best = train(*again[2:], name="best")  # what the table says can be had again, with a model
    assert json.loads((best / "metrics.json").read_text())["dev"]["f1_macro"] == float(rows[0]["score"])
    assert (best / "Binary_Classification_model.pth").exists()


def test_rows_of_a_sweep_are_written_as_jobs_end(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step = module.GenderModule.training_step

    def interrupt(self: module.GenderModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        if Path("sweep/sweep.csv").exists():
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(module.GenderModule, "training_step", interrupt)
    with pytest.raises(SystemExit):
        train("-m", "seed=1,2", "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    with open("sweep/sweep.csv", newline="") as file:
        assert [row["job"] for row in csv.DictReader(file)] == ["0"]


def test_a_bug_is_shown_whole(train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("gender_cls.training.run.evaluate", break_down)
    with pytest.raises(SystemExit) as stop:
        train("trainer.max_epochs=1")
    assert stop.value.code == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "in break_down" in shown  # where it was raised
    assert "RuntimeError: no such luck" in shown
    assert "error: " not in shown  # which is what a user can mend


def test_a_bug_in_a_job_is_shown_whole_and_the_sweep_goes_on(
    train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(job: Job) -> dict[str, dict[str, Any]]:
        if job.cfg.seed == 1:
            raise RuntimeError("no such\nluck")
        return evaluate(job)

    monkeypatch.setattr("gender_cls.training.run.evaluate", break_down)
    with pytest.raises(SystemExit, match="1 of 2 jobs failed"):
        train("-m", "seed=1,2", "trainer.max_epochs=1", "hydra.sweep.dir=sweep")
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "in break_down" in shown
    with open("sweep/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["error"]) for row in rows] == [("1", ""), ("0", "RuntimeError: no such luck")]
    assert float(rows[0]["score"]) == json.loads(Path("sweep/1/metrics.json").read_text())["objective"]["value"]


def config_groups() -> dict[str, list[str]]:
    """Choices of each group, found as files; a group without a default may be left out."""
    files = sorted((ROOT / "conf").glob("*/**/*.yaml"))
    groups: dict[str, list[str]] = {}
    for file in files:
        group = file.parent.relative_to(ROOT / "conf").as_posix()
        if not file.stem.startswith("_"):
            groups.setdefault(group, []).append(f"{group}={file.stem}")
    for group in ("experiment", "debug", "hparams_search"):
        groups[group].append(f"{group}=null")
    return groups


NEEDED = {  # packages that are not among those of `dev`
    "logger=wandb": "wandb",
    "logger=mlflow": "mlflow",
    "callbacks=rich_progress_bar": "rich",
    "hparams_search=optuna": "hydra_plugins.hydra_optuna_sweeper",
}


def lacks(choice: str) -> bool:
    try:
        return choice in NEEDED and not find_spec(NEEDED[choice])
    except ModuleNotFoundError:  # not even its parent
        return True


def pairs(choices: list[str]) -> set[frozenset[str]]:
    return set(map(frozenset, combinations(choices, 2)))


def covering() -> list[list[str]]:
    """Combinations, one choice from each group, such that any two choices of two groups meet in one of them."""
    composable = [[choice for choice in of_group if choice != "hparams_search=optuna"] for of_group in
                  config_groups().values()]  # fmt: skip
    left = pairs([choice for of_group in composable for choice in of_group])
    left -= set().union(*map(pairs, composable))
    generator, rows = random.Random(0), []
    while left:
        candidates = [[generator.choice(of_group) for of_group in composable] for _ in range(50)]
        rows.append(max(candidates, key=lambda row: len(left & pairs(row))))
        left -= pairs(rows[-1])
    return rows


@pytest.mark.slow
def test_any_two_choices_compose() -> None:
    groups = config_groups()
    assert groups.keys() >= {"model", "model/optimizer", "model/scheduler", "data", "logger", "callbacks", "debug"}
    rows = covering()
    every = {choice for of_group in groups.values() for choice in of_group}
    assert {choice for row in rows for choice in row} == every - {"hparams_search=optuna"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for row in rows:
            chosen = [choice for choice in row if not choice.endswith("=null")]
            cfg = compose("train", [*chosen, *(["data.csv=faces.csv"] if "data=manifest" in row else [])])
            whole = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
            assert isinstance(whole, dict)
            assert whole["model"]["optimizer"]["lr"] > 0


@pytest.mark.skipif(lacks("hparams_search=optuna"), reason="the extra optuna is not installed")
def test_the_search_by_optuna_composes() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["hparams_search=optuna"], return_hydra_config=True)
    assert cfg.hydra.sweeper.direction == "maximize"
    assert cfg.data.holdout == 0.1


TOGETHER = {
    "calibration",
    "callbacks",
    "corruption",
    "logger",
    "model",
    "model/optimizer",
    "model/scheduler",
    "trainer",
}


def runnable() -> list[Any]:
    """Choices of a run: those of `TOGETHER` in as few runs as have each of them once, those of other groups alone."""
    groups = {
        name: [choice for choice in of_group if choice not in NEEDED and not choice.endswith("=null")]
        for name, of_group in config_groups().items()
    }
    number = max(len(groups[name]) for name in TOGETHER)
    runs: list[Any] = [[groups[name][at % len(groups[name])] for name in sorted(TOGETHER)] for at in range(number)]
    slow = {"hparams_search=grid", *groups["experiment"]} - {"experiment=baseline", "experiment=demo"}
    for choice in (choice for name in sorted(groups.keys() - TOGETHER) for choice in groups[name]):
        runs.append(pytest.param([choice], marks=[pytest.mark.slow] if choice in slow else []))
    for choice, package in NEEDED.items():
        runs.append(pytest.param([choice], marks=pytest.mark.skipif(lacks(choice), reason=f"no {package}")))
    return runs


@pytest.mark.parametrize("choices", runnable(), ids=" ".join)
def test_every_config_runs(choices: list[str], train: Run, drawn: Path, in_tmp: Path) -> None:
    overrides = [*choices, "trainer.max_epochs=1"]
    if "data=manifest" in choices:
        lines = [f"{path},{path.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
        Path("faces.csv").write_text("\n".join(["path,label", *lines]))
        overrides.append("data.csv=faces.csv")
    if choices[0] in ("data=demo", "experiment=demo"):
        overrides += ["data.root=drawings", "data.train=[10,20]", "data.val=[4,6]", "data.side=48"]
    if "model/scheduler=one_cycle" in choices:
        overrides.append("model.scheduler.scheduler.pct_start=0.5")  # of six steps
    if choices[0] in ("debug=fast_dev_run", "debug=limit"):
        overrides.append("data.batch_size=32")  # images of both classes in the one batch of val
    if "logger=wandb" in choices:
        overrides.append("logger.wandb.offline=true")
    if "hparams_search=optuna" in choices:
        overrides.append("hydra.sweeper.n_trials=2")
    if choices[0].startswith("hparams_search"):
        overrides.append("hydra.sweep.dir=runs/sweep")
    folder = train(*overrides)
    found = [path for path in folder.parent.glob("**/metrics.json") if path.parent.name != "report"]
    metrics = [json.loads(path.read_text()) for path in found]
    assert len(metrics) == {"hparams_search=grid": 6, "hparams_search=optuna": 2}.get(choices[0], 1)
    assert not any(math.isnan(each["val"]["f1_macro"]) for each in metrics)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("views=8", "cached_views"),
        ("degrade=facecom", "corruption"),
        ("degrade.share=0.5", "corruption"),
        ("experiment=seed", "experiment=baseline"),
        ("data.without=x", "data.report_exclude"),
        ("data.source=x", "data=task_a, manifest or demo"),
        ("model.scheduler={_target_: torch.optim.lr_scheduler.CosineAnnealingLR, T_max: 3}", "model/scheduler=cosine"),
        ("+views=8", "cached_views"),
    ],
)
def test_old_names_of_options_are_refused(old: str, new: str, train: Run, fails: Fails) -> None:
    failure = fails(train, old)
    assert failure.code == "renamed"
    assert old in failure.line
    assert new in failure.line


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/f1_macro"),
            ("EarlyStopping", "monitor=val/f1_macro", "dev/loss"),
        ),
        (
            ("callbacks=early_stopping", "data.holdout=0"),
            ("EarlyStopping", "monitor=dev/f1_macro", "data.holdout=0.1"),
        ),
        (
            ("model/scheduler=plateau", "model.scheduler.monitor=val/loss"),
            ("model.scheduler.monitor=val/loss", "dev/loss"),
        ),
        (("model/scheduler=plateau", "data.holdout=0"), ("model.scheduler.monitor=dev/loss", "data.holdout=0.1")),
    ],
)
def test_nothing_is_chosen_by_val_or_by_a_dev_that_is_not_there(
    overrides: tuple[str, ...], parts: tuple[str, ...], train: Run, fails: Fails
) -> None:
    failure = fails(train, *overrides, "trainer.max_epochs=1")
    assert failure.code == "conflict"
    assert all(part in failure.line for part in parts), failure.line


def test_early_stopping_stops_early_and_the_folds_train_as_long(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train_head = crossfit.train_head
    updates: list[int] = []

    class Counter:
        def update(self) -> None:
            updates[-1] += 1

    def count(head: nn.Linear, data: Any, sampler: DrawSampler, trained: module.GenderModule, bar: object) -> None:
        updates.append(0)
        train_head(head, data, sampler, trained, Counter())

    monkeypatch.setattr(crossfit, "train_head", count)
    folder = train(
        "callbacks=early_stopping", "callbacks.early_stopping.patience=2", "calibration=platt", "trainer.max_epochs=50",
        "data.holdout=0.2", "model.optimizer.lr=1e-9",
    )  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["fit"]["epochs"] == 3  # the first, and two that are no better
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert len(updates) == 5
    assert set(updates) == {checkpoint["global_step"]} == {sum(steps for steps, _ in checkpoint["steps"])}
    assert metrics["calibration"]["slope"] > 0


def test_the_csv_logger_keeps_every_scalar(train: Run) -> None:
    folder = train("logger=csv", "trainer.max_epochs=2", "data.holdout=0.2")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    metrics = json.loads((folder / "metrics.json").read_text())
    for split in ("dev", "val"):
        names = ["loss", "f1_macro", "f1_female", "f1_male", "accuracy"]
        names += [f"{name}_{label}" for name in ("precision", "recall") for label in ("female", "male")]
        for name in names:
            assert len(kept[f"{split}/{name}"]) == 2  # one an epoch
        for name in ("f1_macro", "f1_female", "f1_male", "accuracy"):
            assert kept[f"final/{split}_{name}"] == [pytest.approx(metrics[split][name])]
    assert [len(kept[name]) for name in ("train/loss", "train/loss_step", "lr-Adam")] == [2, 1, 2]
    assert set(kept["lr-Adam"]) == {1e-4}
    assert (folder / "hparams.yaml").exists()


@pytest.mark.parametrize("choice", ["logger=wandb", "logger=mlflow", "callbacks=rich_progress_bar"])
def test_a_package_that_is_missing(choice: str, train: Run, fails: Fails) -> None:
    if not lacks(choice):
        pytest.skip(f"{NEEDED[choice]} is installed")
    failure = fails(train, choice, "trainer.max_epochs=1")
    assert failure.code == "missing-package"
    assert choice.replace("=", ".").split(".")[0] in failure.line
    assert re.search(rf"pip install .*{NEEDED[choice]}", failure.line)


@pytest.mark.skipif(not lacks("hparams_search=optuna"), reason="the extra optuna is installed")
def test_the_search_by_optuna_needs_an_extra(train: Run, fails: Fails) -> None:
    failure = fails(train, "hparams_search=optuna")
    assert failure.code == "missing-package"
    assert "hparams_search=optuna" in failure.line
    assert 'pip install -e ".[optuna]"' in failure.line


def test_an_experiment_may_do_otherwise_with_one_model() -> None:
    robust, other = "experiment=robust", "experiment=robust_efficientnet_lite0"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        configs = [compose("train", some) for some in ([robust], [other], [other, "model.optimizer.lr=1"])]
    assert [cfg.model.optimizer.lr for cfg in configs] == [1e-2, 2e-3, 1]
    assert [cfg.model.backbone for cfg in configs] == ["resnet18", "efficientnet_lite0", "efficientnet_lite0"]
    alike = [OmegaConf.to_container(cfg.data, resolve=False) for cfg in configs[:2]]
    assert alike[0] == alike[1]


def test_the_baseline_experiment_is_the_recipe() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["experiment=baseline"])
    assert cfg.data["_target_"] == "gender_cls.data.datamodule.FolderDataModule"
    assert (cfg.data.root, cfg.data.holdout, cfg.data.batch_size, cfg.data.size) == ("Task_A_Dataset", 0, 32, 224)
    augment = {"scale": None, "size": None, "flip": 0.5, "jitter": [0.2, 0.2, 0.2], "blur": 3}
    augment |= {"frame": None, "landmarks": [0, 0, 0]}
    assert cfg.data.faces == "none"
    assert cfg.data.augment == {"_target_": "gender_cls.transforms.augmentation.Augmentation", **augment}
    assert cfg.data.balanced_sampler
    assert cfg.corruption.share == 0
    assert (cfg.model.backbone, cfg.model.trainable, cfg.model.label_smoothing) == ("resnet18", "head", 0)
    assert (cfg.model.weights, cfg.model.class_weight, cfg.model.scheduler) == ("IMAGENET1K_V1", True, None)
    assert cfg.model.optimizer == {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-4}
    assert (cfg.trainer.max_epochs, cfg.cached_views) == (30, 30)


def test_an_experiment_wins_over_defaults_and_the_command_line_over_it() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train", ["experiment=demo"]).trainer.max_epochs == 8
        assert compose("train", ["experiment=demo", "trainer.max_epochs=3"]).trainer.max_epochs == 3


def test_help_answers_a_newcomer(capsys: pytest.CaptureFixture[str]) -> None:
    script("train.py", "--help")
    said = capsys.readouterr().out
    assert "experiment=demo" in said
    assert 'data.root="my photos (1)"' in said  # how to quote, for the shell alone
    assert "experiment: baseline, demo, finetune, robust, robust_efficientnet_lite0" in said
