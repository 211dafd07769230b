"""Recalibration of a model for other people's faces: slope and bias are fitted again, the network stays as it is.

  python -m gender_cls.evaluation.recalibrate data.root=DIR                      the newest model; DIR/{female,male} or
                                                                                 DIR/{train,val}/{female,male}
  python -m gender_cls.evaluation.recalibrate model=FILE data.root=DIR out=FILE
  python -m gender_cls.evaluation.recalibrate model=FILE data.csv=FILE           a table with columns path and label

A few hundred labelled faces are enough; all splits are used together. The result is a new model for predict.py, with
its JSON and its model card: its logit is slope * logit + bias of the given model, so that images keep their order.
Metrics are shown before and after. Those after are of identities that slope and bias were not fitted on: each fifth of
the identities is predicted by a fit on the others. The new model is then fitted on all of them.

keys:
  model=FILE              a Binary_Classification_model.pth; by default the newest one below runs/
  data.root=DIR           or data.csv=FILE: the faces
  data.classes=MAP        names of the classes, such as '{female: [f], male: [m]}' (default: as in the run that trained
                          the model)
  prior=0.8               share of male images to predict for, to which the model before is moved, too (default: the one
                          of the model; 0.5 if it is uncalibrated)
  out=FILE                the new model, .pth (default: recalibrated_<name of the data>.pth beside the model); only a
                          result of this command is replaced
  features.dir=DIR        folder of the stored features (default: $XDG_CACHE_HOME/gender_cls or ~/.cache/gender_cls)

Metrics hold for images like those given. They are too good on images or identities that the model was trained on, and
so is the confidence of the new model then. Identities are found as in the run that trained the model, or by the column
identity of a table.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gender_cls.data.faceset import FaceSet
from gender_cls.data.identities import count_identities, fold_identities
from gender_cls.data.sources import SPLITS, Face, Listed
from gender_cls.errors import UserError, check_share, printable, writing
from gender_cls.evaluation.calibration import calibration_metrics, fit, fold, is_blind, log_odds
from gender_cls.evaluation.inputs import Inputs, read_arguments
from gender_cls.evaluation.metrics import Evaluation
from gender_cls.evaluation.robustness import predict_faces
from gender_cls.evaluation.tables import recalibration_report
from gender_cls.features.store import DIGEST
from gender_cls.inference.arguments import run_main, shell_line, start_of
from gender_cls.inference.export import write_model
from gender_cls.inference.model_card import model_card
from gender_cls.inference.predictor import Predictor
from gender_cls.transforms.views import CLEAN

COMMAND = "python -m gender_cls.evaluation.recalibrate"
KEYS = ("model", "data.root", "data.csv", "data.classes", "prior", "out", "features.dir")
TOGETHER = "the data"  # all splits, as errors and notes name them
FOLDS = 5
MIN_IDENTITIES = 2  # of each class: one to fit on, another to predict


def cross_fit(logits: torch.Tensor, labels: np.ndarray, folds: np.ndarray) -> torch.Tensor:
    """Return calibrated logits (N) at a prior of 0.5, those of each fold by slope and bias fitted on the other folds.

    Args:
        logits: Logits (N) of the model.
        labels: Labels (N), 0 or 1; both must occur outside of each fold.
        folds: Number of the fold of each image (N).
    """
    found = torch.empty_like(logits)
    for number in np.unique(folds):
        inside = torch.from_numpy(folds == number)
        slope, bias = fit(logits[None, ~inside], labels[folds != number])
        found[inside] = slope * logits[inside] + bias
    return found


def compare(
    before: torch.Tensor, after: torch.Tensor, labels: np.ndarray, identities: Sequence[str], prior: float
) -> dict[str, dict[str, Any]]:
    """Compute the metrics, and the calibration metrics at the prior, of logits (N) `before` and `after`."""
    evaluation = Evaluation(torch.stack([before, after]).sigmoid(), labels, identities)
    found = {}
    for at, (name, logits) in enumerate((("before", before), ("after", after))):
        found[name] = evaluation.metrics(at) | calibration_metrics(logits, labels, prior)
        # A new slope and bias keep the ranking. Folds have different ones, which blurs a ranking across folds.
        found[name]["auroc"] = evaluation.auroc[0]
    return found


def refit(
    logits: torch.Tensor, faces: Sequence[Face], known: Mapping[str, float] | None, prior: float
) -> dict[str, Any]:
    """Fit slope and bias on all faces, and measure them on held-out identities.

    Args:
        logits: Logits (N) of a model.
        faces: The faces (N), with enough identities for `count_folds`.
        known: Calibration of the model; None if it has none, which counts as a prior of 0.5.
        prior: Share of male images to calibrate for; the model before is moved to it, too.

    Returns:
        slope and bias, so that slope * logit + bias is calibrated for the prior; what they were fitted on; and the
        metrics `before` and `after`.
    """
    logits, labels = logits.double(), np.array([face.label for face in faces])
    identities = [face.identity for face in faces]
    number = count_folds(faces)
    after = cross_fit(logits, labels, np.array(fold_identities(faces, number, seed=0))) + log_odds(prior)
    before = logits + log_odds(prior) - log_odds(known["prior"] if known else 0.5)
    slope, bias = fit(logits[None], labels)
    facts = {"slope": slope, "bias": bias + log_odds(prior), "folds": number, "images": len(faces)}
    return facts | {"identities": len(set(identities)), **compare(before, after, labels, identities, prior)}


def compose(predictor: Predictor, found: Mapping[str, Any], prior: float) -> dict[str, Any]:
    """Return the entry `calibration` of the new model's JSON.

    Its slope and bias are of the logit of the uncalibrated head, as in every model: new(old(logit)).

    Args:
        predictor: The old model.
        found: Result of `refit`, and what it was fitted on.
        prior: Prior of the new model.

    Returns:
        prior, slope, bias and blind, as training gives them; `refit`, which is `found`; and `original`, the calibration
        by training, None if there was none.
    """
    old = predictor.calibration or {"slope": 1.0, "bias": 0.0}
    slope, bias = found["slope"] * old["slope"], found["slope"] * old["bias"] + found["bias"]
    known = predictor.facts.get("calibration")
    original = known.get("original") if known and "refit" in known else known
    own = {"prior": prior, "slope": slope, "bias": bias, "blind": is_blind(found)}
    return {**own, "refit": dict(found), "original": original}


def count_folds(faces: Sequence[Face], source: str = TOGETHER) -> int:
    """Return the number of folds for these faces; `UserError` names their source if there are too few identities."""
    females, males = numbers = count_identities(faces)
    if min(numbers) < MIN_IDENTITIES:
        needed = f"recalibration needs at least {MIN_IDENTITIES} identities of each class"
        way_out = "add faces, or a table with a column identity where file names do not tell who is who"
        raise UserError("too-few-identities", f"{source}: {needed}, {females} female and {males} male found; {way_out}")
    return min(FOLDS, *numbers)


def check_out(out: Path, model: Path) -> None:
    """Raise a `UserError` unless the new model may be written there, with its JSON and card; create the folder."""
    if out.suffix != ".pth":
        raise UserError("bad-value", f"out={out}: give a name that ends in .pth")
    same = [os.path.realpath(path.with_suffix("")) for path in (out, model)]  # of another suffix it shares its JSON
    if same[0] == same[1] or (out.exists() and out.samefile(model)):
        raise UserError("conflict", f"out={out} would replace the model or its JSON; give out=FILE with another name")
    for path in (out.with_suffix(suffix) for suffix in (".pth", ".json", ".md")):
        if os.path.lexists(path) and not _is_own(out):
            what = f"{path.name} is there already, and not from this command"
            raise UserError("conflict", f"out={out}: {what}; give out=FILE with another name")
    with writing(f"out={out}", "give another file"):
        out.parent.mkdir(parents=True, exist_ok=True)


def _is_own(out: Path) -> bool:
    with suppress(OSError, ValueError, LookupError, TypeError):
        return "refit" in json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["calibration"]
    return False


def save(out: Path, predictor: Predictor, calibration: Mapping[str, Any]) -> None:
    """Write the new model: the old one with the new slope and bias folded into its head."""
    facts = {**predictor.facts, "calibration": calibration}
    try:
        card = model_card(facts, out.name)
    except Exception:  # of a JSON that an earlier version wrote, or that people edited
        card = "No model card: the JSON of the model that was recalibrated tells too little for one.\n"
        print(f"note: {card.strip()}")
    fold(predictor.network.head, calibration["refit"]["slope"], calibration["refit"]["bias"])
    with writing(f"out={out}", "give another file"):
        write_model(out, predictor.network, facts, card)


def main(arguments: list[str]) -> int:
    """Recalibrate as the arguments ask for it and return the exit code."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    inputs = _load(read_arguments(arguments, KEYS, COMMAND))
    predictor, network = inputs.predictor, inputs.predictor.network
    prior, out, workers = _prior(inputs), _out(inputs), os.cpu_count() or 1
    faces = _list_and_check(inputs)
    together = faces.splits[TOGETHER]
    kept, (logits,) = predict_faces(network, predictor.preprocessing, together, inputs.extractor, workers, [CLEAN])
    if not logits.isfinite().all():
        raise UserError("bad-model", f"{predictor.source}: its logits are not finite numbers; give another model")
    found = {"data": printable(inputs.source.resolve().name), "fingerprint": faces.fingerprint}
    found |= refit(logits, kept, predictor.calibration, prior)
    calibration = compose(predictor, found, prior)
    print(f"\n{recalibration_report(calibration)}")
    save(out, predictor, calibration)
    print(f"\nsaved {printable(str(out))}\n{shell_line([*start_of('predict'), f'model={out}', 'img=photo.jpg'])}")
    return 0


def _load(given: dict[str, str]) -> Inputs:
    if given.get("model", "").endswith(".onnx"):  # before ONNX Runtime is asked for
        way_out = "give the .pth that it was exported from, then export the new one"
        raise UserError("bad-model", f"model={given['model']}: an ONNX model can't be changed; {way_out}")
    inputs = Inputs(given)
    if inputs.predictor.assumed_preprocessing:
        what = "has no JSON with its preprocessing; put it beside the model"
        raise UserError("bad-model", f"{inputs.predictor.source} {what}")
    return inputs


def _prior(inputs: Inputs) -> float:
    known = inputs.predictor.calibration
    number: str | float = inputs.given.get("prior", known["prior"] if known else 0.5)
    with suppress(ValueError):
        number = float(number)
    check_share("prior", number)
    return float(number)


def _out(inputs: Inputs) -> Path:
    source = inputs.source.resolve()
    usual = f"recalibrated_{source.stem if 'data.csv' in inputs.given else source.name}.pth"
    out = Path(inputs.given.get("out") or inputs.model.with_name(usual))
    check_out(out, inputs.model)
    return out


def _list_and_check(inputs: Inputs) -> FaceSet:
    listed = inputs.list_faces([split for split in SPLITS if (inputs.source / split).is_dir()])
    faces = inputs.check(Listed({TOGETHER: [*chain.from_iterable(listed.splits.values())]}, listed.notes))
    key = "data.csv" if "data.csv" in inputs.given else "data.root"
    if inputs.landmarks:  # what shows no face gets no prediction
        together = faces.splits[TOGETHER]
        found = inputs.landmarks.counts(np.array([face.digest for face in together], dtype=DIGEST), CLEAN)
        faces = replace(faces, splits={TOGETHER: [face for face, count in zip(together, found) if count]})
        if left_out := len(together) - len(faces.splits[TOGETHER]):
            print(f"left out: images without a face: {left_out}")
    count_folds(faces.splits[TOGETHER], f"{key}={inputs.source}")  # before features are computed
    return faces


if __name__ == "__main__":
    run_main(main)
