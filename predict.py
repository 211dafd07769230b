"""Tell female from male in picture files with a trained model.

  python predict.py img=photo.jpg
  python predict.py img=photo.jpg img="other photo (1).jpg"     several files; quote what the shell would split
  python predict.py img=folder                                  every picture below the folder
  python predict.py img=folder out=predictions.csv              path, label, confidence, p_male and error as a table
  python predict.py img=folder sure=90 prior=0.8                unsure below 90 %; four of five pictures show men

A line for each picture: its path, the label, and the model's confidence in it in % (50 to 100). Of a calibrated model
that is the share of such answers that are right, where the share of men among the pictures is the one that the line
"model:" names. What follows the first = is taken as it stands, with brackets, commas or further = in it.

keys:
  img=PATH    a picture or a folder; may be given several times
  model=FILE  a Binary_Classification_model.pth; by default the newest one below runs/
  out=FILE    also write a CSV table
  sure=90     say unsure where the confidence is below so many %, from 50 to 100 (default: always answer)
  prior=0.8   answer for pictures of which 80 % show men (default: what the model is calibrated to, usually 0.5)

The exit code is 0 if every picture got an answer, else 1.
"""

import csv
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gender_cls.errors import UserError
from gender_cls.images import list_pictures
from gender_cls.predictor import Prediction, Predictor, newest_model
from gender_cls.words import read_words, run_command

COLUMNS = ("path", "label", "confidence", "p_male", "error")


def main(words: list[str]) -> int:
    """Answer for what `words` name; returns the exit code."""
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    options = read_words(words, ("img", "model", "out", "sure", "prior"), ("img",), "python predict.py")
    if not options["img"]:
        raise UserError("no picture is named; give img=PATH, see python predict.py --help")
    paths = [path for given in options["img"] for path in expand(given)]
    model = options["model"][-1] if options["model"] else newest_model()
    sure, prior = (number(options[key], key) for key in ("sure", "prior"))
    if sure is not None and not 50 <= sure <= 100:
        raise UserError(f"sure={options['sure'][-1]}: give % from 50 to 100")
    predictor = Predictor(model, prior)
    print(f"model: {model}{predictor.note}", file=sys.stderr)
    answers = predictor.predict(paths)
    if options["out"]:
        answers = written(answers, Path(options["out"][-1]), sure or 0)
    failed = 0
    for answer in answers:
        failed += bool(answer.error)
        show(answer, sure or 0)
    return 1 if failed else 0


def number(given: list[str], key: str) -> float | None:
    """The number that was given, if one was.

    Raises:
        UserError: it is none.
    """
    try:
        return float(given[-1]) if given else None
    except ValueError:
        raise UserError(f"{key}={given[-1]} is no number; see python predict.py --help") from None


def expand(given: str) -> list[str]:
    """The pictures of a folder, or the path itself.

    Raises:
        UserError: a folder without pictures.
    """
    if not os.path.isdir(given):
        return [given]
    paths = list_pictures(given)
    if not paths:
        raise UserError(f"img={given} holds no file whose name ends like a picture's; name the file itself")
    return paths


def label(answer: Prediction, sure: float) -> str:
    """The answer's, or `unsure` where its confidence is below `sure` %; empty for a file without an answer."""
    return "unsure" if answer.confidence is not None and answer.confidence < sure else answer.label


def rounded_down(percent: float | None, digits: int) -> str:
    """So that what is shown was reached: 89.96 is not 90, and nothing is certain."""
    return f"{math.floor((percent or 0) * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def show(answer: Prediction, sure: float) -> None:
    """One line: on standard output, or on standard error for a file without an answer."""
    if answer.error:
        print(f"{answer.path}  error: {answer.error}", file=sys.stderr)
    else:
        said, share = label(answer, sure), f"{rounded_down(answer.confidence, 1)} %"
        print(
            f"{answer.path}  {said}  ({answer.label} {share})"
            if said == "unsure"
            else f"{answer.path}  {said}  {share}"
        )


def written(answers: Iterator[Prediction], out: Path, sure: float) -> Iterator[Prediction]:
    """Pass the answers on and write them to a CSV table, which appears when it is whole.

    Raises:
        UserError: the table can't be written.
    """
    if out.is_dir():
        raise UserError(f"out={out}: is a directory; give a file that can be written")
    unfinished = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        with open(unfinished, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for answer in answers:
                numbers = ("", "") if answer.error else (rounded_down(answer.confidence, 2), f"{answer.p_male:.6f}")
                table.writerow((answer.path, label(answer, sure), *numbers, answer.error))
                yield answer
        os.replace(unfinished, out)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"out={out}: {reason}; give a file that can be written") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


if __name__ == "__main__":
    run_command(main)
