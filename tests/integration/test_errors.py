"""What a user can mend: one line that names the path or key and the way out, through the real scripts."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT, Fails, Failure, Run, script

from gender_cls.data.base import FaceDataModule
from gender_cls.models import weights


def assert_failure(failure: Failure, code: str, *parts: str) -> None:
    assert failure.code == code, failure.line
    for part in parts:
        assert part in failure.line


class Evil:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def spoil(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_no_such_root_by_the_real_command(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "data.root=nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: data.root=nowhere: no such folder; "
        "give the one that holds train/ and val/, or female/ and male/, or try experiment=demo"
    ]


@pytest.mark.slow
def test_where_it_went_wrong_is_shown_on_request(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "data.root=nowhere"]
    env = os.environ | {"HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_missing_class_folder(faces: Path, train: Run, fails: Fails) -> None:
    (faces / "train" / "female").rename(faces / "away")
    assert_failure(fails(train, f"data.root={faces}"), "no-images", "there is no female image in train")


def test_an_empty_class_folder(faces: Path, train: Run, fails: Fails) -> None:
    for image in (faces / "train" / "male").iterdir():
        image.unlink()
    assert_failure(fails(train, f"data.root={faces}"), "no-images", "there is no male image in train")


def test_folders_named_otherwise(faces: Path, train: Run, fails: Fails) -> None:
    (faces / "train" / "male").rename(faces / "train" / "boys")
    assert_failure(
        fails(train, f"data.root={faces}"), "bad-data", f"{faces}/train", "'boys'", "rename", "data.classes="
    )


def test_a_missing_split(faces: Path, train: Run, fails: Fails) -> None:
    (faces / "val").rename(faces / "test")
    assert_failure(fails(train, f"data.root={faces}"), "not-found", f"{faces}/val is missing")


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("file,label\na.jpg,male\n", "bad-data", "no column 'path' (found: file, label)"),
        ("path,sex\na.jpg,male\n", "bad-data", "no column 'label'"),
        (
            "path,label\na.jpg,cat\n",
            "bad-data",
            "line 2: label 'cat' is not known; other names of the classes are given by",
        ),
        ("path,label\na.jpg,male\nb.jpg,female\n", "not-found", "line 2: no such file"),
        ("path,label,split\na.jpg,male,test\n", "bad-data", "line 2: split 'test'; a split is train, dev or val"),
        ("path,label\n,male\n", "bad-data", "line 2: path or label is empty"),
        ("path,label\na.jpg\n", "bad-data", "line 2: path or label is empty"),
        ("path,label\n", "no-images", "has no row below its first line"),
        ("", "bad-data", "no column 'path' (found: nothing)"),
    ],
)
def test_a_bad_manifest(text: str, code: str, says: str, train: Run, fails: Fails) -> None:
    Path("faces.csv").write_text(text)
    assert_failure(fails(train, "data=manifest", "data.csv=faces.csv"), code, "faces.csv", says)


def test_no_such_manifest(train: Run, fails: Fails) -> None:
    failure = fails(train, "data=manifest", "data.csv=no.csv")
    assert_failure(failure, "not-found", "data.csv=no.csv: no such file")


def test_weights_that_are_not_there(train: Run, fails: Fails) -> None:
    failure = fails(train, "model.weights=no.pth")
    assert_failure(failure, "not-found", "model.weights=no.pth: no such file", "IMAGENET1K_V1")


def test_weights_that_can_not_be_downloaded(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that never answers: the run gives up by itself, with the ways out."""
    connect = torch.hub.urlopen  # type: ignore[attr-defined]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts the connection
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: connect(address))
        failure = fails(train, "model.weights=IMAGENET1K_V1")
    ways_out = ("model.weights=FILE", "hub/checkpoints", "experiment=demo")
    assert_failure(failure, "download-failed", "model.weights=IMAGENET1K_V1", "timed out", *ways_out)


def test_a_refused_download(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    assert_failure(fails(train, "model.weights=IMAGENET1K_V1"), "download-failed", "connection refused")


def test_weights_of_the_wrong_shape(train: Run, fails: Fails, backbone_file: Path) -> None:
    state = torch.load(backbone_file, weights_only=True)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, "grey.pth")
    says = "model.weights=grey.pth: conv1.weight has shape (64, 1, 7, 7), not (64, 3, 7, 7)"
    assert_failure(fails(train, "model.weights=grey.pth"), "wrong-network", says)


def test_weights_of_another_network(train: Run, fails: Fails) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, "vgg.pth")
    says = "model.weights=vgg.pth has no conv1.weight"
    assert_failure(fails(train, "model.weights=vgg.pth"), "wrong-network", says)
    torch.save([1, 2], "list.pth")
    says = "model.weights=list.pth holds no state dict"
    assert_failure(fails(train, "model.weights=list.pth"), "bad-model", says)


def test_weights_of_a_deeper_resnet(train: Run, fails: Fails, backbone_file: Path) -> None:
    state = torch.load(backbone_file, weights_only=True) | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}
    torch.save(state, "resnet34.pth")
    says = ("model.weights=resnet34.pth", "holds layer1.2.conv1.weight")
    assert_failure(fails(train, "model.weights=resnet34.pth"), "wrong-network", *says)


@pytest.mark.parametrize("key", ["model.weights", "ckpt_path", "model"])
def test_a_pickle_is_never_executed(key: str, train: Run, fails: Fails, in_tmp: Path, drawn: Path) -> None:
    with open("evil.pth", "wb") as file:
        pickle.dump(Evil(), file)
    torch.save({"state_dict": Evil()}, "evil_zip.pth")
    for name in ("evil.pth", "evil_zip.pth"):
        image = next(drawn.glob("val/male/*.jpg"))
        arguments = ("predict.py", f"img={image}") if key == "model" else ()
        failure = fails(script if key == "model" else train, *arguments, f"{key}={name}")
        assert_failure(failure, "unsafe-file", f"{key}={name}", "would run code")
    assert not Path("executed").exists()


def test_a_pickle_in_torchs_cache_directory_is_never_executed(
    train: Run, fails: Fails, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(in_tmp))
    cached = in_tmp / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(pickle.dumps(Evil()))
    failure = fails(train, "model.weights=IMAGENET1K_V1")
    assert_failure(failure, "unsafe-file", "model.weights=IMAGENET1K_V1", str(cached), "would run code")
    assert not Path("executed").exists()


def test_a_damaged_file_of_weights(train: Run, fails: Fails, backbone_file: Path) -> None:
    Path("half.pth").write_bytes(backbone_file.read_bytes()[:100_000])
    says = "model.weights=half.pth is a damaged zip archive"
    assert_failure(fails(train, "model.weights=half.pth"), "bad-model", says)
    Path("empty.pth").touch()
    assert_failure(fails(train, "model.weights=empty.pth"), "bad-model", "model.weights=empty.pth")


TRAINED = ("data.holdout=0.2", "model.optimizer.lr=0.1", "trainer.max_epochs=3")  # as `trained` was, for longer


def test_a_checkpoint_of_another_architecture(trained: Path, train: Run, fails: Fails) -> None:
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["state_dict"] = {"network.head.weight": torch.zeros(1, 2048), "network.head.bias": torch.zeros(1)}
    torch.save(checkpoint, "resnet50.ckpt")
    says = ("ckpt_path=resnet50.ckpt", "(1, 2048)", "another architecture")
    assert_failure(fails(train, *TRAINED, "ckpt_path=resnet50.ckpt"), "wrong-network", *says)


def test_a_checkpoint_of_another_backbone(trained: Path, train: Run, fails: Fails, backbone_file: Path) -> None:
    failure = fails(train, *TRAINED, f"ckpt_path={trained}/last.ckpt", f"model.weights={backbone_file}")
    says = (f"ckpt_path={trained}/last.ckpt", "trained with another model.weights")
    assert_failure(failure, "resume-mismatch", *says)


@pytest.mark.parametrize(
    "override",
    [
        "data.split_seed=1",
        "data.batch_size=4",
        "seed=1",
        "data.holdout=0.1",
        "data.size=24",
        "cached_views=4",
        "model.label_smoothing=0.1",
        "model.optimizer._target_=torch.optim.SGD",
        "model.optimizer.lr=0.5",
    ],
)
def test_a_checkpoint_of_other_settings(override: str, trained: Path, train: Run, fails: Fails) -> None:
    """Else held-out identities would be trained on, or the order would be another one."""
    failure = fails(train, *TRAINED, f"ckpt_path={trained}/last.ckpt", override)
    key = override.split("=")[0].removesuffix("._target_").removesuffix(".lr")
    assert_failure(failure, "resume-mismatch", f"trained with another {key}")


def test_a_checkpoint_that_is_trained_for_longer(trained: Path, train: Run, fails: Fails) -> None:
    failure = fails(train, *TRAINED, f"ckpt_path={trained}/last.ckpt", "trainer.max_epochs=1")
    assert_failure(failure, "resume-mismatch", "has 2 epochs already", "trainer.max_epochs=2")


def test_what_is_no_checkpoint(train: Run, fails: Fails, backbone_file: Path) -> None:
    assert_failure(fails(train, "ckpt_path=no.ckpt"), "not-found", "ckpt_path=no.ckpt: no such file")
    failure = fails(train, f"ckpt_path={backbone_file}")
    assert_failure(failure, "bad-model", f"ckpt_path={backbone_file}", "is no checkpoint")


def test_unreadable_images_are_listed_and_skipped(faces: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    bad, empty = sorted((faces / "train" / "male").iterdir())[:2]
    spoil(bad)
    empty.write_text("")
    run = train(f"data.root={faces}", "trainer.max_epochs=1")
    said = capsys.readouterr().out
    assert "skipped 2" in said
    assert f"skipped {bad}: image file is truncated" in said
    assert f"skipped {empty}: is empty" in said
    skipped = json.loads((run / "metrics.json").read_text())["data"]["skipped"]
    assert [path for path, _ in skipped] == [f"train/male/{bad.name}", f"train/male/{empty.name}"]


def test_too_many_unreadable_images(faces: Path, train: Run, fails: Fails) -> None:
    for image in sorted((faces / "train" / "male").iterdir())[:3]:
        spoil(image)
    says = "3 of 48 images in train can't be read, more than 5 %"
    assert_failure(fails(train, f"data.root={faces}"), "bad-data", says, "truncated")


def test_bad_values(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_failure(fails(train, "data.holdout=1.5"), "bad-value", "data.holdout=1.5")
    assert_failure(fails(train, "data.identity='('"), "bad-value", "data.identity=(")
    assert_failure(fails(train, "data.identity='^x$'"), "bad-value", "data.identity=^x$ has no group")
    assert_failure(fails(train, "trainer.devices=2"), "conflict", "trainer.devices must be 1")
    assert_failure(fails(train, "data=manifest"), "bad-value", "data.csv has no value; give data.csv=")
    assert_failure(fails(train, "data=_base"), "bad-value", "give data=task_a")
    for override in (
        "data.batch_size=oops",
        "data.size=0",
        "data.num_workers=-1",
        "seed=x",
        "trainer.max_epochs=0",
        "cached_views=-1",
    ):
        assert_failure(fails(train, override), "bad-value", f"{override}: give an integer")
    says = "features.precision=fp8: give auto or bf16 or fp32"
    assert_failure(fails(train, "features.precision=fp8"), "bad-value", says)
    Path("file").write_text("")
    assert_failure(fails(train, "features.dir=file"), "not-writable", "features.dir: ")
    with monkeypatch.context() as patch:
        patch.setattr("gender_cls.errors.find_spec", lambda _: None)
        failure = fails(train, "features.engine=openvino")
        assert_failure(failure, "missing-package", "features.engine=openvino", 'pip install -e ".[fast]"')
    says = "model.optimizer.lr=-1: give a learning rate above 0"
    assert_failure(fails(train, "model.optimizer.lr=-1"), "bad-value", says)
    failure = fails(train, "model.optimizer.lr=inf", "trainer.max_epochs=1")
    assert_failure(failure, "diverged", "diverged", "model.optimizer.lr")


@pytest.mark.parametrize(
    "override",
    ["data.augment.flip=2", "corruption.share=1.5", "data.crop=0", "report=long", "data.balanced_sampler=1"],
)
def test_values_out_of_their_range(override: str, train: Run, fails: Fails) -> None:
    """Constructors check them, and Hydra's wrapping does not hide which key it is."""
    assert_failure(fails(train, override), "bad-value", override)


def test_images_that_go_missing_in_a_run(
    faces: Path, train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are left out; if a whole split goes, one line says so, also from worker processes."""
    fit = pl.Trainer.fit

    def remove_then_fit(*args: object, **kwargs: object) -> None:
        for image in faces.glob("val/*/*.jpg"):
            image.unlink()
        fit(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pl.Trainer, "fit", remove_then_fit)
    overrides = ("trainer.max_epochs=1", "data.num_workers=1", "data.holdout=0", "cached_views=0")
    failure = fails(train, f"data.root={faces}", *overrides)
    assert_failure(failure, "not-found", "no image of val can be read any more")


def test_images_that_go_missing_before_their_features_are_computed(
    faces: Path, train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = FaceDataModule.setup

    def remove_then_set_up(self: FaceDataModule, stage: str) -> None:
        for image in faces.glob("val/*/*.jpg"):
            image.unlink(missing_ok=True)  # it is set up again for the evaluation
        setup(self, stage)

    monkeypatch.setattr(FaceDataModule, "setup", remove_then_set_up)
    overrides = ("trainer.max_epochs=1", "data.holdout=0", "features.dir=store")
    failure = fails(train, f"data.root={faces}", *overrides)
    assert_failure(failure, "not-found", "no image of val can be read any more")


def test_a_demo_is_not_drawn_over_something_else(train: Run, fails: Fails) -> None:
    Path("mine").mkdir()
    failure = fails(train, "experiment=demo", "data.root=mine")
    assert_failure(failure, "conflict", "data.root=mine exists and is not this demo set")


KEYS = "img=, model=, out=, montage=, min_confidence=, prior=, truncated=, max_pixels=, precision="
KEYS += ", faces=, cut=, min_face=, min_score="


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("img=a.jpg", "model=no.pth"), "not-found", "model=no.pth: no such file"),
        (("img=a.jpg",), "not-found", "no Binary_Classification_model.pth below runs/"),
        (("photo.jpg",), "unknown-option", f"'photo.jpg' is none of {KEYS} with a value"),
        (("img=",), "unknown-option", "'img=' is none of img="),
        (("model=x",), "no-images", "no image is given"),
        (("img=a", "model=x", "model=y"), "conflict", "model= is given twice"),
        (("img=.", "model=x"), "no-images", "img=. holds no image"),
    ],
)
def test_bad_arguments_of_predict(arguments: tuple[str, ...], code: str, says: str, in_tmp: Path, fails: Fails) -> None:
    assert_failure(fails(script, "predict.py", *arguments), code, says)


def test_bad_models_for_predict(in_tmp: Path, fails: Fails, backbone_file: Path, trained: Path) -> None:
    failure = fails(script, "predict.py", "img=a.jpg", f"model={backbone_file}")
    assert_failure(failure, "wrong-network", "fc.weight has shape (1000, 512), not (1, 512)")
    Path("m.pth").write_bytes((trained / "Binary_Classification_model.pth").read_bytes())
    for text in (
        "{}",
        '{"preprocessing": {"size": 0, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}}',
        "x",
    ):
        Path("m.json").write_text(text)
        failure = fails(script, "predict.py", "img=a.jpg", "model=m.pth")
        assert_failure(failure, "bad-model", "m.json holds no valid preprocessing")
    state = torch.load("m.pth", weights_only=True)
    state["fc.bias"] = torch.tensor([float("nan")])
    torch.save(state, "nan.pth")
    failure = fails(script, "predict.py", "img=a.jpg", "model=nan.pth")
    assert_failure(failure, "bad-model", "fc.bias holds values that are not finite")


def test_an_out_that_can_not_be_written(in_tmp: Path, fails: Fails, trained: Path, drawn: Path) -> None:
    image = next(drawn.glob("val/male/*.jpg"))
    arguments = ("predict.py", f"img={image}", f"model={trained}/Binary_Classification_model.pth")
    failure = fails(script, *arguments, "out=no/such/folder.csv")
    assert_failure(failure, "not-writable", "out=no/such/folder.csv: no such file or directory")
    Path("folder").mkdir()
    assert_failure(fails(script, *arguments, "out=folder"), "not-writable", "out=folder: is a directory")
    assert list(Path().glob("*")) == [Path("folder")]


def test_a_bad_argument_by_the_real_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", "photo.jpg"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: 'photo.jpg' is none of {KEYS} with a value; see python {ROOT}/predict.py --help\n"
