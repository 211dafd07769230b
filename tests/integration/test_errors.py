"""What a user can mend: one line that names the path or key and the way out, through the real scripts."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT, Run, script

from gender_cls.models import weights
from gender_cls.data.datamodule import FaceDataModule

Fails = Callable[..., str]


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
        "error: data.root=nowhere: no such folder; give the one that holds train/ and val/, or try experiment=demo"
    ]


@pytest.mark.slow
def test_where_it_went_wrong_is_shown_on_request(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "data.root=nowhere"]
    env = os.environ | {"HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_missing_class_folder(faces: Path, train: Run, fails: Fails) -> None:
    (faces / "val" / "female").rename(faces / "away")
    assert f"{faces}/val/female is missing" in fails(train, f"data.root={faces}")


def test_an_empty_class_folder(faces: Path, train: Run, fails: Fails) -> None:
    for image in (faces / "train" / "male").iterdir():
        image.unlink()
    assert f"{faces}/train/male holds no image" in fails(train, f"data.root={faces}")


def test_folders_named_otherwise(faces: Path, train: Run, fails: Fails) -> None:
    (faces / "train" / "male").rename(faces / "train" / "men")
    line = fails(train, f"data.root={faces}")
    assert "'men'" in line
    assert "rename" in line


def test_a_missing_split(faces: Path, train: Run, fails: Fails) -> None:
    (faces / "val").rename(faces / "test")
    assert f"{faces}/val is missing" in fails(train, f"data.root={faces}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na.jpg,male\n", "no column 'path' (found: file, label)"),
        ("path,sex\na.jpg,male\n", "no column 'label'"),
        ("path,label\na.jpg,man\n", "line 2: label 'man'; a label is female or male"),
        ("path,label\na.jpg,male\nb.jpg,female\n", "line 2: no such file"),
        ("path,label,split\na.jpg,male,test\n", "line 2: split 'test'; a split is train, dev or val"),
        ("path,label\n,male\n", "line 2: path or label is empty"),
        ("path,label\na.jpg\n", "line 2: path or label is empty"),
        ("path,label\n", "has no row below its first line"),
        ("", "no column 'path' (found: nothing)"),
    ],
)
def test_a_bad_manifest(text: str, says: str, train: Run, fails: Fails) -> None:
    Path("faces.csv").write_text(text)
    line = fails(train, "data=manifest", "data.csv=faces.csv")
    assert "faces.csv" in line
    assert says in line


def test_no_such_manifest(train: Run, fails: Fails) -> None:
    assert "data.csv=no.csv: no such file" in fails(train, "data=manifest", "data.csv=no.csv")


def test_weights_that_are_not_there(train: Run, fails: Fails) -> None:
    line = fails(train, "model.weights=no.pth")
    assert "model.weights=no.pth: no such file" in line
    assert "IMAGENET1K_V1" in line


def test_weights_that_can_not_be_downloaded(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that never answers: the run gives up by itself, with the ways out."""
    over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        over.wait()
        raise OSError

    monkeypatch.setattr(weights, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(weights.urllib.request, "urlopen", hang)
    line = fails(train, "model.weights=IMAGENET1K_V1")
    over.set()
    assert "no answer within" in line
    for way_out in ("model.weights=/path/to/", "hub/checkpoints", "experiment=demo"):
        assert way_out in line


def test_a_refused_download(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    assert "connection refused" in fails(train, "model.weights=IMAGENET1K_V1")


def test_weights_of_the_wrong_shape(train: Run, fails: Fails, backbone_file: Path) -> None:
    state = torch.load(backbone_file, weights_only=True)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, "grey.pth")
    line = fails(train, "model.weights=grey.pth")
    assert "model.weights=grey.pth: conv1.weight has shape (64, 1, 7, 7), not (64, 3, 7, 7)" in line


def test_weights_of_another_network(train: Run, fails: Fails) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, "vgg.pth")
    assert "model.weights=vgg.pth has no conv1.weight" in fails(train, "model.weights=vgg.pth")
    torch.save([1, 2], "list.pth")
    assert "model.weights=list.pth is no plain state dict" in fails(train, "model.weights=list.pth")


def test_weights_of_a_deeper_resnet(train: Run, fails: Fails, backbone_file: Path) -> None:
    state = torch.load(backbone_file, weights_only=True) | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}
    torch.save(state, "resnet34.pth")
    assert "holds layer1.2.conv1.weight" in fails(train, "model.weights=resnet34.pth")


@pytest.mark.parametrize("key", ["model.weights", "ckpt_path", "model"])
def test_a_pickle_is_never_executed(key: str, train: Run, fails: Fails, in_tmp: Path, drawn: Path) -> None:
    with open("evil.pth", "wb") as file:
        pickle.dump(Evil(), file)
    torch.save({"state_dict": Evil()}, "evil_zip.pth")
    for name in ("evil.pth", "evil_zip.pth"):
        image = next(drawn.glob("val/male/*.jpg"))
        arguments = ("predict.py", f"img={image}") if key == "model" else ()
        line = fails(script if key == "model" else train, *arguments, f"{key}={name}")
        assert f"{key}={name}" in line
        assert "would run code" in line
    assert not Path("executed").exists()


def test_a_pickle_in_torchs_cache_directory_is_never_executed(
    train: Run, fails: Fails, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(in_tmp))
    cached = in_tmp / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(pickle.dumps(Evil()))
    assert "would run code" in fails(train, "model.weights=IMAGENET1K_V1")
    assert not Path("executed").exists()


def test_a_damaged_file_of_weights(train: Run, fails: Fails, backbone_file: Path) -> None:
    Path("half.pth").write_bytes(backbone_file.read_bytes()[:100_000])
    assert "model.weights=half.pth is damaged" in fails(train, "model.weights=half.pth")
    Path("empty.pth").touch()
    assert "model.weights=empty.pth" in fails(train, "model.weights=empty.pth")


def test_a_checkpoint_of_another_architecture(train: Run, fails: Fails) -> None:
    run = train("trainer.max_epochs=1")
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    checkpoint["state_dict"] = {"network.head.weight": torch.zeros(1, 2048), "network.head.bias": torch.zeros(1)}
    torch.save(checkpoint, "resnet50.ckpt")
    line = fails(train, "ckpt_path=resnet50.ckpt")
    assert "(1, 2048)" in line
    assert "another architecture" in line


def test_a_checkpoint_of_another_backbone(train: Run, fails: Fails, backbone_file: Path) -> None:
    run = train("trainer.max_epochs=1")
    line = fails(train, f"ckpt_path={run}/last.ckpt", f"model.weights={backbone_file}")
    assert "trained with another model.weights" in line


@pytest.mark.parametrize(
    "word",
    [
        "data.split_seed=1",
        "data.batch_size=4",
        "seed=1",
        "model.optimizer._target_=torch.optim.SGD",
        "model.optimizer.lr=0.5",
    ],
)
def test_a_checkpoint_of_other_settings(argument: str, train: Run, fails: Fails) -> None:
    """Else held-out people would be trained on, or the order would be another one."""
    run = train("trainer.max_epochs=1")
    line = fails(train, f"ckpt_path={run}/last.ckpt", "trainer.max_epochs=2", argument)
    assert f"trained with another {argument.split('=')[0].removesuffix('._target_').removesuffix('.lr')}" in line


def test_a_checkpoint_that_is_trained_for_longer(train: Run, fails: Fails) -> None:
    run = train("trainer.max_epochs=2")
    assert "has 2 epochs already" in fails(train, f"ckpt_path={run}/last.ckpt", "trainer.max_epochs=1")


def test_what_is_no_checkpoint(train: Run, fails: Fails, backbone_file: Path) -> None:
    assert "ckpt_path=no.ckpt: no such file" in fails(train, "ckpt_path=no.ckpt")
    assert "is no checkpoint" in fails(train, f"ckpt_path={backbone_file}")


def test_unreadable_pictures_are_listed_and_skipped(
    faces: Path, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, empty = sorted((faces / "train" / "male").iterdir())[:2]
    spoil(bad)
    empty.write_text("")
    run = train(f"data.root={faces}", "trainer.max_epochs=1")
    said = capsys.readouterr().out
    assert "skipped 2" in said
    assert f"skipped {bad}: image file is truncated" in said
    assert f"skipped {empty}: not an image" in said
    assert str(bad) in (run / "metrics.json").read_text()


def test_too_many_unreadable_pictures(faces: Path, train: Run, fails: Fails) -> None:
    for image in sorted((faces / "train" / "male").iterdir())[:3]:
        spoil(image)
    line = fails(train, f"data.root={faces}")
    assert "3 of 48 images in train can't be read, more than 5 %" in line
    assert "truncated" in line


def test_bad_values(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data.holdout=1.5" in fails(train, "data.holdout=1.5")
    assert "data.identity=(" in fails(train, "data.identity='('")
    assert "has no group" in fails(train, "data.identity='^x$'")
    assert "trainer.devices must be 1" in fails(train, "trainer.devices=2")
    assert "data.csv has no value; give data.csv=FILE" in fails(train, "data=manifest")
    for argument in (
        "data.batch_size=oops",
        "data.size=0",
        "data.num_workers=-1",
        "seed=x",
        "trainer.max_epochs=0",
        "views=-1",
    ):
        assert f"{argument}: give a whole number" in fails(train, argument)
    assert "features.precision=fp8: give auto or bf16 or fp32" in fails(train, "features.precision=fp8")
    Path("file").write_text("")
    assert "features.dir: " in fails(train, "features.dir=file")
    with monkeypatch.context() as patch:
        patch.setattr("gender_cls.features.extractor.find_spec", lambda _: None)
        assert 'pip install -e ".[fast]"' in fails(train, "features.engine=openvino")
    assert "model.optimizer.lr=-1: give a learning rate above 0" in fails(train, "model.optimizer.lr=-1")
    assert "diverged" in fails(train, "model.optimizer.lr=inf", "trainer.max_epochs=1")


def test_pictures_that_go_missing_in_a_run(
    faces: Path, train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are left out; if a whole split goes, one line says so, also from worker processes."""
    fit = pl.Trainer.fit

    def remove_then_fit(*args: object, **kwargs: object) -> None:
        for image in faces.glob("val/*/*.jpg"):
            image.unlink()
        fit(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pl.Trainer, "fit", remove_then_fit)
    arguments = ("trainer.max_epochs=1", "data.num_workers=1", "data.holdout=0", "views=0")
    assert "not one image of val can be read any more" in fails(train, f"data.root={faces}", *arguments)


def test_pictures_that_go_missing_before_their_features_are_computed(
    faces: Path, train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = FaceDataModule.compute_features

    def remove_then_compute(*args: object) -> None:
        for image in faces.glob("val/*/*.jpg"):
            image.unlink()
        compute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(FaceDataModule, "compute_features", remove_then_compute)
    arguments = ("trainer.max_epochs=1", "data.holdout=0", "features.dir=store")
    assert "not one image of val can be read any more" in fails(train, f"data.root={faces}", *arguments)


def test_a_demo_is_not_drawn_over_something_else(train: Run, fails: Fails) -> None:
    Path("mine").mkdir()
    assert "data.root=mine exists and is not this demo set" in fails(train, "experiment=demo", "data.root=mine")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("img=a.jpg", "model=no.pth"), "model=no.pth: no such file"),
        (("img=a.jpg",), "no Binary_Classification_model.pth below runs/"),
        (("photo.jpg",), "'photo.jpg' is none of img=, model=, out=, montage=, sure=, prior=, precision= with a value"),
        (("img=",), "'img=' is none of img="),
        (("model=x",), "no image is named"),
        (("img=a", "model=x", "model=y"), "model= is given twice"),
        (("img=.", "model=x"), "img=. holds no file whose name ends like an image's"),
    ],
)
def test_bad_words_for_predict(arguments: tuple[str, ...], says: str, in_tmp: Path, fails: Fails) -> None:
    assert says in fails(script, "predict.py", *arguments)


def test_bad_models_for_predict(in_tmp: Path, fails: Fails, backbone_file: Path, trained: Path) -> None:
    line = fails(script, "predict.py", "img=a.jpg", f"model={backbone_file}")
    assert "fc.weight has shape (1000, 512), not (1, 512)" in line
    Path("m.pth").write_bytes((trained / "Binary_Classification_model.pth").read_bytes())
    for text in (
        "{}",
        '{"preprocessing": {"size": 0, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}}',
        "x",
    ):
        Path("m.json").write_text(text)
        assert "m.json does not say the model's preprocessing" in fails(
            script, "predict.py", "img=a.jpg", "model=m.pth"
        )
    state = torch.load("m.pth", weights_only=True)
    state["fc.bias"] = torch.tensor([float("nan")])
    torch.save(state, "nan.pth")
    assert "fc.bias holds values that are not finite" in fails(script, "predict.py", "img=a.jpg", "model=nan.pth")


def test_an_out_that_can_not_be_written(in_tmp: Path, fails: Fails, trained: Path, drawn: Path) -> None:
    image = next(drawn.glob("val/male/*.jpg"))
    arguments = (f"img={image}", f"model={trained}/Binary_Classification_model.pth", "out=no/such/folder.csv")
    assert "out=no/such/folder.csv: no such file or directory" in fails(script, "predict.py", *arguments)
    Path("folder").mkdir()
    assert "out=folder: is a directory" in fails(script, "predict.py", *arguments[:2], "out=folder")
    assert list(Path().glob("*")) == [Path("folder")]


def test_a_bad_word_by_the_real_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", "photo.jpg"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    known = "img=, model=, out=, montage=, sure=, prior=, precision="
    assert done.stderr == f"error: 'photo.jpg' is none of {known} with a value; see python predict.py --help\n"
