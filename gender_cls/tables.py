"""What a person reads in the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gender_cls import CLASSES
from gender_cls.calibration import is_blind
from gender_cls.checks import FaceSet
from gender_cls.metrics import RESAMPLES
from gender_cls.views import MIDDLE

SHOWN = 20  # skipped pictures that are listed one by one


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need; numbers to the right, floats with three digits."""
    cells = [list(header)] + [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right)).rstrip()
        for line in cells
    )


def with_interval(figures: Mapping[str, Any], name: str = "f1_macro") -> str:
    """A figure and its 95 % interval; empty where there is none."""
    if figures[name] is None:
        return ""
    low, high = figures[f"{name}_ci95"]
    return f"{figures[name]:.3f} ({low:.3f} to {high:.3f})"


def describe_data(faces: FaceSet) -> str:
    """The table of a start: what there is, what was left out and what to beware of."""
    counts = faces.counts()
    lines = [table(list(counts[0]), [list(row.values()) for row in counts])]
    lines.append(f"female = 0, male = 1; skipped {len(faces.skipped)}; data fingerprint {faces.fingerprint}")
    lines += [f"skipped {path}: {reason}" for path, reason in faces.skipped[:SHOWN]]
    if len(faces.skipped) > SHOWN:
        lines.append(f"... and {len(faces.skipped) - SHOWN} more, all listed in metrics.json")
    return "\n".join(lines + [f"note: {note}" for note in faces.notes])


def classification_report(split: str, figures: Mapping[str, Any]) -> str:
    """A table in the manner of scikit-learn's."""
    names = ("precision", "recall", "f1")
    counts = np.array(figures["confusion"])
    rows: list[list[object]] = []
    for label, name in enumerate(CLASSES):
        rows.append([name, *(figures[f"{what}_{name}"] for what in names), int(counts[label].sum())])
    rows.append(["macro", *(figures[f"{what}_macro"] for what in names), figures["pictures"]])
    rows.append(["accuracy", "", "", figures["accuracy"], figures["pictures"]])
    low, high = figures["f1_macro_ci95"]
    return (
        table((split, *names, "pictures"), rows)
        + f"\nmacro-F1 {figures['f1_macro']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
        + f"({RESAMPLES} bootstrap draws of {figures['people']} people)"
    )


def balance_note(n_female: int, n_male: int) -> str:
    """What a balanced sampler and the class weight do together to a confidence that is not calibrated."""
    sampler, weight = -math.log(n_male / n_female), math.log((n_female + n_male) / (2 * n_male))
    both = sampler + weight
    label, share = ("female", 1 / (1 + math.exp(both))) if both < 0 else ("male", 1 / (1 + math.exp(-both)))
    return (
        f"note: the sampler moves the logit by {sampler:+.2f} and the class weight by {weight:+.2f}: against the "
        f"mixture of these pictures {abs(both):.2f} towards {label}, so that an even chance is called {label} with "
        f"{share:.0%}; calibration=platt makes the confidence a probability"
    )


def calibration_report(calibration: Mapping[str, Any]) -> str:
    """How far off the probabilities are with and without calibration, on what it was fitted on."""
    names = {"error": "error", "error_corrected": "less noise", "slope": "slope", "intercept": "intercept"}
    rows: list[list[object]] = []
    for condition in ("clean", "degraded"):
        for what in ("raw", "calibrated"):
            found = calibration[condition][what]
            rows.append([f"{what}, {condition}", *("" if found[name] is None else found[name] for name in names)])
    chance = "\nnote: on these the head does no better than chance, so every answer comes out near the prior"
    note = chance if is_blind(calibration) else ""
    where = "train, out of fold" if calibration["split"] == "train" else calibration["split"]
    return (
        f"{table(('calibration', *names.values()), rows)}\n"
        f"p(male) at a share of men of {calibration['prior']:.2g}; {calibration['pictures']} pictures of "
        f"{calibration['people']} people ({where}), which slope and bias are fitted on; degraded: one kind each, "
        f"severity {MIDDLE}{note}"
    )


def degraded_report(numbers: Mapping[str, Any]) -> str:
    """Macro-F1 by degradation and severity, of what `answers.measure` gives."""
    rows = {**numbers["degraded"], "mean of the seven": numbers["mean_of_seven"]}
    header = ("macro-F1 at severity", *map(str, numbers["mean_of_seven"]))
    body = table(header, [[name, *(figures["f1_macro"] for figures in row.values())] for name, row in rows.items()])
    return (
        f"{body}\nmacro-F1 clean {with_interval(numbers['clean'])}, "
        f"mean of the seven at severity {MIDDLE} {with_interval(numbers['mean_of_seven'][MIDDLE])}"
    )
