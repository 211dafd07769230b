"""Tell female from male in picture files with a trained model.

  python predict.py img=photo.jpg
  python predict.py img=photo.jpg img="other photo (1).jpg"     several files; quote what the shell would split
  python predict.py img=folder                                  every picture below the folder
  python predict.py img=folder out=predictions.csv              path, label, confidence, p_male and error as a table

A line for each picture: its path, the label, and the model's confidence in it in % (50 to 100). What follows the
first = is taken as it stands, with brackets, commas or further = in it.

keys:
  img=PATH    a picture or a folder; may be given several times
  model=FILE  a Binary_Classification_model.pth; by default the newest one below runs/
  out=FILE    also write a CSV table

The exit code is 0 if every picture got an answer, else 1.
"""

import csv
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

from gender_cls.errors import UserError
from gender_cls.export import MODEL_NAME
from gender_cls.images import list_pictures
from gender_cls.predictor import Prediction, Predictor

COLUMNS = ("path", "label", "confidence", "p_male", "error")


def main(words: list[str]) -> int:
    """Answer for what `words` name; returns the exit code."""
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    options = parse(words)
    paths = [path for given in options["img"] for path in expand(given)]
    model = options["model"][-1] if options["model"] else newest_model()
    predictor = Predictor(model)
    recipe = ", without its JSON: the recipe's preprocessing is assumed" if predictor.assumed_preprocessing else ""
    print(f"model: {model}{recipe}", file=sys.stderr)
    answers = predictor.predict(paths)
    if options["out"]:
        answers = written(answers, Path(options["out"][-1]))
    failed = 0
    for answer in answers:
        failed += bool(answer.error)
        show(answer)
    return 1 if failed else 0


def parse(words: list[str]) -> dict[str, list[str]]:
    """Literal key=value words: nothing after the first = is interpreted.

    Raises:
        UserError: a word is none of the keys, there is no img, or another key comes twice.
    """
    options: dict[str, list[str]] = {"img": [], "model": [], "out": []}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options or not value:
            raise UserError(f"{word!r} is not img=PATH, model=FILE or out=FILE; see python predict.py --help")
        if key != "img" and options[key]:
            raise UserError(f"{key}= is given twice; give it once")
        options[key].append(value)
    if not options["img"]:
        raise UserError("no picture is named; give img=PATH, see python predict.py --help")
    return options


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


def newest_model() -> str:
    """The model of the newest run below runs/.

    Raises:
        UserError: there is none.
    """
    models = sorted(Path("runs").glob(f"**/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(f"no {MODEL_NAME} below runs/; train one with `python train.py`, or give model=FILE")
    return str(models[-1])


def show(answer: Prediction) -> None:
    """One line: on standard output, or on standard error for a file without an answer."""
    if answer.error:
        print(f"{answer.path}  error: {answer.error}", file=sys.stderr)
    else:
        print(f"{answer.path}  {answer.label}  {answer.confidence:.1f} %")


def written(answers: Iterator[Prediction], out: Path) -> Iterator[Prediction]:
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
                numbers = ("", "") if answer.error else (f"{answer.confidence:.2f}", f"{answer.p_male:.6f}")
                table.writerow((answer.path, answer.label, *numbers, answer.error))
                yield answer
        os.replace(unfinished, out)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"out={out}: {reason}; give a file that can be written") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")  # names that are not UTF-8 end no run
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is whether it decodes
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("stopped")
