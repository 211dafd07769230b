"""What predict.py takes and leaves: lists and patterns, tables and their journal, hostile files and places."""

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT, script
from filelock import FileLock
from PIL import Image

import gender_cls
from gender_cls import images, journal
from gender_cls.inputs import expand
from gender_cls.predictor import CHUNK, FEW, Predictor

MODEL = "Binary_Classification_model.pth"
Fails = Callable[..., str]


@pytest.fixture
def model(trained: Path) -> str:
    return f"model={trained / MODEL}"


@pytest.fixture
def many(drawn: Path, in_tmp: Path) -> list[str]:
    """More pictures than are answered at once."""
    given = sorted(drawn.glob("*/*/*.jpg"))
    folder = in_tmp / "many"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.jpg").write_bytes(given[number % len(given)].read_bytes())
    return [f"many/{number:03}.jpg" for number in range(100)]


def ask(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        script("predict.py", *words)
    assert stop.value.code == code


def rows_of(file: str) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as table:
        return list(csv.DictReader(table))


def test_lists_patterns_and_folders_keep_their_order(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jpg", "a.png", "deep/er/c.JPG", "deep/.hidden/d.jpg", "list/e[1].jpg", "new\nline.jpg", "n.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    assert expand(".") == ["./a.png", "./b.jpg", "./new\nline.jpg", "./deep/er/c.JPG", "./list/e[1].jpg"]
    assert expand("*.jpg") == ["b.jpg", "new\nline.jpg"]
    assert expand("**/*.JPG") == ["deep/er/c.JPG"]
    assert expand("list/e[1].jpg") == ["list/e[1].jpg"]  # a file that has the pattern's name
    Path("list/plain.txt").write_text("../b.jpg\n\nx y.jpg\n/z.jpg")
    assert expand("@list/plain.txt") == ["list/../b.jpg", "list/x y.jpg", "/z.jpg"]
    Path("list/table.csv").write_bytes(b'\xef\xbb\xbfid,path\r\n1,"a,b.jpg"\r\n2,f\xff.jpg\r\n')
    assert [os.fsencode(path) for path in expand("@list/table.csv")] == [b"list/a,b.jpg", b"list/f\xff.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"new\nline.jpg\0b.jpg\0")))
    assert expand("-") == ["new\nline.jpg", "b.jpg"]


def test_what_names_no_picture(fails: Fails, in_tmp: Path, model: str) -> None:
    def start(word: str) -> None:
        script("predict.py", word, model)

    assert "img=@no.txt: no such file" in fails(start, "img=@no.txt")
    assert "no file has that name, or matches" in fails(start, "img=*.jpg")
    Path("empty.txt").write_text("\n")
    assert "img=@empty.txt names no picture" in fails(start, "img=@empty.txt")


def test_a_table_in_three_formats(drawn: Path, in_tmp: Path, model: str) -> None:
    picture = next(drawn.glob("val/male/*.jpg"))
    names = ["=1+1.jpg", "größe.jpg", "-x.jpg", b"f\xff.jpg".decode(errors="surrogateescape"), "gone.jpg"]
    for name in names[:-1]:
        Path(name).write_bytes(picture.read_bytes())
    given = [f"img={name}" for name in names]
    for ending in ("csv", "jsonl", "parquet"):
        ask(*given, model, f"out=o.{ending}", code=1)
    table = rows_of("o.csv")
    assert [row["path"] for row in table] == ["'=1+1.jpg", "größe.jpg", "'-x.jpg", names[3], "gone.jpg"]
    lines = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == names  # as they are: nothing here is a spreadsheet's
    columns = pyarrow.parquet.read_table("o.parquet").to_pydict()
    assert columns["path"] == [*names[:3], "f\\udcff.jpg", "gone.jpg"]
    for row, line, p_male in zip(table, lines, columns["p_male"], strict=True):
        assert line["p_male"] == p_male == (float(row["p_male"]) if row["p_male"] else None)
        assert line["label"] == row["label"]
    assert lines[-1] == {
        "path": "gone.jpg", "label": "", "confidence": None, "p_male": None, "error": "no such file or directory",
    }  # fmt: skip
    assert sorted(map(str, Path().glob("o.*"))) == ["o.csv", "o.jsonl", "o.parquet"]


def test_names_do_not_obey_on_a_terminal(
    drawn: Path, in_tmp: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2Jred\n\u202egpj.jpg"
    Path(name).write_bytes(next(drawn.glob("val/male/*.jpg")).read_bytes())
    ask(f"img={name}", model)
    assert capsys.readouterr().out.startswith(r"\x1b[2Jred\n\u202egpj.jpg  ")


def test_a_killed_run_is_continued(many: list[str], model: str, in_tmp: Path, trained: Path) -> None:
    """By SIGKILL, in the middle of a folder; the rows are those of an undisturbed run."""
    ask("img=many", model, "out=whole.csv")
    code = (
        "import os, signal, sys, predict\nfrom gender_cls.journal import Journal\nwrite = Journal.write\n"
        "def stop(self, rows):\n    write(self, rows)\n"
        "    if len(self) >= 48: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.write = stop\npredict.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "img=many", model, "out=cut.csv"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not Path("cut.csv").exists()
    (unfinished,) = Path().glob("cut.csv.part-*")
    with open(unfinished, "a") as file:
        file.write("many/048.jpg,fem")  # torn
    asked = []
    answer = Predictor._answer

    def count(self: Predictor, run: object, pictures: list[str]) -> object:
        asked.extend(pictures)
        return answer(self, run, pictures)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "_answer", count)
        ask("img=many", model, "out=cut.csv")
    assert sorted(asked) == many[48:]
    for one, two in zip(rows_of("whole.csv"), rows_of("cut.csv"), strict=True):
        assert (one["path"], one["label"]) == (two["path"], two["label"])
        assert float(one["p_male"]) == pytest.approx(float(two["p_male"]), abs=5e-5)
    assert not list(Path().glob("*.part*"))


@pytest.fixture
def unfinished(many: list[str], model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run has left that was stopped by Ctrl-C."""
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


def test_what_another_run_has_left_is_refused(
    unfinished: Path, trained: Path, model: str, fails: Fails, drawn: Path
) -> None:
    content = unfinished.read_bytes()
    other = Path("other.pth")
    other.write_bytes((trained / MODEL).read_bytes())  # without its JSON: other preprocessing
    for words in ((f"model={other}",), (model, "sure=90"), (model, "prior=0.8"), (model, "precision=fp32")):
        line = fails(script, "predict.py", "img=many", "out=o.csv", *words)
        assert f"{unfinished} holds unfinished rows of another model" in line
    line = fails(script, "predict.py", f"img={drawn / 'val'}", "img=many", "out=o.csv", model)
    assert f"{unfinished} holds unfinished rows of other pictures" in line
    held = FileLock("o.csv.lock", thread_local=False)
    with ThreadPoolExecutor(1) as other_thread:  # as another process
        other_thread.submit(held.acquire).result()
        assert "another run is writing it" in fails(script, "predict.py", "img=many", "out=o.csv", model)
        other_thread.submit(held.release).result()
    assert unfinished.read_bytes() == content


def test_an_output_never_replaces_an_input(many: list[str], model: str, fails: Fails) -> None:
    assert f"montage={many[0]} is one of the inputs" in fails(
        script, "predict.py", "img=many", model, f"montage={many[0]}"
    )
    Path("list.csv").write_text(f"path\n{many[0]}\n")
    assert "out=list.csv is one of the inputs" in fails(script, "predict.py", "img=@list.csv", model, "out=list.csv")
    assert "ends in .png" in fails(script, "predict.py", "img=many", model, "montage=sheet.jpg")


def test_a_full_disk_loses_no_row(many: list[str], model: str, in_tmp: Path) -> None:
    """By a limit on the size of files, which writing meets as it would meet the disk's end."""
    code = (
        "import resource, signal, sys, predict\nfrom gender_cls.words import run_command\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\nrun_command(predict.main)"
    )
    command = [sys.executable, "-c", code, "img=many", model, "out=o.csv"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: out=o.csv: file too large; give a file that can be written; ")
    kept = int(re.search(r"(\d+) rows are kept, and the same command goes on from there", line).group(1))  # type: ignore[union-attr]
    (unfinished,) = Path().glob("o.csv.part-*")
    assert unfinished.read_bytes().count(b"\r\n") - 1 >= kept > 0
    ask("img=many", model, "out=o.csv")
    assert [row["path"] for row in rows_of("o.csv")] == many


def hostile(folder: Path, picture: bytes) -> dict[str, str]:
    """Files that are no good picture, and a word of what is said of each."""
    folder.mkdir()
    (folder / "truncated.jpg").write_bytes(picture[: len(picture) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("1", (11_000, 10_000)).save(folder / "small_bomb.png")
    values = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(values).save(folder / "nan.tiff")
    (folder / "dangling.jpg").symlink_to(folder / "nothing")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "folders").symlink_to(folder)  # never followed
    os.mkfifo(folder / "pipe.jpg")
    (folder / "pickle.png").write_bytes(b"\x80\x04\x95cos\nsystem\n")
    return {
        "truncated.jpg": "truncated", "empty.jpg": "not a picture", "text.jpg": "not a picture",
        "bomb.png": "exceeds limit", "small_bomb.png": "11000 x 10000 pixels; give from 1 to 100,000,000",
        "nan.tiff": "not finite",
        "dangling.jpg": "no such file", "loop.jpg": "too many levels of symbolic links", "pickle.png": "not a picture",
        "pipe.jpg": "no regular file",
    }  # fmt: skip


def test_hostile_files_have_their_own_rows(drawn: Path, model: str, in_tmp: Path) -> None:
    picture = next(drawn.glob("val/male/*.jpg")).read_bytes()
    said = hostile(in_tmp / "bad", picture)
    Image.new("RGB", (1, 1), "red").save("bad/dot.png")
    Image.new("RGB", (1, 20_000), "red").save("bad/line.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save("bad/moving.gif", save_all=True, append_images=frames[1:])
    pillow_heif.from_pillow(Image.open(io.BytesIO(picture))).save("bad/phone.heic")
    Image.open(io.BytesIO(picture)).save("bad/<b>markup & $x^2$.jpg")
    ask("img=bad", model, "out=o.csv", "montage=sheet.png", code=1)
    rows = {Path(row["path"]).name: row for row in rows_of("o.csv")}
    good = {"dot.png", "line.png", "moving.gif", "phone.heic", "<b>markup & $x^2$.jpg"}
    assert set(rows) == set(said) | good
    for name, words in said.items():
        assert words in rows[name]["error"].lower()
        assert rows[name]["label"] == rows[name]["p_male"] == ""
    for name in good:
        assert rows[name]["error"] == ""
        assert rows[name]["label"]
    assert Image.open("sheet.png").width > 100


def test_a_file_that_disappears_midway(
    many: list[str], model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = images.load_rgb

    def vanish(path: str) -> Image.Image:
        Path(many[90]).unlink(missing_ok=True)
        return load(path)

    monkeypatch.setattr(images, "load_rgb", vanish)
    ask("img=many", model, "out=o.csv", code=1)
    assert [row["path"] for row in rows_of("o.csv") if row["error"]] == [many[90]]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="has no users")
def test_a_file_that_may_not_be_read(drawn: Path, trained: Path, tmp_path: Path) -> None:
    """As another user where this one is root, who may read everything."""
    picture = tmp_path / "secret.jpg"
    picture.write_bytes(next(drawn.glob("val/male/*.jpg")).read_bytes())
    picture.chmod(0)
    code = (
        "import os, sys\nfrom gender_cls.images import PictureError, load_rgb\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: load_rgb(sys.argv[1])\nexcept PictureError as error: print(error)"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if os.access(folder, os.W_OK) and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    done = subprocess.run([sys.executable, "-c", code, picture], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "permission denied\n", done.stderr


def mutated(random_: random.Random, content: bytes) -> bytes:
    """A few bytes changed, cut, doubled or cut off."""
    data = bytearray(content)
    for _ in range(random_.randrange(1, 8)):
        at = random_.randrange(len(data))
        what = random_.randrange(4)
        if what == 0:
            data[at] = random_.randrange(256)
        elif what == 1:
            del data[at : at + random_.randrange(1, 64)]
        elif what == 2:
            data[at:at] = data[at : at + random_.randrange(1, 64)]
        else:
            data[at : at + 4] = random_.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.slow
def test_fuzz(drawn: Path, trained: Path, tmp_path: Path) -> None:
    """A row for each of many mutated files, and neither a crash nor a hang; FUZZ=50000 asks more of it."""
    random_ = random.Random(0)
    face = Image.open(next(drawn.glob("val/male/*.jpg"))).convert("RGB")
    sources = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        face.save(buffer, kind)
        sources.append(buffer.getvalue())
    number = int(os.environ.get("FUZZ", 2000))
    predictor = Predictor(trained / MODEL)
    answered, started = 0, time.monotonic()
    for first in range(0, number, 500):
        paths = []
        for place in range(first, min(number, first + 500)):
            paths.append(str(tmp_path / f"{place % 500}.jpg"))
            Path(paths[-1]).write_bytes(mutated(random_, random_.choice(sources)))
        answers = list(predictor.predict(paths))
        assert [answer.path for answer in answers] == paths
        assert all(bool(answer.error) != (answer.p_male is not None) for answer in answers)
        answered += sum(not answer.error for answer in answers)
    assert 0.1 * number < answered < 0.9 * number  # both were tried
    assert time.monotonic() - started < 0.1 * number


def test_the_python_interface_takes_what_people_hold(drawn: Path, trained: Path) -> None:
    path = next(drawn.glob("val/male/*.jpg"))
    picture = Image.open(path).convert("RGB")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    given = [str(path), path, picture, array, array / 255, tensor, tensor / 255]
    predictor = gender_cls.Predictor(trained / MODEL)
    answers = list(predictor.predict(given))
    assert [answer.path for answer in answers] == [str(path), str(path), *[""] * 5]
    for answer in answers:
        assert answer.p_male == pytest.approx(answers[0].p_male, abs=1e-5)
    for one in given:
        (answer,) = predictor.predict(one)  # not in a list
        assert answer.p_male == pytest.approx(answers[0].p_male, abs=1e-5)
    wrong = [array.astype(float), np.zeros((2, 3, 4, 5), np.uint8), None, array / np.nan]
    assert all(answer.error for answer in predictor.predict(wrong))
    assert [answer.error for answer in predictor.predict(array.astype(np.int64))] == [
        "holds int64 that is not in 0..1; give uint8, or floats in 0..1"
    ]
    assert len(list(predictor.predict(picture for _ in range(FEW + CHUNK + 1)))) == FEW + CHUNK + 1  # from a generator
    assert list(predictor.predict([])) == []


def test_many_are_answered_as_few_are(many: list[str], trained: Path) -> None:
    exact = [answer.p_male for answer in Predictor(trained / MODEL, precision="fp32").predict(many)]
    one_by_one = [next(Predictor(trained / MODEL).predict([path])).p_male for path in many[:5]]
    assert exact[:5] == pytest.approx(one_by_one, abs=1e-5)
    usual = [answer.p_male for answer in Predictor(trained / MODEL).predict(many)]
    assert usual == pytest.approx(exact, abs=0.01)


def test_an_answer_that_is_no_number_is_an_error(trained: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(trained / MODEL)
    monkeypatch.setattr(predictor.runtime, "few", lambda _: lambda pixels: np.full(len(pixels), np.nan))
    (answer,) = predictor.predict(next(drawn.glob("val/male/*.jpg")))
    assert (answer.label, answer.error) == ("", "the model's answer is not a number")


def test_links_in_a_circle_do_not_go_on_for_ever(in_tmp: Path) -> None:
    Path("a/b").mkdir(parents=True)
    Path("a/b/x.jpg").write_text("")
    for name in ("a/one", "a/two", "a/b/three"):
        Path(name).symlink_to(in_tmp / "a")
    assert expand("a/**/*.jpg") == ["a/b/x.jpg"]
    assert expand("a") == ["a/b/x.jpg"]


def test_lines_end_as_lines_do(in_tmp: Path) -> None:
    Path("list.txt").write_bytes("a\u2028b.jpg\r\nc\x0cd.jpg\n".encode())
    assert expand("@list.txt") == ["a\u2028b.jpg", "c\x0cd.jpg"]
    Path("wide.txt").write_bytes("ä.jpg\r\n".encode("utf-16"))
    assert expand("@wide.txt") == ["ä.jpg"]


def test_a_row_is_safe_in_a_spreadsheet() -> None:
    for text in ("=1", "+1", "-1", "@x", "\tx", "\rx"):
        assert journal.safe_cell(text) == f"'{text}"
    assert journal.safe_cell("a=1") == "a=1"
