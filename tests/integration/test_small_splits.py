"""Splits with one class, runs on a part of the images, sweeps that fail, and what a model says of where it was made."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Fails, Run
from PIL import Image

from gender_cls.evaluation import report
from gender_cls.inference.export import main as export
from gender_cls.inference.predictor import Predictor, newest_model

MODEL = "Binary_Classification_model.pth"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def facts(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def remove_females(split: Path, how: str) -> None:
    for image in (split / "female").iterdir():
        image.unlink()
    if how == "folder":
        (split / "female").rmdir()
    if how == "unreadable":
        (split / "female" / "x_0001.jpg").touch()
        for n in range(20):
            image = Image.new("L", (8, 8), 12 * n)
            image.save(split / "male" / f"more{n}_0001.png")


@pytest.mark.parametrize("how", [pytest.param("empty", marks=pytest.mark.slow), "folder", "unreadable"])
def test_one_class_in_val_ends_in_metrics(
    how: str, faces: Path, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_females(faces / "val", how)
    run = train(f"data.root={faces}", "trainer.max_epochs=1", "data.holdout=0", "calibration=platt")
    said = capsys.readouterr().out
    assert "note: there is no female image in val" in said
    assert "no macro-F1: val has images of one class only" in said
    val = facts(run)["val"]
    assert val["f1_macro"] is val["f1_female"] is None
    assert 0 <= val["recall_male"] <= 1
    assert facts(run)["objective"]["value"] is None
    card = (run / MODEL).with_suffix(".md").read_text()
    assert re.search(r"\| val \| \d+ \| \d+ \| - \| - \| [01]\.", card)


@pytest.mark.slow
def test_one_class_in_a_full_report(faces: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    remove_females(faces / "val", "folder")
    run = train(f"data.root={faces}", "experiment=robust", "trainer.max_epochs=1")
    assert "no macro-F1: all images have the same label" in capsys.readouterr().out
    page = (run / "report" / "report.html").read_text()
    assert "All images have the same label" in page
    assert "<td>None" not in page
    lines = ["path,label,split", *(f"{path},female,val" for path in (faces / "train" / "female").iterdir())]
    Path("faces.csv").write_text("\n".join(lines))
    assert report.main(["data.csv=faces.csv", f"model={run}/{MODEL}"]) == 0


@pytest.mark.parametrize("labels", [("male", "male", "female"), ("female", "male", "male")])
def test_one_class_in_a_table(labels: tuple[str, ...], drawn: Path, train: Run, fails: Fails) -> None:
    """In dev and val it is said; in train it can't be."""
    lines = ["path,label,split"]
    for split, label in zip(("dev", "val", "train"), labels):
        lines += [f"{path},{label},{split}" for path in sorted((drawn / "train" / label).iterdir())[:8]]
    other = "male" if labels[2] == "female" else "female"
    Path("faces.csv").write_text("\n".join(lines))
    assert fails(train, "data=manifest", "data.csv=faces.csv").code == "no-images"
    lines += [f"{path},{other},train" for path in sorted((drawn / "train" / other).iterdir())[8:]]
    Path("faces.csv").write_text("\n".join(lines))
    run = train("data=manifest", "data.csv=faces.csv", "trainer.max_epochs=1")
    assert facts(run)["dev"]["f1_macro"] is None
    assert facts(run)["dev"]["images"] == 8


def test_an_empty_split_is_an_error(faces: Path, train: Run, fails: Fails) -> None:
    for image in (faces / "val").glob("*/*.jpg"):
        image.unlink()
    failure = fails(train, f"data.root={faces}")
    assert failure.code == "no-images"
    assert "val" in failure.line


def test_the_model_is_on_disk_before_anything_is_printed(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the terminal is gone, or the tables fail."""

    def fail(*_: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("gender_cls.evaluation.tables.classification_report", fail)
    with pytest.raises(SystemExit):
        train("trainer.max_epochs=1", "data.holdout=0", name="piped")
    assert Predictor(Path("runs/piped") / MODEL).facts["metrics"]["val"]["images"] == 28


LIMITED = {
    "trainer.fast_dev_run=true": "nothing",
    "trainer.limit_train_batches=2": "limited",
    "trainer.limit_train_batches=0.5": "limited",
    "trainer.limit_val_batches=0": "limited",
    "trainer.limit_predict_batches=1": "limited",
    "trainer.overfit_batches=1": "nothing",
    "debug=limit": "limited",
    "debug=fast_dev_run": "nothing",
}
OFTEN = ("trainer.fast_dev_run=true", "trainer.limit_train_batches=2", "trainer.limit_val_batches=0")  # by all of them
PARTS = [(EXPERIMENTS[0], override) for override in OFTEN]
SLOW_PARTS = [(EXPERIMENTS[0], override) for override in LIMITED if override not in OFTEN]
SLOW_PARTS += [(name, override) for name in EXPERIMENTS[1:] for override in OFTEN]
PARTS += [pytest.param(*part, marks=pytest.mark.slow) for part in SLOW_PARTS]


@pytest.mark.parametrize(("experiment", "override"), PARTS)
def test_parts_of_the_images_with_every_experiment(
    experiment: str, override: str, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("trainer.max_epochs=1", "data.holdout=0", name="whole")
    short = ("trainer.max_epochs=1", "data.augment.size=null")
    demo = ["data=demo", "data.root=demo", "data.train=[8,16]", "data.val=[4,4]"] if experiment == "demo" else []
    if experiment == "robust_efficientnet_lite0":
        pytest.importorskip("timm")
    run = train(f"experiment={experiment}", override, *short, *demo, name="part")
    assert facts(run)["val"]["images"] > 0
    assert (run / MODEL).exists() == (LIMITED[override] == "limited")
    assert not (run / "report").exists()
    if LIMITED[override] == "limited":
        assert "note: predict.py takes this model only if it is named" in capsys.readouterr().out
        assert Predictor(run / MODEL).facts["limited"]
    assert newest_model() == str((whole / MODEL).relative_to(Path.cwd()))


SUBDIRS = {
    "usual": (),
    "nested": ("hydra.sweep.subdir=by_seed/${seed}/${hydra.job.num}",),
    "overrides": ("hydra.sweep.subdir=${hydra.job.override_dirname}",),
    "one": ("hydra.sweep.subdir=same",),
    "no output": ("hydra.output_subdir=null",),
    "other output": ("hydra.output_subdir=config",),
}


@pytest.mark.parametrize("kind", ["usual", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(SUBDIRS)[1:])])
def test_a_sweep_ends_with_its_table(kind: str, train: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("trainer.max_epochs=1", "data.holdout=0.2", "hydra.sweep.dir=sweep")
    for seeds, failed in (("1,2,x", 1), ("3,4", 0)):  # the second one in the folder of the first
        capsys.readouterr()
        if failed:
            with pytest.raises(SystemExit, match="1 of 3 jobs failed"):
                train("-m", f"seed={seeds}", *short, *SUBDIRS[kind])
        else:
            train("-m", f"seed={seeds}", *short, *SUBDIRS[kind])
        said = capsys.readouterr().out
        table = said[said.index("ranked by") :].splitlines()
        assert len(table) > 2 + failed
        rows = (in_tmp / "sweep" / "sweep.csv").read_text().splitlines()[1:]
        assert len(rows) == len(seeds.split(","))
        assert sum("seed=x" in row and "give an integer" in row for row in rows) == failed
        assert all(any(f"seed={seed}" in row for row in rows) for seed in seeds.split(","))


def test_a_failed_job_gives_a_number(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweepers such as Ax and Nevergrad compute with it."""
    returned = []
    from gender_cls.training import sweep

    on_job_end = sweep.SweepTable.on_job_end

    def note(self: sweep.SweepTable, config: object, job_return: sweep.JobReturn, **kwargs: object) -> None:
        returned.append(job_return.return_value)
        on_job_end(self, config, job_return, **kwargs)

    monkeypatch.setattr(sweep.SweepTable, "on_job_end", note)
    with pytest.raises(SystemExit, match="1 of 2 jobs failed"):
        train("-m", "seed=1,x", "trainer.max_epochs=1", "data.holdout=0.2")
    assert [isinstance(value, float) for value in returned] == [True, True]
    assert returned[0] > returned[1] == 0.0


@pytest.mark.slow
def test_nothing_of_the_machine_leaves_it(faces: Path, train: Run, backbone_file: Path, in_tmp: Path) -> None:
    """No absolute path and no name of the user in what is passed on: .pth, .json, card, ONNX, safetensors, report."""
    (faces / "train" / "male" / "bad_0001.jpg").touch()
    here = (f"data.root={faces}", f"model.weights={backbone_file}", f"features.dir={in_tmp}/store")
    run = train("experiment=robust", *here, "trainer.max_epochs=1")
    for name in ("model.onnx", "model.safetensors"):
        assert export([f"model={run}/{MODEL}", f"to={run}/{name}"]) == 0
    lines = ["path,label,split", *(f"{path},{path.parent.name},val" for path in sorted((faces / "val").glob("*/*")))]
    elsewhere = in_tmp / "tables"
    elsewhere.mkdir()
    (elsewhere / "faces.csv").write_text("\n".join(lines))  # with absolute paths, of images elsewhere
    assert report.main([f"data.csv={elsewhere}/faces.csv", f"model={run}/{MODEL}", f"out={run}/other"]) == 0
    user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip() or "nobody"
    files = [run / name for name in (MODEL, "Binary_Classification_model.json", "Binary_Classification_model.md")]
    files += [run / "model.onnx", run / "model.safetensors", *(run / "report").iterdir(), *(run / "other").iterdir()]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        for part in (in_tmp, ROOT, Path.home(), backbone_file.parent, faces):
            if part != Path("/"):
                assert bytes(part) not in content, (file, part)
        if file.suffix != ".png" and user != "root":
            assert user.encode() not in content
    table = (run / "other" / "predictions.csv").read_text()
    assert "\nval/female/" in table or "\nfemale/" in table
    assert Predictor(run / MODEL).facts["weights"]["name"] == backbone_file.name
