"""Tell female from male in picture files with a trained model.

  python predict.py img=photo.jpg
  python predict.py img=photo.jpg img="other photo (1).jpg"     several files; quote what the shell would split
  python predict.py img=folder                                  every picture below the folder
  python predict.py img='photos/**/*.jpg' img=@list.txt         a pattern; a list, a path a line or a CSV with path
  find . -name '*.jpg' -print0 | python predict.py img=-        a list from standard input
  python predict.py img=folder out=predictions.csv              a table, also .jsonl and .parquet
  python predict.py img=folder sure=90 prior=0.8                unsure below 90 %; four of five pictures show men
  python predict.py img=photo.jpg model=model.onnx              without torch; see python -m gender_cls.export --help

A line for each picture: its path, the label, and the model's confidence in it in % (50 to 100). Of a calibrated model
that is the share of such answers that are right, where the share of men among the pictures is the one that the line
"model:" names. What follows the first = is taken as it stands, with brackets, commas or further = in it.

keys:
  img=PATH        a picture, a folder, a pattern, @LIST or -; may be given several times
  model=FILE      a Binary_Classification_model.pth, or .safetensors or .onnx; default: the newest .pth below runs/
  out=FILE        write a table with path, label, confidence, p_male and error instead of lines; rows are kept beside
                  it as they come, so that a killed run goes on where it was
  montage=FILE    also draw the first 60 pictures with their answers, as PNG
  sure=90         say unsure where the confidence is below so many %, from 50 to 100 (default: always answer)
  prior=0.8       answer for pictures of which 80 % show men (default: what the model is calibrated to, usually 0.5)
  precision=fp32  also for many pictures (default: auto, bf16 for 64 or more where the processor computes with it)

The exit code is 0 if every picture got an answer, else 1.
"""

import hashlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from gender_cls.errors import UserError
from gender_cls.inputs import expand
from gender_cls.journal import Journal, Row, check_table
from gender_cls.predictor import CHUNK, Prediction, Predictor, newest_model
from gender_cls.words import printable, read_words, run_command

KEYS = ("img", "model", "out", "montage", "sure", "prior", "precision")
SHOWN = 60  # pictures in a montage


def main(words: list[str]) -> int:
    """Answer for what `words` name; returns the exit code."""
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    read = read_words(words, KEYS, ("img",), "python predict.py")
    options = {key: values[0] for key, values in read.items() if values}
    if "img" not in options:
        raise UserError("no picture is named; give img=PATH, see python predict.py --help")
    paths = [path for given in read["img"] for path in expand(given)]
    sure, prior = (number(options, key) for key in ("sure", "prior"))
    if sure is not None and not 50 <= sure <= 100:
        raise UserError(f"sure={options['sure']}: give % from 50 to 100")
    check_outputs(options, read["img"], paths)
    model = options.get("model") or newest_model()
    predictor = Predictor(model, prior, options.get("precision", "auto"))
    print(f"model: {printable(model)}{predictor.note}", file=sys.stderr)
    started = time.monotonic()
    if "out" in options:
        with open(model, "rb") as file:
            key = hashlib.file_digest(file, "blake2b")
        key.update(repr((predictor.facts, prior, sure, options.get("precision", "auto"))).encode())
        journal = Journal(Path(options["out"]), key.hexdigest()[:12], paths, CHUNK)
        labels = to_table(predictor, paths, journal, sure or 0)
    else:
        labels = to_lines(predictor.predict(paths), sure or 0)
    if len(paths) > 1:
        counts = ", ".join(f"{count} {label or 'failed'}" for label, count in sorted(labels.items(), reverse=True))
        print(f"{len(paths)} pictures in {time.monotonic() - started:.1f} s: {counts}", file=sys.stderr)
    if "montage" in options:
        draw(Path(options["montage"]), predictor, paths[:SHOWN], sure or 0)
    return 1 if labels[""] else 0


def check_outputs(options: dict[str, str], words: Sequence[str], paths: Sequence[str]) -> None:
    """Refuse what would be lost.

    Raises:
        UserError: an output is one of the inputs, or can't be written as what its name says.
    """
    if "out" in options:
        check_table(Path(options["out"]))
    given = {os.path.abspath(path) for path in (*paths, *(word.removeprefix("@") for word in words))}
    for key in ("out", "montage"):
        if key in options and os.path.abspath(options[key]) in given:
            raise UserError(f"{key}={options[key]} is one of the inputs; give another file")
    if not options.get("montage", ".png").endswith(".png"):
        raise UserError(f"montage={options['montage']}: give a name that ends in .png")


def number(options: dict[str, str], key: str) -> float | None:
    """The number that was given, if one was.

    Raises:
        UserError: it is none.
    """
    try:
        return float(options[key]) if key in options else None
    except ValueError:
        raise UserError(f"{key}={options[key]} is no number; see python predict.py --help") from None


def label(answer: Prediction, sure: float) -> str:
    """The answer's, or `unsure` where its confidence is below `sure` %; empty for a file without an answer."""
    return "unsure" if answer.confidence is not None and answer.confidence < sure else answer.label


def rounded_down(percent: float | None, digits: int) -> str:
    """So that what is shown was reached: 89.96 is not 90, and nothing is certain."""
    return f"{math.floor((percent or 0) * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def line(answer: Prediction, sure: float) -> str:
    """Label and confidence."""
    said, share = label(answer, sure), f"{rounded_down(answer.confidence, 1)} %"
    return f"{said}  ({answer.label} {share})" if said == "unsure" else f"{said}  {share}"


def to_lines(answers: Iterator[Prediction], sure: float) -> Counter[str]:
    """A line each: on standard output, or on standard error for a file without an answer. Returns labels counted."""
    labels: Counter[str] = Counter()
    for answer in answers:
        labels[label(answer, sure)] += 1
        if answer.error:
            print(f"{printable(answer.path)}  error: {printable(answer.error)}", file=sys.stderr)
        else:
            print(f"{printable(answer.path)}  {line(answer, sure)}")
    return labels


def to_table(predictor: Predictor, paths: Sequence[str], journal: Journal, sure: float) -> Counter[str]:
    """A row each, after those that an earlier run has left. Returns labels counted."""
    from tqdm import tqdm

    def row(answer: Prediction) -> Row:
        numbers = ("", "") if answer.error else (rounded_down(answer.confidence, 2), f"{answer.p_male:.6f}")
        return (answer.path, label(answer, sure), *numbers, answer.error)

    done = len(journal)
    if done:
        print(f"going on after {done} rows of an earlier run", file=sys.stderr)
    answers = predictor.predict(paths[done:], total=len(paths))
    try:
        with tqdm(total=len(paths), initial=done, unit="picture", disable=None, leave=False) as bar:
            while some := list(islice(answers, CHUNK)):
                journal.write(map(row, some))
                bar.update(len(some))
                for answer in some:
                    if answer.error:
                        bar.write(f"{printable(answer.path)}  error: {printable(answer.error)}", file=sys.stderr)
        journal.finish()
    except KeyboardInterrupt:
        print(f"\n{len(journal)} rows are kept; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        journal.close()
    return journal.labels


def draw(file: Path, predictor: Predictor, paths: Sequence[str], sure: float) -> None:
    """Pictures with their answers as one.

    Raises:
        UserError: the file can't be written.
    """
    from gender_cls.figures import sheet_figure
    from gender_cls.images import PictureError, load_rgb
    from gender_cls.page import to_png

    tiles = []
    for answer in predictor.predict(paths):
        try:
            picture = load_rgb(answer.path)
            picture.thumbnail((256, 256))
            tiles.append((picture, f"{printable(os.path.basename(answer.path))}\n{line(answer, sure)}"))
        except PictureError:
            continue  # it has its error already
    unfinished = file.with_name(f"{file.name}.part")
    try:
        unfinished.write_bytes(to_png(sheet_figure(tiles)))
        os.replace(unfinished, file)
    except OSError as error:
        raise UserError(f"montage={file}: {(error.strerror or str(error)).lower()}") from error


if __name__ == "__main__":
    run_command(main)
