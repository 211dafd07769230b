"""The parts without our run: under a plain `pl.Trainer`, swapped by overrides, from a notebook, from a checkpoint."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Run
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import lr_scheduler

from gender_cls import DemoDataModule, FolderDataModule, GenderModule, ManifestDataModule
from gender_cls.data.datasets import FaceDataset
from gender_cls.errors import UserError
from gender_cls.features.extractor import FeatureOptions
from gender_cls.training import crossfit
from gender_cls.training.config import config_dir
from gender_cls.training.run import train

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}
SMALL: dict[str, Any] = {"size": 32, "batch_size": 8, "num_workers": 0}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*TINY, "model.weights=null", "trainer.enable_progress_bar=false", *overrides])


def head(module: GenderModule) -> torch.Tensor:
    return torch.cat([module.network.head.weight.detach().squeeze(0), module.network.head.bias.detach()]).clone()


@pytest.mark.parametrize("cached_views", [2, 0])
def test_a_plain_trainer_does_what_the_run_does(cached_views: int, drawn: Path, in_tmp: Path) -> None:
    overrides = (f"data.root={drawn}", f"cached_views={cached_views}", "trainer.max_epochs=2", "data.holdout=0.2")
    cfg = composed(*overrides, "calibration=none", "seed=3", "run_dir=ours")
    assert not HydraConfig.initialized()
    metrics = train(cfg)
    data, module = instantiate(cfg.data), instantiate(cfg.model)
    assert isinstance(data, FolderDataModule)
    assert isinstance(module, GenderModule)
    seen = set()

    class Threads(pl.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            seen.add(torch.get_num_threads())

    trainer = pl.Trainer(max_epochs=2, callbacks=[Threads()], **QUIET)
    torch.set_num_threads(2)
    try:
        trainer.fit(module, data)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == {1 if cached_views else 2}  # a batch of features is too little to share
    assert bool(data.features) == (cached_views > 0)
    counts = data.class_counts
    assert module.pos_weight == pytest.approx(sum(counts) / (2 * counts[1]))
    saved = torch.load("ours/Binary_Classification_model.pth", weights_only=True)
    assert torch.equal(head(module), torch.cat([saved["fc.weight"].squeeze(0), saved["fc.bias"]]))

    dev, val = trainer.validate(module, data, verbose=False)
    assert dev["dev/f1_macro"] == pytest.approx(metrics["dev"]["f1_macro"], abs=1e-5)
    assert val["val/f1_macro"] == pytest.approx(metrics["val"]["f1_macro"], abs=1e-5)
    (tested,) = trainer.test(module, data, verbose=False)
    assert {name.split("/")[0] for name in tested} == {"val"}
    assert tested["val/recall_female"] == pytest.approx(metrics["val"]["recall_female"], abs=1e-5)
    batches: Any = trainer.predict(module, data)
    p_male = torch.cat([batch["p_male"] for batch in batches])
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(28))
    labels = torch.tensor([face.label for face in data.faces.splits["val"]])
    assert 0 <= p_male.min() < p_male.max() <= 1
    assert float(((p_male > 0.5) == labels).float().mean()) == pytest.approx(metrics["val"]["accuracy"], abs=1e-5)


def test_ten_lines_of_python(drawn: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are computed once: no image is read while it trains."""
    data = FolderDataModule(drawn, cached_views=2, features=FeatureOptions(dir="store"), **SMALL)
    module = GenderModule(weights=None, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1}, seed=0)
    data.faces  # noqa: B018 - checked
    monkeypatch.setattr(FaceDataset, "__getitem__", lambda *_: pytest.fail("an image was read"))
    trainer = pl.Trainer(max_epochs=1, callbacks=[pl.callbacks.ModelCheckpoint("here", "last")], **QUIET)
    trainer.fit(module, data)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert Path("here/last.ckpt").exists()
    assert list(Path("store").glob("*/*.pt"))


def test_data_without_a_trainer_are_views(drawn: Path) -> None:
    data = FolderDataModule(drawn, **SMALL)
    data.setup("fit")
    views, labels, index = next(iter(data.train_dataloader()))
    assert views.shape == (8, 3, 32, 32)
    assert len(labels) == len(index) == 8
    assert len(data.val_dataloader()) == 2


def test_features_of_another_module_are_not_taken(drawn: Path, in_tmp: Path) -> None:
    data = FolderDataModule(drawn, cached_views=1, **SMALL)
    found = []
    for seed in (0, 1):
        module = GenderModule(weights=None, seed=seed)
        pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(module, data)
        found.append(data.features["val"].__getitems__([0])[0])
    assert not torch.equal(*found)
    trained = GenderModule(weights=None, trainable="layer4")
    pl.Trainer(max_epochs=1, enable_checkpointing=False, limit_train_batches=1, **QUIET).fit(trained, data)
    assert not data.features


@pytest.mark.parametrize("experiment", ["demo", pytest.param("robust", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("overrides", "optimizer", "scheduler"),
    [
        (
            ("model/optimizer=adamw", "model/scheduler=one_cycle", "model.scheduler.scheduler.pct_start=0.3"),
            torch.optim.AdamW,
            lr_scheduler.OneCycleLR,
        ),
        (("model/optimizer=sgd", "model/scheduler=plateau"), torch.optim.SGD, lr_scheduler.ReduceLROnPlateau),
        (("model/scheduler=none",), torch.optim.Adam, None),
        (
            ("model/scheduler=cosine", "model.scheduler.scheduler._target_=torch.optim.lr_scheduler.StepLR")
            + ("~model.scheduler.scheduler.T_max", "+model.scheduler.scheduler.step_size=1"),
            torch.optim.Adam,
            lr_scheduler.StepLR,
        ),
    ],
    ids=["adamw-one_cycle", "sgd-plateau", "adam-none", "any other"],
)
def test_optimizer_and_scheduler_are_swapped_by_overrides(
    experiment: str, overrides: tuple[str, ...], optimizer: type, scheduler: type | None, drawn: Path, in_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kept: dict[str, Any] = {}

    def keep(self: GenderModule) -> None:
        kept["optimizer"], kept["schedulers"] = (
            self.optimizers(use_pl_optimizer=False),
            self.trainer.lr_scheduler_configs,
        )
        kept["steps"] = self.steps

    monkeypatch.setattr(GenderModule, "on_train_end", keep)
    given = [f"data.root={drawn}", f"experiment={experiment}", "cached_views=1", "trainer.max_epochs=2", "report=short"]
    given += ["data=task_a", "data.holdout=0.2", "model.optimizer.lr=0.01"]
    metrics = train(composed(*given, *overrides))
    assert type(kept["optimizer"]) is optimizer
    assert [type(each.scheduler) for each in kept["schedulers"]] == ([scheduler] if scheduler else [])
    rates = [values["lr"] for count, values in kept["steps"] for _ in range(count)]
    assert len(rates) == 10  # two epochs of 38 or 39 images in batches of 8
    if scheduler is lr_scheduler.OneCycleLR:
        assert [each.interval for each in kept["schedulers"]] == ["step"]
        assert kept["schedulers"][0].scheduler.total_steps == 10
        assert max(rates) == pytest.approx(0.01, rel=0.01)
    else:
        assert rates[:5] == [0.01] * 5
    if scheduler is lr_scheduler.StepLR:
        assert rates[5:] == pytest.approx([0.001] * 5)
    assert metrics["calibration"]["slope"] > 0  # the folds replay it, with a metric or without


def test_a_plateau_lowers_the_rate_and_the_folds_follow(
    drawn: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {"folds": []}
    step = crossfit._Fold.on_before_optimizer_step

    def keep(self: crossfit._Fold, optimizer: torch.optim.Optimizer) -> None:
        step(self, optimizer)
        kept["folds"].append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(GenderModule, "on_train_end", lambda self: kept.update(steps=self.steps))
    monkeypatch.setattr(crossfit._Fold, "on_before_optimizer_step", keep)
    given = (f"data.root={drawn}", "cached_views=1", "trainer.max_epochs=4", "data.holdout=0.2", "model.optimizer.lr=3")
    train(composed(*given, "model/scheduler=plateau", "model.scheduler.scheduler.patience=0"))
    rates = [values["lr"] for _, values in kept["steps"]]
    assert kept["folds"] == 5 * [values["lr"] for count, values in kept["steps"] for _ in range(count)]
    assert len(rates) > 1  # too high a rate: the loss on dev rises
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("experiment", ["demo", pytest.param("robust", marks=pytest.mark.slow)])
def test_the_data_module_is_swapped_by_an_override(experiment: str, drawn: Path, in_tmp: Path) -> None:
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in sorted(drawn.glob("*/*/*.jpg"))]
    Path("faces.csv").write_text("\n".join(["path,label,split", *rows]))
    kinds = {
        "data=task_a": FolderDataModule,
        "data=manifest": ManifestDataModule,
        "data=demo": DemoDataModule,
    }
    where = {
        "data=task_a": (f"data.root={drawn}",),
        "data=manifest": ("data.csv=faces.csv",),
        "data=demo": ("data.root=drawings", "data.train=[10,20]", "data.val=[4,6]", "data.side=48"),
    }
    for choice, kind in kinds.items():
        cfg = composed(
            f"experiment={experiment}", choice, *where[choice], "cached_views=1", "report=short", "calibration=none"
        )
        cfg.trainer.max_epochs = 1
        data = instantiate(cfg.data)
        assert type(data) is kind
        assert train(cfg)["val"]["images"] == len(data.faces.splits["val"])


def test_two_runs_of_a_notebook_have_a_folder_each(drawn: Path, in_tmp: Path) -> None:
    cfg = composed(f"data.root={drawn}", "cached_views=1", "trainer.max_epochs=1", "calibration=none")
    first, second = train(cfg), train(cfg)
    assert first["val"] == second["val"]
    assert cfg.run_dir is None  # the caller's configuration is left alone
    folders = sorted(Path("runs").iterdir())
    assert len(folders) == 2
    assert json.loads((folders[0] / "metrics.json").read_text())["val"] == first["val"]


def test_what_weights_were_made_for_reaches_the_data_module() -> None:
    cfg = composed("model.backbone=efficientnet_b3")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["model.backbone=efficientnet_b3"])
    preprocessing = instantiate(cfg.data).views.preprocessing
    assert (preprocessing.size, preprocessing.interpolation) == (300, "bicubic")
    assert FolderDataModule("nowhere").views.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.fixture
def checkpoint(train: Run, backbone_file: Path) -> Path:
    run = train(f"model.weights={backbone_file}", "trainer.max_epochs=2", "model/scheduler=cosine", "data.holdout=0.2")
    return run / "last.ckpt"


def test_a_checkpoint_is_loaded_without_us(checkpoint: Path, backbone_file: Path, drawn: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)  # plain values alone
    assert content["hyper_parameters"]["optimizer"] == {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-4}
    assert content["hyper_parameters"]["scheduler"]["scheduler"]["T_max"] == 2
    assert checkpoint.stat().st_size < 1e5
    module = GenderModule.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint.with_name("Binary_Classification_model.pth"), weights_only=True)
    assert torch.equal(head(module), torch.cat([saved["fc.weight"].squeeze(0), saved["fc.bias"]]))
    assert torch.equal(module.network.backbone.conv1.weight, saved["conv1.weight"])
    (tested,) = pl.Trainer(**QUIET).test(module, FolderDataModule(drawn, **SMALL), verbose=False)
    metrics = json.loads(checkpoint.with_name("metrics.json").read_text())
    assert tested["val/f1_macro"] == pytest.approx(metrics["val"]["f1_macro"], abs=1e-5)

    moved = tmp_path / "moved.pth"
    backbone_file.rename(moved)
    try:
        with pytest.raises(UserError) as failure:
            GenderModule.load_from_checkpoint(checkpoint)
        assert (failure.value.code, str(backbone_file) in str(failure.value)) == ("not-found", True)
        again = GenderModule.load_from_checkpoint(checkpoint, weights=str(moved))
        assert torch.equal(head(again), head(module))
    finally:
        moved.rename(backbone_file)
    torch.save({name: value * 2 for name, value in torch.load(backbone_file, weights_only=True).items()}, moved)
    with pytest.raises(UserError) as failure:
        GenderModule.load_from_checkpoint(checkpoint, weights=str(moved))
    assert failure.value.code == "wrong-network"
    assert str(moved) in str(failure.value)


def test_a_checkpoint_on_random_weights_is_loaded_too(train: Run) -> None:
    checkpoint = train("trainer.max_epochs=1", "seed=5") / "last.ckpt"
    torch.manual_seed(99)
    module = GenderModule.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint.with_name("Binary_Classification_model.pth"), weights_only=True)
    assert torch.equal(module.network.backbone.conv1.weight, saved["conv1.weight"])


@contextmanager
def refused(code: str, key: str) -> Iterator[None]:
    with pytest.raises(UserError) as failure:
        yield
    assert failure.value.code == code
    assert key in str(failure.value)


@pytest.mark.parametrize(
    ("code", "key", "make"),
    [
        ("bad-value", "data.size=0", lambda: FolderDataModule(size=0)),
        ("bad-value", "data.batch_size=x", lambda: FolderDataModule(batch_size="x")),  # type: ignore[arg-type]
        ("bad-value", "cached_views=-1", lambda: FolderDataModule(cached_views=-1)),
        ("bad-value", "data.crop=2", lambda: FolderDataModule(crop=2)),
        ("bad-value", "features.engine=tpu", lambda: FeatureOptions(engine="tpu")),
        ("bad-value", "model.label_smoothing=1", lambda: GenderModule(weights=None, label_smoothing=1)),
        ("bad-value", "model.optimizer.lr=0", lambda: GenderModule(weights=None, optimizer={"lr": 0})),
        ("conflict", "model.backbone_lr", lambda: GenderModule(weights=None, backbone_lr=0.1)),
        ("not-found", "model.weights=no.pth", lambda: GenderModule(weights="no.pth")),
        (
            "conflict",
            "model.scheduler.monitor=val/loss",
            lambda: GenderModule(weights=None, scheduler={"scheduler": {}, "monitor": "val/loss"}),
        ),
    ],
)
def test_python_users_get_the_same_errors(code: str, key: str, make: Callable[[], object]) -> None:
    with refused(code, key):
        make()


def test_nothing_is_chosen_by_val_under_a_plain_trainer_either(drawn: Path, in_tmp: Path) -> None:
    def fit(callback: pl.Callback, **options: Any) -> None:
        module = GenderModule(weights=None)
        trainer = pl.Trainer(max_epochs=1, callbacks=[callback], **QUIET)
        trainer.fit(module, FolderDataModule(drawn, cached_views=0, **SMALL, **options))

    with refused("conflict", "val/f1_macro"):
        fit(pl.callbacks.EarlyStopping("val/f1_macro"))
    with refused("conflict", "val/loss"):
        fit(pl.callbacks.ModelCheckpoint(monitor="val/loss"))
    with refused("conflict", "data.holdout"):
        fit(pl.callbacks.EarlyStopping("dev/f1_macro"), holdout=0.0)


def test_arguments_that_torch_refuses_are_one_line(drawn: Path, in_tmp: Path) -> None:
    given = (f"data.root={drawn}", "cached_views=1", "trainer.max_epochs=1", "calibration=none")
    with refused("bad-value", "model.optimizer"):
        train(composed(*given, "+model.optimizer.weight_decay=-1"))
    with refused("bad-value", "model.scheduler"):
        train(composed(*given, "model/scheduler=cosine", "+model.scheduler.scheduler.no_such=1"))


def test_the_precision_of_the_machine_is_a_resolver() -> None:
    assert composed("experiment=finetune").trainer.precision in ("bf16-mixed", "32-true")
    assert OmegaConf.to_container(composed(), resolve=True)["trainer"]["precision"] == "32-true"  # type: ignore[index, call-overload]


def test_a_notebook_gets_the_users_error(drawn: Path, in_tmp: Path) -> None:
    with refused("bad-value", "data.batch_size=0"):
        train(composed(f"data.root={drawn}", "data.batch_size=0"))
    with refused("bad-value", "model.backbone=no_such"):
        train(composed(f"data.root={drawn}", "model.backbone=no_such"))


def test_a_plain_trainer_resumes_only_what_goes_on(drawn: Path, in_tmp: Path) -> None:
    def fit(epochs: int, ckpt_path: str | None = None, seed: int = 0, lr: float = 0.1) -> GenderModule:
        module = GenderModule(weights=None, seed=0, optimizer={"_target_": "torch.optim.SGD", "lr": lr})
        data = FolderDataModule(drawn, cached_views=2, seed=seed, **SMALL)
        callback = pl.callbacks.ModelCheckpoint(str(in_tmp), f"{epochs}", save_on_train_epoch_end=True)
        pl.Trainer(max_epochs=epochs, callbacks=[callback], **QUIET).fit(module, data, ckpt_path=ckpt_path)
        return module

    fit(1)
    assert torch.equal(head(fit(3)), head(fit(3, "1.ckpt")))
    with refused("resume-mismatch", "another seed"):
        fit(3, "1.ckpt", seed=1)
    with refused("resume-mismatch", "model.optimizer"):
        fit(3, "1.ckpt", lr=0.2)


@pytest.mark.parametrize("cached_views", [2, 0])
def test_overfitting_repeats_the_same_draws_of_both_labels(cached_views: int, drawn: Path, in_tmp: Path) -> None:
    seen: list[tuple[list[int], list[float]]] = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer: object, pl_module: object, batch: Any, batch_idx: int) -> None:
            seen.append((batch[2].tolist(), batch[1].tolist()))

    data = FolderDataModule(drawn, cached_views=cached_views, **SMALL)
    trainer = pl.Trainer(max_epochs=2, overfit_batches=3, callbacks=[Keep()], enable_checkpointing=False, **QUIET)
    trainer.fit(GenderModule(weights=None), data)
    assert len(seen) == 6
    assert seen[:3] == seen[3:]
    assert {label for _, labels in seen for label in labels} == {0, 1}


def test_only_optimizers_and_schedulers_are_called(drawn: Path, in_tmp: Path) -> None:
    """Not what else a configuration or the hyper-parameters of a checkpoint may name."""
    given = (f"data.root={drawn}", "cached_views=1", "trainer.max_epochs=1", "calibration=none")
    for target in ("os.getcwd", "torch.nn.Linear", "torch.optim.Adem"):
        with refused("bad-value", f"model.optimizer._target_={target}"):
            train(composed(*given, f"model.optimizer._target_={target}"))


def test_hyper_parameters_are_plain_also_from_a_config() -> None:
    optimizer = OmegaConf.create({"_target_": "torch.optim.Adam", "lr": 1e-3, "betas": [0.9, 0.99]})
    module = GenderModule(weights=None, optimizer=optimizer)  # type: ignore[arg-type]
    assert type(module.hparams["optimizer"]) is dict
    assert type(module.hparams["optimizer"]["betas"]) is list


def test_one_batch_of_one_class_is_no_crash(drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = train(composed(f"data.root={drawn}", "debug=fast_dev_run", "data.batch_size=4"))
    assert found["val"]["f1_macro"] is None
    assert "images of one class only" in capsys.readouterr().out
    assert not list(in_tmp.rglob("*.pth"))


def test_a_model_of_three_batches_is_not_saved(drawn: Path, in_tmp: Path) -> None:
    """Else predict.py would take it for the newest model."""
    train(composed(f"data.root={drawn}", "debug=overfit", "trainer.max_epochs=1"))
    assert list(in_tmp.rglob("metrics.json"))
    assert not list(in_tmp.rglob("*.pth"))
