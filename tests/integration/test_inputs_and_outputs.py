"""Inputs and outputs of predict.py: lists and patterns, tables and their journal, hostile files and places."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow.parquet
import pytest
from conftest import ROOT, Fails, script
from filelock import FileLock
from PIL import Image

from gender_cls.inference import journal
from gender_cls.inference.predictor import Predictor
from gender_cls.transforms.decode import Decoder

MODEL = "Binary_Classification_model.pth"


@pytest.fixture
def model(trained: Path) -> str:
    return f"model={trained / MODEL}"


@pytest.fixture
def many(drawn: Path, in_tmp: Path) -> list[str]:
    """More images than are predicted at once."""
    given = sorted(drawn.glob("*/*/*.jpg"))
    folder = in_tmp / "many"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.jpg").write_bytes(given[number % len(given)].read_bytes())
    return [f"many/{number:03}.jpg" for number in range(100)]


def predict(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        script("predict.py", *arguments)
    assert stop.value.code == code


def rows_of(file: str) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as table:
        return list(csv.DictReader(table))


def test_arguments_that_name_no_image(fails: Fails, in_tmp: Path, model: str) -> None:
    Path("empty.txt").write_text("\n")
    Path("empty").mkdir()
    Path("short.csv").write_text("id,path\n1\n")
    for image, code in {
        "@no.txt": "not-found", "@empty": "unreadable", "*.jpg": "not-found", "@empty.txt": "no-images",
        "empty": "no-images", "@short.csv": "bad-data",
    }.items():  # fmt: skip
        failure = fails(script, "predict.py", f"img={image}", model)
        assert failure.code == code
        assert f"img={image}" in failure.line


def test_a_table_in_three_formats(drawn: Path, in_tmp: Path, model: str) -> None:
    image = next(drawn.glob("val/male/*.jpg"))
    names = ["=1+1.jpg", "größe.jpg", "-x.jpg", b"f\xff.jpg".decode(errors="surrogateescape"), "gone.jpg"]
    for name in names[:-1]:
        Path(name).write_bytes(image.read_bytes())
    given = [f"img={name}" for name in names]
    for suffix in ("csv", "jsonl", "parquet"):
        predict(*given, model, f"out=o.{suffix}", code=1)
    table = rows_of("o.csv")
    assert [row["path"] for row in table] == ["'=1+1.jpg", "größe.jpg", "'-x.jpg", names[3], "gone.jpg"]
    lines = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == names  # as they are: this is for no spreadsheet
    columns = pyarrow.parquet.read_table("o.parquet").to_pydict()
    assert columns["path"] == [*names[:3], "f\\udcff.jpg", "gone.jpg"]
    for row, line, p_male in zip(table, lines, columns["p_male"], strict=True):
        assert line["p_male"] == p_male == (float(row["p_male"]) if row["p_male"] else None)
        assert line["label"] == row["label"]
    assert lines[-1] == {
        "path": "gone.jpg", "label": "", "confidence": None, "p_male": None, "error": "no such file or directory",
        "note": "", "face": None, "x": None, "y": None, "width": None, "height": None, "score": None,
    }  # fmt: skip
    assert sorted(map(str, Path().glob("o.*"))) == ["o.csv", "o.jsonl", "o.parquet"]


def test_names_do_not_control_the_terminal(
    drawn: Path, in_tmp: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2Jred\n\u202egpj.jpg"
    Path(name).write_bytes(next(drawn.glob("val/male/*.jpg")).read_bytes())
    predict(f"img={name}", model)
    assert capsys.readouterr().out.startswith(r"\x1b[2Jred\n\u202egpj.jpg  ")


def test_a_killed_run_is_continued(many: list[str], model: str, in_tmp: Path, trained: Path) -> None:
    """By SIGKILL, in the middle of a folder; the rows are those of an undisturbed run."""
    predict("img=many", model, "out=whole.csv")
    code = (
        "import os, signal, sys\nfrom gender_cls.inference.cli import main\n"
        "from gender_cls.inference.journal import Journal\nwrite = Journal.write\n"
        "def stop(self, rows):\n    write(self, rows)\n"
        "    if len(self) >= 48: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.write = stop\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "img=many", model, "out=cut.csv"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not Path("cut.csv").exists()
    (unfinished,) = Path().glob("cut.csv.part-*")
    with open(unfinished, "a") as file:
        file.write("many/048.jpg,fem")  # torn
    predicted = []
    predict_chunk = Predictor._predict_chunk

    def count(self: Predictor, run: Any, decode: Any, cutter: Any, images: list[str]) -> Any:
        predicted.extend(images)
        return predict_chunk(self, run, decode, cutter, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "_predict_chunk", count)
        predict("img=many", model, "out=cut.csv")
    assert sorted(predicted) == many[32:]  # 48 may have another face, of which nothing is left: its block is done again
    for one, two in zip(rows_of("whole.csv"), rows_of("cut.csv"), strict=True):
        assert (one["path"], one["label"]) == (two["path"], two["label"])
        assert float(one["p_male"]) == pytest.approx(float(two["p_male"]), abs=5e-5)
    assert not list(Path().glob("*.part*"))


@pytest.fixture
def unfinished(many: list[str], model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unfinished rows of a run that was stopped by Ctrl-C."""
    write = journal.Journal.write

    def stop(self: journal.Journal, rows: Iterable[journal.Row]) -> None:
        write(self, rows)
        if len(self) >= 48:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "write", stop)
        with pytest.raises(SystemExit, match="stopped"):
            script("predict.py", "img=many", model, "out=o.csv")
    (file,) = Path().glob("o.csv*")
    return file


def test_unfinished_rows_of_another_run_are_refused(
    unfinished: Path, trained: Path, model: str, fails: Fails, drawn: Path
) -> None:
    content = unfinished.read_bytes()
    other = Path("other.pth")
    other.write_bytes((trained / MODEL).read_bytes())  # without its JSON: other preprocessing
    for arguments in (
        (f"model={other}",),
        (model, "min_confidence=90"),
        (model, "prior=0.8"),
        (model, "precision=fp32"),
    ):
        failure = fails(script, "predict.py", "img=many", "out=o.csv", *arguments)
        assert failure.code == "resume-mismatch"
        assert f"{unfinished} holds unfinished rows of another model" in failure.line
    failure = fails(script, "predict.py", f"img={drawn / 'val'}", "img=many", "out=o.csv", model)
    assert failure.code == "resume-mismatch"
    assert f"{unfinished} holds unfinished rows of other images" in failure.line
    held = FileLock("o.csv.lock", thread_local=False)
    with ThreadPoolExecutor(1) as other_thread:  # as another process
        other_thread.submit(held.acquire).result()
        failure = fails(script, "predict.py", "img=many", "out=o.csv", model)
        assert failure.code == "conflict"
        assert "out=o.csv: another run" in failure.line
        other_thread.submit(held.release).result()
    assert unfinished.read_bytes() == content


def test_an_output_never_replaces_an_input(many: list[str], model: str, fails: Fails) -> None:
    Path("list.csv").write_text(f"path\n{many[0]}\n")
    for image, output in (("many", f"montage={many[0]}"), ("@list.csv", "out=list.csv")):
        failure = fails(script, "predict.py", f"img={image}", model, output)
        assert failure.code == "conflict"
        assert f"{output} is one of the inputs" in failure.line
    failure = fails(script, "predict.py", "img=many", model, "montage=sheet.jpg")
    assert failure.code == "bad-value"
    assert "montage=sheet.jpg" in failure.line
    failure = fails(script, "predict.py", f"img={many[0]}", model, "montage=no/sheet.png")
    assert failure.code == "not-writable"
    assert "montage=no/sheet.png: no such file" in failure.line


def test_a_full_disk_loses_no_row(many: list[str], model: str, in_tmp: Path) -> None:
    """By a limit on the size of files, which writing meets as it would meet the disk's end."""
    code = (
        "import resource, signal\nfrom gender_cls.inference.cli import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\nrun()"
    )
    command = [sys.executable, "-c", code, "img=many", model, "out=o.csv"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: out=o.csv: file too large; give a file that can be written; ")
    kept = int(
        re.search(r"the rows of (\d+) images are kept, and the same command continues from there", line).group(1)
    )  # type: ignore[union-attr]
    (unfinished,) = Path().glob("o.csv.part-*")
    assert unfinished.read_bytes().count(b"\r\n") - 1 >= kept > 0
    predict("img=many", model, "out=o.csv")
    assert [row["path"] for row in rows_of("o.csv")] == many


def hostile(folder: Path, image: bytes) -> dict[str, str]:
    """Make files that are not good images, and return a part of the error of each."""
    folder.mkdir()
    (folder / "truncated.jpg").write_bytes(image[: len(image) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("1", (11_000, 10_000)).save(folder / "small_bomb.png")
    values = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(values).save(folder / "nan.tiff")
    (folder / "dangling.jpg").symlink_to(folder / "nothing")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "folders").symlink_to(folder)  # followed once
    os.mkfifo(folder / "pipe.jpg")
    (folder / "pickle.png").write_bytes(b"\x80\x04\x95cos\nsystem\n")
    return {
        "truncated.jpg": "truncated", "empty.jpg": "is empty", "text.jpg": "not an image",
        "bomb.png": "pixels are more than max_pixels=100000000", "small_bomb.png": "11000 x 10000 pixels are more than",
        "nan.tiff": "not finite",
        "dangling.jpg": "no such file", "loop.jpg": "too many levels of symbolic links", "pickle.png": "not an image",
        "pipe.jpg": "not a regular file",
    }  # fmt: skip


def test_hostile_files_have_their_own_rows(drawn: Path, model: str, in_tmp: Path) -> None:
    image = next(drawn.glob("val/male/*.jpg")).read_bytes()
    errors = hostile(in_tmp / "bad", image)
    Image.new("RGB", (1, 1), "red").save("bad/dot.png")
    Image.new("RGB", (1, 20_000), "red").save("bad/line.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save("bad/moving.gif", save_all=True, append_images=frames[1:])
    pillow_heif.from_pillow(Image.open(io.BytesIO(image))).save("bad/phone.heic")
    Image.open(io.BytesIO(image)).save("bad/<b>markup & $x^2$.jpg")
    predict("img=bad", model, "out=o.csv", "montage=sheet.png", code=1)
    rows = {Path(row["path"]).name: row for row in rows_of("o.csv")}
    good = {"dot.png", "line.png", "moving.gif", "phone.heic", "<b>markup & $x^2$.jpg"}
    assert set(rows) == set(errors) | good
    for name, part in errors.items():
        assert part in rows[name]["error"].lower()
        assert rows[name]["label"] == rows[name]["p_male"] == ""
    for name in good:
        assert rows[name]["error"] == ""
        assert rows[name]["label"]
    assert Image.open("sheet.png").width > 100


def test_a_file_that_disappears_midway(
    many: list[str], model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Decoder.load

    def vanish(self: Decoder, path: str) -> Image.Image:
        Path(many[90]).unlink(missing_ok=True)
        return load(self, path)

    monkeypatch.setattr(Decoder, "load", vanish)
    predict("img=many", model, "out=o.csv", code=1)
    assert [row["path"] for row in rows_of("o.csv") if row["error"]] == [many[90]]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="has no users")
def test_a_file_that_may_not_be_read(drawn: Path, trained: Path, tmp_path: Path) -> None:
    """As another user where this one is root, who may read everything."""
    image = tmp_path / "secret.jpg"
    image.write_bytes(next(drawn.glob("val/male/*.jpg")).read_bytes())
    image.chmod(0)
    code = (
        "import os, sys\nfrom gender_cls.errors import ImageError\n"
        "from gender_cls.transforms.decode import Decoder\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: Decoder().load(sys.argv[1])\nexcept ImageError as error: print(error)"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if os.access(folder, os.W_OK) and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    done = subprocess.run([sys.executable, "-c", code, image], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "permission denied\n", done.stderr
