"""Predict female or male for image files with a trained model.

  python predict.py img=photo.jpg
  python predict.py img=photo.jpg img="other photo (1).jpg"   several files; quote what the shell would split
  python predict.py img=folder                                every image below the folder
  python predict.py img='photos/**/*.jpg' img=@list.txt       a pattern; a list, see below
  find . -name '*.jpg' -print0 | python predict.py img=-      a list from standard input
  python predict.py img=folder out=predictions.csv            a table; also .jsonl and .parquet
  python predict.py img=folder min_confidence=90 prior=0.8    unsure below 90 %; 80 % of the images are male
  python predict.py img=photo.jpg model=model.onnx            without torch; see python -m gender_cls.inference.export
  python predict.py img=party.jpg cut=box                     each face, by a model trained on images of one face each

Each image gets a line with its path, the label and the model's confidence in the label in % (50 to 100). A model that
aligns faces finds those of an image, left to right; several get a line each, and an image without one gets `no face`.
Other models take the whole image as one face. The confidence of a calibrated model is the share of such predictions
that are right, among images with the share of male images that the line "model:" names. Everything after the first = is
taken literally: brackets, commas, further = signs.

keys:
  img=PATH           an image, a folder, a pattern, @LIST or -; may be repeated. A list holds one path per line, or is a
                     CSV or Parquet file with a column `path`
  model=FILE         a Binary_Classification_model.pth, .safetensors or .onnx (default: the newest .pth below runs/)
  out=FILE           write a table instead of lines, with path, label, confidence, p_male, error, note and the place
                     of each face; unfinished rows are kept beside it, and the same command continues a killed run
  montage=FILE       also draw the first 60 images with their faces and predictions, as PNG
  faces=largest      all; the largest near the middle, as in training; or none: the image is one face (default: all if
                     the model aligns faces, else none). Finding faces needs the extra `faces`
  cut=box            for models trained on whole images: cut each face as FACECOM's are (default: do not look for any)
  min_face=24        longer side of the smallest face, in pixels; smaller ones get `too small`
  min_score=0.6      how sure the detector must be of a face, above 0 and below 1 (default: as in training)
  min_confidence=90  label an image `unsure` if the confidence is below this, in %, 50 to 100 (default: never)
  prior=0.8          share of male images to predict for (default: the one of the calibration, usually 0.5)
  truncated=keep     predict also for files that are cut off, by what is there, with a note (default: refuse)
  max_pixels=N       largest image, in pixels (default: 100000000; a JPEG may be larger)
  precision=fp32     fp32 also for many images (default: auto, bf16 for 64 or more if the hardware computes with it)

The exit code is 0 if every image could be read, else 1.
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

from gender_cls.errors import ImageError, UserError, printable, writing
from gender_cls.files import replacing, user_path
from gender_cls.inference.arguments import command, parse_arguments, run_main
from gender_cls.inference.cutting import MIN_FACE
from gender_cls.inference.inputs import expand
from gender_cls.inference.journal import Journal, Row, check_table
from gender_cls.inference.prediction import Prediction
from gender_cls.inference.predictor import CHUNK, Predictor, newest_model
from gender_cls.transforms.decode import MAX_PIXELS
from gender_cls.transforms.listing import ignored_note

KEYS = ["img", "model", "out", "montage", "min_confidence", "prior", "truncated", "max_pixels", "precision"]
KEYS += ["faces", "cut", "min_face", "min_score"]
MONTAGE_IMAGES = 60


def run() -> None:
    """Run prediction as the command line asks for it, and exit."""
    run_main(main)


def main(arguments: list[str]) -> int:
    """Predict as the arguments ask for it and return the exit code."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print((__doc__ or "").replace("python predict.py", command("predict")))
        return 0
    given = parse_arguments(arguments, KEYS, ("img",), command("predict"))
    options = {key: values[0] for key, values in given.items() if values}
    if "img" not in options:
        raise UserError("no-images", f"no image is given; give img=PATH, see {command('predict')} --help")
    options |= {key: user_path(options[key]) for key in ("model", "out", "montage") if key in options}
    listings = [expand(pattern) for pattern in given["img"]]
    paths = [path for listing in listings for path in listing.paths]
    if note := ignored_note(sum((listing.ignored for listing in listings), Counter())):
        print(note, file=sys.stderr)
    threshold, prior = _number(options, "min_confidence"), _number(options, "prior")
    if threshold is not None and not 50 <= threshold <= 100:
        raise UserError("bad-value", f"min_confidence={options['min_confidence']}: give a number from 50 to 100, in %")
    _check_outputs(options, given["img"], paths)
    model = options.get("model") or newest_model()
    predictor = _predictor(model, options, prior)
    predictor.cutter.check()
    print(f"model: {printable(model)}{predictor.note}", file=sys.stderr)
    started = time.monotonic()
    if "out" in options:
        with open(model, "rb") as file:
            key = hashlib.file_digest(file, "blake2b")
        made_by = (predictor.facts, prior, threshold, predictor.precision, predictor.decoder, predictor.cutter.facts())
        key.update(repr(made_by).encode())
        journal = Journal(Path(options["out"]), key.hexdigest()[:12], paths, CHUNK)
        labels = _write_table(predictor, paths, journal, threshold or 0)
    else:
        labels = _print_lines(predictor.predict(paths), threshold or 0)
    if len(paths) > 1 or labels.total() > 1:
        counts = ", ".join(f"{count} {label or 'failed'}" for label, count in sorted(labels.items(), reverse=True))
        images = f"{len(paths)} image{'s' if len(paths) > 1 else ''}"
        print(f"{images} in {time.monotonic() - started:.1f} s: {counts}", file=sys.stderr)
    if "montage" in options:
        _draw_montage(Path(options["montage"]), predictor, paths[:MONTAGE_IMAGES], threshold or 0)
    return 1 if labels[""] else 0


def _predictor(model: str, options: dict[str, str], prior: float | None) -> Predictor:
    return Predictor(
        model,
        prior,
        options.get("precision", "auto"),
        truncated=options.get("truncated", "refuse"),
        max_pixels=_whole_number(options, "max_pixels", MAX_PIXELS),
        faces=options.get("faces"),
        cut=options.get("cut"),
        min_face=_whole_number(options, "min_face", MIN_FACE),
        min_score=_number(options, "min_score"),
    )


def _check_outputs(options: dict[str, str], inputs: Sequence[str], paths: Sequence[str]) -> None:
    if "out" in options:
        check_table(Path(options["out"]))
    read = {os.path.abspath(path) for path in (*paths, *(given.removeprefix("@") for given in inputs))}
    for key in ("out", "montage"):
        if key in options and os.path.abspath(options[key]) in read:
            raise UserError("conflict", f"{key}={options[key]} is one of the inputs; give another file")
    if not options.get("montage", ".png").endswith(".png"):
        raise UserError("bad-value", f"montage={options['montage']}: give a name that ends in .png")


def _number(options: dict[str, str], key: str) -> float | None:
    try:
        return float(options[key]) if key in options else None
    except ValueError:
        raise UserError("bad-value", f"{key}={options[key]} is not a number; see {command('predict')} --help") from None


def _whole_number(options: dict[str, str], key: str, usual: int) -> int:
    given = options.get(key, str(usual))
    if not given.isdecimal():
        raise UserError("bad-value", f"{key}={given}: give an integer of at least 1")
    return int(given)


def _label(prediction: Prediction, min_confidence: float) -> str:
    unsure = prediction.confidence is not None and prediction.confidence < min_confidence
    return "unsure" if unsure else prediction.label


def _rounded_down(percent: float | None, digits: int) -> str:
    """Round down, so that the number shown was reached: 89.96 is not 90.0, and nothing is certain."""
    return f"{math.floor((percent or 0) * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def _line(prediction: Prediction, min_confidence: float) -> str:
    if prediction.error:
        return f"error: {printable(prediction.error)}"
    label, confidence = _label(prediction, min_confidence), f"{_rounded_down(prediction.confidence, 1)} %"
    said = f"{label}  ({prediction.label} {confidence})" if label == "unsure" else f"{label}  {confidence}"
    said = prediction.instead or said
    which = f"face {prediction.face} of {prediction.faces}  " if prediction.faces > 1 else ""
    return f"{which}{said}  ({prediction.note})" if prediction.note else which + said


def _print_lines(predictions: Iterator[Prediction], min_confidence: float) -> Counter[str]:
    labels: Counter[str] = Counter()
    for prediction in predictions:
        labels[_label(prediction, min_confidence)] += 1
        line = f"{printable(prediction.path)}  {_line(prediction, min_confidence)}"
        print(line, file=sys.stderr if prediction.error else sys.stdout)
    return labels


def _write_table(predictor: Predictor, paths: Sequence[str], journal: Journal, min_confidence: float) -> Counter[str]:
    from tqdm import tqdm

    def row(prediction: Prediction) -> Row:
        p_male, box, score = prediction.p_male, prediction.box, prediction.score
        numbers = ("", "") if p_male is None else (_rounded_down(prediction.confidence, 2), f"{p_male:.6f}")
        said = (*numbers, prediction.error, prediction.note, str(prediction.face or ""))
        place = ("",) * 5 if box is None else (*(f"{length:.1f}" for length in box), f"{score:.3f}")
        return (prediction.path, _label(prediction, min_confidence), *said, *place)

    if done := len(journal):
        print(f"continuing after {done} images of an earlier run", file=sys.stderr)
    images = _by_image(predictor.predict(paths[done:], total=len(paths)))
    try:
        with tqdm(total=len(paths), initial=done, unit="image", disable=None, leave=False) as bar:
            while chunk := list(islice(images, CHUNK)):
                journal.write(row(prediction) for image in chunk for prediction in image)
                bar.update(len(chunk))
                for failed in (prediction for image in chunk for prediction in image if prediction.error):
                    bar.write(f"{printable(failed.path)}  {_line(failed, min_confidence)}", file=sys.stderr)
        journal.finish()
    except KeyboardInterrupt:
        print(f"\nthe rows of {len(journal)} images are kept; the same command continues from there", file=sys.stderr)
        raise
    finally:
        journal.close()
    return journal.labels


def _by_image(predictions: Iterator[Prediction]) -> Iterator[list[Prediction]]:
    image: list[Prediction] = []
    for prediction in predictions:
        image.append(prediction)
        if prediction.face == prediction.faces:
            yield image
            image = []


def _draw_montage(file: Path, predictor: Predictor, paths: Sequence[str], min_confidence: float) -> None:
    from gender_cls.inference.draw import TILE, contact_sheet, draw_boxes

    tiles = []
    for predictions in _by_image(predictor.predict(paths)):
        first = predictions[0]
        try:
            image = predictor.decoder.load(first.path)
        except ImageError:
            continue  # its error has been reported
        scale = TILE / max(image.size)
        boxes = [[scale * length for length in each.box] for each in predictions if each.box]
        image = image.resize([max(1, round(scale * side)) for side in image.size], reducing_gap=3.0)
        labels = [_label(each, min_confidence) for each in predictions]
        said = ", ".join(f"{count} {label}" for label, count in Counter(labels).items())
        said = said if len(labels) > 1 else _line(first, min_confidence)
        tiles.append((draw_boxes(image, boxes, labels), f"{printable(Path(first.path).name)}\n{said}"))
    with writing(f"montage={file}"), replacing(file) as unfinished:
        contact_sheet(tiles).save(unfinished)


if __name__ == "__main__":
    run()
