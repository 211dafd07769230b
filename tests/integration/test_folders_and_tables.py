"""Folders and tables as people have them, through train.py, predict.py and the report."""

import csv
import io
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

import pillow_heif
import pyarrow
import pytest
import torch
from conftest import Fails, Run, script
from PIL import Image
from pyarrow import parquet

from gender_cls.evaluation import report

MODEL = "Binary_Classification_model.pth"
SHORT = ("trainer.max_epochs=1", "data.holdout=0")


def head(run: Path) -> torch.Tensor:
    state = torch.load(run / MODEL, weights_only=True)
    return torch.cat([state["fc.weight"].ravel(), state["fc.bias"]])


def facts(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def as_heic(path: Path) -> None:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.open(path)).save(buffer, format="HEIF")
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def phone(faces: Path) -> Path:
    """Every other image as phones write it, some of them under their own ending."""
    for number, path in enumerate(sorted(faces.glob("*/*/*.jpg"))[::2]):
        as_heic(path)
        if number % 2:
            path.rename(path.with_suffix(".HEIC"))
    return faces


MORE_TABLES = ((",", "utf-8-sig"), ("\t", "utf-8"))
SLOW_STARTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("fork", "spawn", "forkserver")]


@pytest.fixture(params=SLOW_STARTS)
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def test_heic_in_workers_reports_and_second_runs(start_method: str, phone: Path, train: Run) -> None:
    own = (f"data.root={phone}", *SHORT, "features.precision=fp32")
    once = train(*own, "data.num_workers=1", f"features.dir=store_{start_method}", name="once")
    again = train(*own, "data.num_workers=0", "features.dir=another", name="again")  # which trusts what was remembered
    for run in (once, again):
        assert facts(run)["data"]["skipped"] == []
        assert facts(run)["val"]["images"] == 28
    assert torch.equal(head(once), head(again))
    assert report.main([f"data.root={phone}", f"model={once}/{MODEL}"]) == 0
    clean = json.loads((once / "report_Task_A_Dataset" / "metrics.json").read_text())["clean"]
    assert clean["images"] == 28
    assert clean["confusion"] == facts(once)["val"]["confusion"]


def test_heic_without_its_reader_is_named_before_training(
    phone: Path, train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that could trust what an earlier one, which had the reader, remembered."""
    train(f"data.root={phone}", *SHORT)
    for module in ("gender_cls.transforms.decode", "gender_cls.data.validation"):
        monkeypatch.setattr(f"{module}.find_spec", lambda _: None)
    failure = fails(train, f"data.root={phone}", *SHORT)
    assert failure.code == "bad-data"
    assert "HEIC needs the extra `formats`" in failure.line


def test_what_is_ignored_is_said_by_every_command(faces: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train(f"data.root={faces}", *SHORT, name="plain")
    male = faces / "train" / "male"
    for name in ("notes.txt", ".DS_Store", "Thumbs.db", "@eaDir/x.jpg", "more/a/b.xmp"):
        (male / name).parent.mkdir(parents=True, exist_ok=True)
        (male / name).touch()
    extra, moved = sorted(male.glob("*.jpg"))[:2]
    extra.rename(male / "more" / extra.stem)  # without its ending
    outside = faces.parent / "outside"
    outside.mkdir()
    moved.rename(outside / moved.name)
    (male / "linked").symlink_to(outside)
    (male / "circle").symlink_to(male)
    capsys.readouterr()
    run = train(f"data.root={faces}", *SHORT, "data.identity=null")
    said = "ignored as no images: 1 .db, 1 .txt, 1 .xmp, 1 @eaDir, 1 hidden"
    assert f"note: {said}" in capsys.readouterr().out
    counted = {(row["split"], row["class"]): row["images"] for row in facts(run)["data"]["counts"]}
    assert counted[("train", "male")] == 32
    with pytest.raises(SystemExit):
        script("predict.py", f"img={male}", f"model={plain}/{MODEL}", "out=o.csv")
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_without_splits_under_other_names(faces: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table with the same images, without a column split, is split."""
    for number, name in enumerate(("Women", "f")):
        shutil.move(faces / ("train", "val")[number] / "female", faces / name)
    shutil.move(faces / "train" / "male", faces / "MEN")
    for split in ("train", "val"):
        shutil.rmtree(faces / split)
    by_folder = train(f"data.root={faces}", *SHORT, name="folder")
    rows = [f"{path},{'male' if path.parent.name == 'MEN' else 'F'}" for path in sorted(faces.glob("*/*.jpg"))]
    Path("faces.csv").write_text("\n".join(["path,label", *rows]))
    by_table = train("data=manifest", "data.csv=faces.csv", *SHORT, name="table")
    assert facts(by_folder)["data"] == facts(by_table)["data"]
    assert {row["split"] for row in facts(by_folder)["data"]["counts"]} == {"train", "val"}
    capsys.readouterr()
    assert report.main([f"data.root={faces}", f"model={by_folder}/{MODEL}"]) == 0
    assert "the data bring no split" in capsys.readouterr().out
    clean = json.loads((by_folder / "report_Task_A_Dataset" / "metrics.json").read_text())["clean"]
    assert clean["images"] == facts(by_folder)["val"]["images"]


@pytest.mark.slow
def test_numbers_as_classes_need_the_map(faces: Path, train: Run, fails: Fails) -> None:
    for split in ("train", "val"):
        (faces / split / "female").rename(faces / split / "1")
        (faces / split / "male").rename(faces / split / "0")
    failure = fails(train, f"data.root={faces}", *SHORT)
    assert failure.code == "not-found"
    for part in ("holds 0, 1", "in UTKFace 0 is male", "'data.classes={female: [1], male: [0]}'"):
        assert part in failure.line
    classes = "data.classes={female: [1], male: [0]}"
    run = train(f"data.root={faces}", *SHORT, classes)
    counts = {(row["split"], row["class"]): row["images"] for row in facts(run)["data"]["counts"]}
    assert counts == {("train", "female"): 16, ("train", "male"): 32, ("val", "female"): 12, ("val", "male"): 16}
    assert report.main([f"data.root={faces}", f"model={run}/{MODEL}"]) == 0  # it knows the map of the run
    paths = sorted(map(str, faces.glob("*/[01]/*.jpg")))
    table = pyarrow.table({"path": paths, "label": [float(Path(path).parent.name) for path in paths]})
    parquet.write_table(table, "faces.parquet")
    assert fails(train, "data=manifest", "data.csv=faces.parquet").code == "bad-data"
    by_table = train("data=manifest", "data.csv=faces.parquet", *SHORT, classes, name="table")
    assert sum(row["images"] for row in facts(by_table)["data"]["counts"] if row["class"] == "female") == 28
    assert fails(train, f"data.root={faces}", "data.classes={female: [1], man: [0]}").code == "bad-value"
    assert fails(train, f"data.root={faces}", "data.classes={female: [1, 0], male: [0]}").code == "conflict"


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "utf-16"), *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_TABLES)]
)
def test_one_reader_of_tables_for_all_commands(
    delimiter: str, encoding: str, drawn: Path, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(drawn.glob("*/*/*.jpg"))
    with open("faces.csv", "w", newline="", encoding=encoding) as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow([" Path", "LABEL ", "Split", "Group"])
        rows.writerows([path, path.parent.name.title(), path.parts[-3].upper(), "a,b;c"] for path in paths)
    run = train("data=manifest", "data.csv=faces.csv", "data.group=GROUP", *SHORT)
    assert facts(run)["val"]["images"] == 28
    assert report.main(["data.csv=faces.csv", f"model={run}/{MODEL}", "out=report"]) == 0
    script_predict("img=@faces.csv", run)
    with open("o.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == list(map(str, paths))


def script_predict(image: str, run: Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        script("predict.py", image, f"model={run}/{MODEL}", "out=o.csv")
    assert stop.value.code == code


@pytest.mark.slow
def test_names_in_another_unicode_form_and_the_home(
    faces: Path, train: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(in_tmp))
    composed, decomposed = (normalize(form, "Gesichter_é") for form in ("NFC", "NFD"))
    faces.rename(in_tmp / decomposed)
    image = min((in_tmp / decomposed / "val" / "male").iterdir())
    image.rename(image.with_name(f"{decomposed}.jpg"))
    run = train(f"data.root=~/{composed}/", *SHORT, "features.dir=~/store", "data.identity=null")
    assert (in_tmp / "store").is_dir()
    assert not Path("~").exists()
    Path("list.txt").write_text(f"~/{composed}/val/male/{composed}.jpg\n{composed}/val/male/{composed}.jpg\n")
    script_predict("img=@~/list.txt", Path(f"~/{run.relative_to(in_tmp)}"))
    with open("o.csv", newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == ["", ""]
    script_predict(f"img=~/{composed}/val", run)
    script_predict(f"img=~/{composed}/val/*/{composed[:4]}*.jpg", run)
    assert report.main([f"data.root=~/{composed}", f"model=~/runs/run/{MODEL}", "out=~/report"]) == 0
    assert (in_tmp / "report" / "report.html").exists()


def test_no_control_byte_of_a_file_reaches_the_terminal(
    faces: Path, train: Run, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\x07\r\u202egpj"
    bad = min((faces / "train" / "male").iterdir())
    bad.write_bytes(b"")
    bad.rename(bad.with_name(f"{evil}.jpg"))
    shutil.copy(min((faces / "train" / "female").iterdir()), faces / "val" / "female" / f"{evil}_0001.jpg")
    train(f"data.root={faces}", *SHORT, "trainer.enable_progress_bar=false")
    said = "".join(capsys.readouterr())
    Path("faces.csv").write_text(f"path,label\n{evil},m{evil}\n")
    said += fails(train, "data=manifest", "data.csv=faces.csv").line
    Path("faces.csv").write_text(f"pa{evil}th,label\n")
    said += fails(train, "data=manifest", "data.csv=faces.csv").line
    (faces / "train" / f"cat{evil}").mkdir()
    said += fails(train, f"data.root={faces}").line
    for path in ("list.txt", f"{evil}.txt"):
        Path(path).write_text(f"{evil}\n")
        with pytest.raises(SystemExit):
            script("predict.py", f"img=@{path}", "model=runs/run/Binary_Classification_model.pth")
        said += "".join(capsys.readouterr())
    assert evil[:4].encode("unicode_escape").decode() in said
    assert [line for line in said.splitlines() if any(c in line for c in evil if not c.isprintable())] == []


@pytest.mark.slow
def test_a_truncated_image_is_kept_on_request(faces: Path, train: Run, capsys: pytest.CaptureFixture[str]) -> None:
    cut = [min((faces / split / "male").iterdir()) for split in ("train", "val")]
    for path in cut:
        path.write_bytes(path.read_bytes()[:-300])
    for _ in range(2):  # the second run would trust what the first one remembers
        capsys.readouterr()
        run = train(f"data.root={faces}", *SHORT, "data.truncated=keep", name="keep")
        assert (
            f"note: 2 images are cut off or damaged; what is there is kept, first {cut[0]}" in capsys.readouterr().out
        )
        assert facts(run)["data"]["skipped"] == []
    assert report.main([f"data.root={faces}", f"model={run}/{MODEL}"]) == 0
    assert "2 images are cut off" in capsys.readouterr().out
    run = train(f"data.root={faces}", *SHORT, name="refuse")
    assert len(facts(run)["data"]["skipped"]) == 2
    script_predict(f"img={cut[0]}", run, code=1)
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={cut[0]}", f"model={run}/{MODEL}", "truncated=keep")
    assert "%  (the file is cut off or damaged; what is there was decoded)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        script("predict.py", f"img={cut[0]}", f"model={run}/{MODEL}", "truncated=keep", "out=k.csv")
    with open("k.csv", newline="") as file:
        assert "cut off" in next(csv.DictReader(file))["note"]


def test_an_image_of_many_pixels(faces: Path, train: Run, fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    large = faces / "val" / "male" / "large_0001.png"
    Image.new("L", (40, 60)).save(large)
    run = train(f"data.root={faces}", *SHORT, "data.max_pixels=2399")
    assert "40 x 60 pixels are more than max_pixels=2399" in capsys.readouterr().out
    assert [path for path, _ in facts(run)["data"]["skipped"]] == ["val/male/large_0001.png"]
    assert facts(train(f"data.root={faces}", *SHORT, "data.max_pixels=2400"))["data"]["skipped"] == []
    with pytest.raises(SystemExit, match="1"):
        script("predict.py", f"img={large}", f"model={run}/{MODEL}", "max_pixels=2399")
    assert "max_pixels=2399" in capsys.readouterr().err
    assert fails(script, "predict.py", f"img={large}", f"model={run}/{MODEL}", "max_pixels=many").code == "bad-value"
