"""Faces in photographs, as the commands find them.

A detector of colored blocks stands for the real one, so that most tests need no extra and know each face's place; those
with `has_detector` use the real one.
"""

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Fails, Run, script
from PIL import Image

from gender_cls import Predictor
from gender_cls.errors import ImageError
from gender_cls.inference import cli
from gender_cls.transforms.centerface import NEEDED, CenterFace
from gender_cls.transforms.faces import TEMPLATE, Face

MODEL = "Binary_Classification_model.pth"
COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
Lines = Callable[..., tuple[list[str], list[str]]]

has_detector = pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="the extra `faces` is not installed")


def blocks(self: CenterFace, image: Image.Image) -> list[Face]:
    """Find a face in each block of a color."""
    pixels, found = np.asarray(image).astype(int), []
    for color in COLORS:
        rows, columns = np.nonzero(np.abs(pixels - color).max(2) < 60)
        if len(rows) > 3:
            left, top = columns.min(), rows.min()
            width, height = columns.max() + 1 - left, rows.max() + 1 - top
            box = (float(left), float(top), float(width), float(height))
            found.append(Face(box, TEMPLATE * (width, height) + (left, top), 0.875))
    return sorted(found, key=lambda face: face.box[0])


@pytest.fixture
def colored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colored blocks are faces."""
    monkeypatch.setattr(CenterFace, "find_faces", blocks)
    monkeypatch.setattr("gender_cls.transforms.centerface.version", lambda _: "0")
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda _: True)


def photo(path: str | Path, *faces: tuple[int, int, int], size: tuple[int, int] = (400, 200)) -> str:
    """Save a gray photograph with a face of each left, top and side, in the order of `COLORS`."""
    pixels = np.full((size[1], size[0], 3), 100, np.uint8)
    for (left, top, side), color in zip(faces, COLORS):
        pixels[top : top + side, left : left + side] = color
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def aligned(trained: Path, in_tmp: Path) -> str:
    """A model whose JSON says that it aligns faces."""
    shutil.copy(trained / MODEL, "aligned.pth")
    facts = json.loads((trained / MODEL).with_suffix(".json").read_text())
    facts["preprocessing"] |= {"faces": "align", "zoom": 0.7, "min_score": 0.5}
    Path("aligned.json").write_text(json.dumps(facts))
    return "model=aligned.pth"


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Run predict.py and return the lines of its output and of its errors."""

    def run(*arguments: str, code: int = 0) -> tuple[list[str], list[str]]:
        capsys.readouterr()
        assert cli.main(list(arguments)) == code
        said = capsys.readouterr()
        return said.out.splitlines(), said.err.splitlines()

    return run


def rows_of(table: str) -> list[dict[str, str]]:
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


SAID = r"(female|male)  \d+\.\d %"


def test_a_line_a_face_left_to_right(colored: None, aligned: str, lines: Lines) -> None:
    group = photo("group.png", (200, 50, 60), (20, 80, 40), (320, 20, 50))
    single, empty = photo("single.png", (150, 60, 80)), photo("empty.png")
    out, err = lines(f"img={group}", f"img={single}", f"img={empty}", aligned)
    assert len(out) == 5
    for number, line in enumerate(out[:3], 1):
        assert re.fullmatch(rf"group\.png  face {number} of 3  {SAID}", line)
    assert re.fullmatch(rf"single\.png  {SAID}", out[3])
    assert out[4] == "empty.png  no face"
    counts = re.fullmatch(r"3 images in [\d.]+ s: (.*)", err[-1])
    assert counts
    assert "1 no face" in counts[1]
    assert sum(map(int, re.findall(r"\d+", counts[1]))) == 5


def test_each_face_is_predicted_by_itself(colored: None, aligned: str, in_tmp: Path) -> None:
    places = [(20, 80, 40), (200, 50, 60), (320, 20, 50)]
    predictor = Predictor("aligned.pth")
    found = list(predictor.predict(photo("group.png", *places)))
    assert [each.box for each in found] == [(*map(float, place), float(place[2])) for place in places]
    assert [(each.face, each.faces, each.score) for each in found] == [(n, 3, 0.875) for n in (1, 2, 3)]
    for at, each in enumerate(found):
        alone = Image.new("RGB", (400, 200), (100, 100, 100))
        left, top, side = places[at]
        alone.paste(COLORS[at], (left, top, left + side, top + side))
        (expected,) = predictor.predict(alone)
        assert each.p_male == pytest.approx(expected.p_male, abs=1e-5)
    assert len({each.p_male for each in found}) == 3
    assert [face.box for face in predictor.find_faces("group.png")] == [each.box for each in found]
    with pytest.raises(ImageError, match="no such file"):
        predictor.find_faces("gone.png")


def test_small_faces_are_named_and_not_predicted(colored: None, aligned: str, lines: Lines) -> None:
    group = photo("group.png", (20, 80, 23), (200, 50, 60))
    out, err = lines(f"img={group}", aligned)
    assert out[0] == "group.png  face 1 of 2  too small"
    assert re.fullmatch(rf"group\.png  face 2 of 2  {SAID}", out[1])
    assert re.fullmatch(r"1 image in [\d.]+ s: 1 too small, 1 (fe)?male", err[-1])
    out, _ = lines(f"img={group}", aligned, "min_face=23")
    assert all(re.search(SAID, line) for line in out)
    out, _ = lines(f"img={group}", aligned, "min_face=61")
    assert [line.split("  ")[-1] for line in out] == ["too small"] * 2


def test_largest_and_none(colored: None, aligned: str, lines: Lines) -> None:
    group = photo("group.png", (2, 2, 55), (200, 50, 60), (320, 20, 50))
    out, _ = lines(f"img={group}", aligned, "faces=largest", "out=largest.csv")
    (row,) = rows_of("largest.csv")
    assert (row["face"], row["x"], row["width"]) == ("1", "200.0", "60.0")
    out, _ = lines(f"img={group}", aligned, "faces=none")
    assert re.fullmatch(rf"group\.png  {SAID}", *out)
    predictor = Predictor("aligned.pth", faces="none")
    (whole,) = predictor.predict(group)
    assert (whole.box, whole.face, whole.faces) == (None, 0, 0)


def test_a_model_of_whole_images_cuts_boxes_when_asked(
    colored: None, trained: Path, in_tmp: Path, lines: Lines
) -> None:
    model = f"model={trained / MODEL}"
    group = photo("group.png", (20, 80, 40), (200, 50, 60))
    out, _ = lines(f"img={group}", model)
    assert re.fullmatch(rf"group\.png  {SAID}", *out)
    out, _ = lines(f"img={group}", model, "cut=box")
    assert [line.split("  ")[1] for line in out] == ["face 1 of 2", "face 2 of 2"]
    found = list(Predictor(trained / MODEL, cut="box").predict(group))
    image = Image.open(group)
    for each, (left, top, side) in zip(found, [(20, 80, 40), (200, 50, 60)], strict=True):
        half = side // 2
        cut = image.crop((left - half, top - half, left + side + half, top + side + half))  # twice the box's height
        (expected,) = Predictor(trained / MODEL).predict(cut)
        assert each.p_male == pytest.approx(expected.p_male, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["faces=some"], "bad-value", "faces=some: give all or largest or none"),
        (["cut=circle"], "bad-value", "cut=circle: give box"),
        (["cut=box"], "conflict", "cut=box is for models trained on whole images"),
        (["min_face=0"], "bad-value", "min_face=0: give an integer of at least 1"),
        (["min_face=x"], "bad-value", "min_face=x: give an integer"),
        (["min_score=1"], "bad-value", "min_score=1.0: give a number above 0 and below 1"),
        (["min_score=0"], "bad-value", "min_score=0.0: give a number above 0 and below 1"),
        (["min_score=much"], "bad-value", "min_score=much is not a number"),
    ],
)
def test_what_can_not_be_asked(
    arguments: list[str], code: str, says: str, colored: None, aligned: str, fails: Fails
) -> None:
    failure = fails(lambda: script("predict.py", f"img={photo('p.png')}", aligned, *arguments))
    assert failure.code == code
    assert says in failure.line


def test_without_the_extra_the_way_out_is_named(aligned: str, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo("p.png", (150, 60, 80))
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda name: name not in NEEDED)
    failure = fails(lambda: script("predict.py", f"img={image}", aligned))
    assert failure.code == "missing-package"
    assert 'pip install -e ".[faces]"' in failure.line
    assert "faces=none" in failure.line
    assert cli.main([f"img={image}", aligned, "faces=none"]) == 0
    failure = fails(lambda: script("train.py", "data.root=nowhere", "data.faces=align", "model.weights=null"))
    assert failure.code == "missing-package"
    assert "data.faces=none" in failure.line


def test_a_table_has_a_row_a_face(colored: None, aligned: str, lines: Lines) -> None:
    images = [photo("group.png", (200, 50, 60), (20, 80, 40)), photo("empty.png"), photo("one.png", (9, 9, 90))]
    Path("bad.png").write_text("no image")
    given = [f"img={name}" for name in (*images, "bad.png")]
    for suffix in ("csv", "jsonl"):
        lines(*given, aligned, f"out=o.{suffix}", code=1)
    rows = rows_of("o.csv")
    assert [row["path"] for row in rows] == ["group.png", "group.png", "empty.png", "one.png", "bad.png"]
    assert [row["face"] for row in rows] == ["1", "2", "", "1", ""]
    assert [rows[0][name] for name in ("x", "y", "width", "height", "score")] == [
        "20.0",
        "80.0",
        "40.0",
        "40.0",
        "0.875",
    ]
    assert (rows[2]["label"], rows[2]["p_male"], rows[2]["error"], rows[2]["x"]) == ("no face", "", "", "")
    assert rows[4]["error"]
    records = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [(r["path"], r["face"], r["x"], r["p_male"]) for r in records] == [
        (row["path"], *(float(cell) if (cell := row[name]) else None for name in ("face", "x", "p_male")))
        for row in rows
    ]


@pytest.mark.slow
def test_a_killed_run_never_leaves_half_of_an_image(colored: None, aligned: str, in_tmp: Path, lines: Lines) -> None:
    many = Path("many")
    many.mkdir()
    for number in range(70):
        photo(
            many / f"{number:02}.png", *[(20 + 90 * at, 50, 40 + 5 * at) for at in range(number % 5)], size=(400, 120)
        )
    lines("img=many", aligned, "out=whole.csv")
    code = (
        "import os, signal, sys\nimport pytest\nimport test_prediction_by_face\nfrom gender_cls.inference import cli\n"
        "from gender_cls.inference.journal import Journal\nfrom gender_cls.transforms import centerface\n"
        "centerface.CenterFace.find_faces = test_prediction_by_face.blocks\ncenterface.version = lambda _: '0'\n"
        "import gender_cls.errors\ngender_cls.errors.find_spec = lambda _: True\nwrite = Journal.write\n"
        "def stop(self, rows):\n    write(self, rows)\n"
        "    if len(self) >= 48: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.write = stop\ncli.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "img=many", aligned, "out=cut.csv"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (unfinished,) = Path().glob("cut.csv.part-*")
    rows = unfinished.read_text().splitlines(keepends=True)
    for torn in range(1, 8):  # the last rows are lost, in the middle of an image's faces
        unfinished.write_text("".join(rows[:-torn]))
        _, err = lines("img=many", aligned, "out=cut.csv")
        assert err[1].startswith("continuing after ")
        whole, cut = rows_of("whole.csv"), rows_of("cut.csv")
        assert [{**row, "p_male": "", "confidence": ""} for row in cut] == [
            {**row, "p_male": "", "confidence": ""} for row in whole
        ]
        Path("cut.csv").unlink()


def test_a_montage_shows_the_boxes(colored: None, aligned: str, lines: Lines) -> None:
    image = photo("group.png", (40, 50, 60), (240, 80, 80))
    lines(f"img={image}", aligned, "montage=sheet.png")
    boxed = np.asarray(Image.open("sheet.png")).astype(int)
    lines(f"img={image}", aligned, "montage=plain.png", "faces=none")
    plain = np.asarray(Image.open("plain.png")).astype(int)
    rows = slice(-120, None)  # without the text
    changed = np.abs(boxed[rows] - plain[rows]).max(2) > 30
    assert 200 < changed.sum() < 3000  # two outlines


def portraits(root: Path) -> None:
    """Images in which a block stands to the left of the middle or to the right, by label, and some without."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 24), ("val", 12)):
        for label, name in enumerate(("female", "male")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for at in range(number):
                side = int(generator.integers(30, 50))
                face = (40, 40, side), (90, 10, 12)
                pixels = np.full((128, 128, 3), (60, 60, 200 - 120 * label), np.uint8)
                path = folder / f"{name}{split}{at // 2:02}_{at:04}.png"
                photo(path, *face[: 1 + at % 2] if at else [], size=(128, 128))
                if at:
                    marked = np.asarray(Image.open(path)).copy()
                    marked[52 : 52 + side // 3, 46 : 40 + side // 2] = (250, 200 * label, 0)
                    Image.fromarray(marked).save(path)
                else:
                    Image.fromarray(pixels).save(path)


@pytest.mark.slow
def test_training_on_aligned_faces(colored: None, train: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    portraits(in_tmp / "faces")
    overrides = ["data.root=faces", "data.faces=align", "data.zoom=0.7", "trainer.max_epochs=6", "data.holdout=0"]
    overrides += ["model.optimizer.lr=0.1", "data.augment.landmarks=[0.04,0.05,2.5]", "data.augment.frame=[0.8,1.2]"]
    run = train(*overrides, "report=full", "data.size=32", "calibration=platt")
    said = capsys.readouterr().out
    assert re.search(r"split +class +images +identities +several faces +no face", said)
    assert re.search(r"train +female +24 +12 +12 +1\b", said)
    assert "no face is found in 4 images" in said
    facts = json.loads((run / MODEL).with_suffix(".json").read_text())
    assert facts["preprocessing"]["faces"] == "align"
    assert facts["data"]["counts"][0]["no face"] == 1
    report = json.loads((run / "report" / "metrics.json").read_text())
    assert report["faces_found"]["clean"] == 22  # of 24
    assert set(report["framing"]) == {"0.5", "0.65", "0.8", "1.0", "1.25"}
    assert report["framing"]["1.0"] == report["clean"]
    page = (run / "report" / "report.html").read_text()
    assert "<th>faces found</th>" in page
    assert re.search(r"<tr><td>0\.65</td>", page)
    assert (run / "report" / "framing.png").exists()
    predicted = list(Predictor(run / MODEL).predict(sorted(Path("faces/val").rglob("*.png"))))
    assert sum(each.label == "no face" for each in predicted) == 2
    capsys.readouterr()
    train(*overrides, "calibration=none", name="again")  # landmarks and features are stored
    assert "computing" not in capsys.readouterr().out
    with_views = train(*overrides, "cached_views=0", "data.num_workers=2", "trainer.max_epochs=1", name="online")
    assert (with_views / MODEL).exists()


@pytest.mark.slow
def test_onnx_finds_faces_without_torch(colored: None, aligned: str, in_tmp: Path, lines: Lines) -> None:
    from gender_cls.inference import export

    image = photo("group.png", (20, 80, 40), (200, 50, 60))
    export.main([aligned, "to=model.onnx"])
    by_torch, by_onnx = (list(Predictor(model).predict(image)) for model in ("aligned.pth", "model.onnx"))
    assert [each.box for each in by_onnx] == [each.box for each in by_torch]
    for one, other in zip(by_torch, by_onnx):
        assert one.p_male == pytest.approx(other.p_male, abs=1e-4)
    code = "import sys\nfrom gender_cls import Predictor\nPredictor('model.onnx')\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    (folder,) = find_spec("skimage").submodule_search_locations  # type: ignore[union-attr, misc]
    return Image.open(Path(folder, "data", "astronaut.png")).convert("RGB")


@has_detector
def test_a_real_photograph(astronaut: Image.Image, aligned: str, lines: Lines) -> None:
    pair = Image.new("RGB", (1024, 512))
    pair.paste(astronaut, (0, 0))
    pair.paste(astronaut.rotate(20, Image.Resampling.BICUBIC), (512, 0))
    pair.save("pair.png")
    Image.new("RGB", (640, 480), "skyblue").save("sky.png")
    out, _ = lines("img=pair.png", "img=sky.png", aligned)
    assert [line.split("  ")[1] for line in out] == ["face 1 of 2", "face 2 of 2", "no face"]
    one, other = Predictor("aligned.pth").predict(pair)
    assert one.p_male == pytest.approx(other.p_male, abs=0.1)  # the same face


@has_detector
def test_many_photographs_give_what_each_gives_alone(astronaut: Image.Image, aligned: str, in_tmp: Path) -> None:
    """In threads, each with a detector of one thread."""
    images: list[Any] = [astronaut.rotate(angle).crop((60, 0, 440, 380)) for angle in range(-32, 32)]
    predictor = Predictor("aligned.pth", precision="fp32")
    together = list(predictor.predict(images))
    assert len(together) == 64
    for at in (0, 20, 63):
        (alone,) = predictor.predict(images[at])
        assert together[at].box == alone.box
        assert together[at].p_male == pytest.approx(alone.p_male, abs=1e-4)


@has_detector
@pytest.mark.slow
def test_spawned_workers_find_faces(astronaut: Image.Image, train: Run, in_tmp: Path) -> None:
    """As macOS and Windows start them: what they are sent must be picklable, also where nothing is stored."""
    for split, number in (("train", 6), ("val", 2)):
        for label, angle in (("female", 0), ("male", 5)):
            folder = Path("faces", split, label)
            folder.mkdir(parents=True)
            for at in range(number):
                image = astronaut.rotate(angle + at).crop((100, 0, 356, 256))
                image.resize((128, 128)).save(folder / f"{label}{split}{at}_0001.png")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        overrides = ("data.root=faces", "data.faces=align", "data.num_workers=1", "data.holdout=0")
        one = train(*overrides, "trainer.max_epochs=1", name="cached")
        other = train(*overrides, "trainer.max_epochs=1", "cached_views=0", name="online")
    finally:
        multiprocessing.set_start_method(before, force=True)
    for run in (one, other):
        counts = json.loads((run / "metrics.json").read_text())["data"]["counts"]
        assert [row["no face"] for row in counts] == [0, 0, 0, 0]


@has_detector
def test_faces_below_the_smallest_are_too_small(astronaut: Image.Image, aligned: str, lines: Lines) -> None:
    """Whatever `min_face` is, they are found, and larger ones get the same prediction."""
    photograph = Image.new("RGB", (1200, 900), "gray")
    photograph.paste(astronaut.crop((130, 20, 320, 210)), (100, 100))
    photograph.paste(astronaut.crop((130, 20, 320, 210)).resize((60, 60)), (800, 500))
    photograph.save("two.png")
    usual, _ = lines("img=two.png", aligned)
    assert all(re.search(SAID, line) for line in usual)
    larger, _ = lines("img=two.png", aligned, "min_face=60")
    assert larger == [usual[0], "two.png  face 2 of 2  too small"]


def test_a_broken_detector_is_no_broken_image(
    colored: None, aligned: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CenterFace, image: Image.Image) -> list[Face]:
        raise RuntimeError("bad allocation")

    image = photo("group.png", (20, 80, 40))
    monkeypatch.setattr(CenterFace, "find_faces", broken)
    (found,) = Predictor("aligned.pth").predict(image)
    assert (found.label, found.error) == ("", "can't be predicted: bad allocation")


@has_detector
def test_a_detector_that_can_not_be_loaded_is_one_error(
    aligned: str, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CenterFace) -> None:
        raise OSError("libonnx.so: no such file")

    monkeypatch.setattr(CenterFace, "_load", broken)
    failure = fails(lambda: script("predict.py", f"img={photo('p.png')}", aligned))
    assert failure.code == "bad-model"
    assert "the face detector can't be loaded (libonnx.so: no such file); pip install --force-reinstall" in failure.line
