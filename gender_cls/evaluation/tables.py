"""Tables and notes for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gender_cls.errors import printable
from gender_cls.evaluation.calibration import is_blind
from gender_cls.evaluation.metrics import RESAMPLES
from gender_cls.labels import CLASSES
from gender_cls.transforms.views import MID_SEVERITY

if TYPE_CHECKING:
    from gender_cls.data.faceset import FaceSet
    from gender_cls.features.landmarks import Landmarks

SHOWN = 20  # skipped images that are listed one by one
SHORT = {"f1_macro": "macro-F1", "f1_female": "F1 female", "f1_male": "F1 male"}  # of a comparison
SHORT |= {"recall_female": "recall female", "recall_male": "recall male", "auroc": "AUROC"}
SHORT |= {"ece_debiased": "debiased ECE", "slope": "slope", "intercept": "intercept", "nll": "NLL"}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table; columns with numbers are right-aligned, floats have three decimals."""
    cells = [list(header)] + [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right)).rstrip()
        for line in cells
    )


def with_interval(metrics: Mapping[str, Any], name: str = "f1_macro") -> str:
    """Format a metric with its 95 % interval; empty if it is None."""
    if metrics[name] is None:
        return ""
    low, high = metrics[f"{name}_ci95"]
    return f"{metrics[name]:.3f} ({low:.3f} to {high:.3f})"


def describe_data(faces: "FaceSet", landmarks: "Landmarks | None" = None) -> str:
    """Summarize the data: counts by split and class, skipped images and notes."""
    counts = faces.counts(landmarks)
    lines = [table(list(counts[0]), [list(row.values()) for row in counts])]
    lines.append(f"female = 0, male = 1; skipped {len(faces.skipped)}; data fingerprint {faces.fingerprint}")
    lines += [printable(f"skipped {path}: {reason}") for path, reason in faces.skipped[:SHOWN]]
    if len(faces.skipped) > SHOWN:
        lines.append(f"... and {len(faces.skipped) - SHOWN} more, all listed in metrics.json")
    notes = list(faces.notes)
    if without := sum(int(row.get("no face", 0)) for row in counts):
        notes.append(f"no face is found in {without} images, whose middle is taken")
    return "\n".join(lines + [printable(f"note: {note}") for note in notes])


def classification_report(split: str, metrics: Mapping[str, Any]) -> str:
    """Format the metrics of a split like scikit-learn's classification report."""
    names = ("precision", "recall", "f1")
    rows: list[list[object]] = []
    for name, counts in zip(CLASSES, metrics["confusion"]):
        rows.append([name, *(metrics[f"{what}_{name}"] for what in names), sum(counts)])
    rows.append(["macro", *(metrics[f"{what}_macro"] for what in names), metrics["images"]])
    rows.append(["accuracy", "", "", metrics["accuracy"], metrics["images"]])
    body = table((split, *names, "images"), [["" if cell is None else cell for cell in row] for row in rows])
    if metrics["f1_macro"] is None:
        return f"{body}\nno macro-F1: {split} has images of one class only"
    predicted = [sum(column) for column in zip(*metrics["confusion"])]
    if not all(predicted):
        label = CLASSES[predicted.index(max(predicted))]
        body += f"\nnote: every image of {split} is predicted {label}; docs/faq.md has the usual causes"
    low, high = metrics["f1_macro_ci95"]
    samples = f"{RESAMPLES} bootstrap samples of {metrics['identities']} identities"
    return f"{body}\nmacro-F1 {metrics['f1_macro']:.3f}, 95 % interval {low:.3f} to {high:.3f} ({samples})"


def balance_note(n_female: int, n_male: int) -> str:
    """Explain what a balanced sampler and the class weight together do to an uncalibrated confidence."""
    sampler, weight = -math.log(n_male / n_female), math.log((n_female + n_male) / (2 * n_male))
    both = sampler + weight
    label, share = ("female", 1 / (1 + math.exp(both))) if both < 0 else ("male", 1 / (1 + math.exp(-both)))
    return (
        f"note: the sampler moves the logit by {sampler:+.2f} and the class weight by {weight:+.2f}: against the class "
        f"mixture of these images {abs(both):.2f} towards {label}, so that an even chance is predicted {label} with "
        f"{share:.0%}; calibration=platt makes the confidence a probability"
    )


def calibration_report(calibration: Mapping[str, Any]) -> str:
    """Format the calibration metrics before and after calibration, on the images that it was fitted on."""
    names = {"ece": "ECE", "ece_debiased": "debiased ECE", "slope": "slope", "intercept": "intercept"}
    rows: list[list[object]] = []
    for condition in ("clean", "corrupted"):
        for what in ("uncalibrated", "calibrated"):
            found = calibration[condition][what]
            rows.append([f"{what}, {condition}", *("" if found[name] is None else found[name] for name in names)])
    chance = "\nnote: on these images the head is no better than chance, so every probability is close to the prior"
    note = chance if is_blind(calibration) else ""
    where = "train, out of fold" if calibration["split"] == "train" else calibration["split"]
    return (
        f"{table(('calibration', *names.values()), rows)}\n"
        f"p(male) at a prior of {calibration['prior']:.2g} (share of male images); slope and bias are fitted on "
        f"{calibration['images']} images of {calibration['identities']} identities ({where}), clean and with one "
        f"corruption each at severity {MID_SEVERITY}{note}"
    )


def recalibration_report(calibration: Mapping[str, Any]) -> str:
    """Format the metrics before and after a recalibration, from the entry `calibration` of the new model's JSON."""
    refit, note = calibration["refit"], ""
    both = before, after = refit["before"], refit["after"]
    header = (f"held out, {refit['folds']} folds", "before", "after")
    rows = [[shown, *("" if row[name] is None else row[name] for row in both)] for name, shown in SHORT.items()]
    if calibration["blind"]:
        note = (
            "\nnote: here the model is no better than chance, so every probability is now close to the prior; are the"
        )
        note += " labels swapped (data.classes)?"
    elif after["nll"] >= before["nll"]:
        note = "\nnote: held out, the new model is no better; keep the old one, or give more faces"
    return (
        f"{table(header, rows)}\n"
        f"macro-F1 before {with_interval(before)}, after {with_interval(after)}; 95 % intervals from {RESAMPLES} "
        f"bootstrap samples of {refit['identities']} identities; ECE, slope, intercept and NLL at a prior of "
        f"{calibration['prior']:.2g} (share of male images)\n"
        f"new logit = {refit['slope']:.3f} * old logit {refit['bias']:+.3f}, fitted on {refit['images']} images{note}"
    )


def corruption_report(metrics: Mapping[str, Any]) -> str:
    """Format macro-F1 by corruption and severity, from the metrics of `robustness.measure`."""
    rows = {**metrics["corrupted"], "mean over corruptions": metrics["mean_over_corruptions"]}
    if metrics["clean"]["f1_macro"] is None:
        return "no macro-F1: all images have the same label"
    header = ("macro-F1 at severity", *map(str, metrics["mean_over_corruptions"]))
    body = table(header, [[name, *(values["f1_macro"] for values in row.values())] for name, row in rows.items()])
    frames = [["macro-F1", *(values["f1_macro"] for values in metrics["framing"].values())]]
    if found := metrics["faces_found"]:
        frames.append(["faces found", *found["framing"].values()])
        missed = {name: metrics["clean"]["images"] - row[MID_SEVERITY] for name, row in found["corrupted"].items()}
        said = ", ".join(f"{number} {name}" for name, number in missed.items() if number)
        body += f"\nno face is found in {metrics['clean']['images'] - found['clean']} clean images and, at severity "
        body += f"{MID_SEVERITY}, in {said or 'none'}; the middle of those is predicted"
    body += f"\n\n{table(('frame, of the sides', *map(str, metrics['framing'])), frames)}\n"
    return (
        f"{body}\nmacro-F1 clean {with_interval(metrics['clean'])}, mean over corruptions at severity {MID_SEVERITY} "
        f"{with_interval(metrics['mean_over_corruptions'][MID_SEVERITY])}"
    )
