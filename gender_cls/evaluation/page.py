"""report.html: a report with its images in one file, readable on a phone."""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gender_cls.evaluation.tables import with_interval
from gender_cls.transforms.views import MID_SEVERITY

CARE = (
    "The labels say how a data set filed a face, not who someone is. "
    "Nothing here is fit to decide anything about a person."
)
TITLE = "Robustness and calibration report"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
.wide { overflow-x: auto; margin-bottom: 1rem }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.plots { columns: 2 24rem } figure { margin: 0 0 1.5rem; break-inside: avoid }
img { width: 100% } figcaption, caption { font-size: .85rem; color: #555; text-align: left; white-space: normal }
"""
HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
COLUMNS = ("f1_macro", "f1_female", "f1_male", "recall_female", "recall_male")
CALIBRATION = {"ece": "ECE", "ece_debiased": "debiased ECE", "slope": "slope", "intercept": "intercept"}
CALIBRATION |= {"brier": "Brier score", "nll": "NLL"}
MEAN = "mean over corruptions"
TITLES = ("macro-F1", "F1 female", "F1 male", "recall female", "recall male")


def render(model: str, about: str, metrics: Mapping[str, Any], images: Sequence[tuple[bytes, str]]) -> str:
    """Render the whole page.

    Args:
        model: Path of the model.
        about: Description of the images and weights.
        metrics: Metrics of the report, see `Report`.
        images: PNG files with their captions.
    """
    corrupted, means = metrics["corrupted"], metrics["mean_over_corruptions"]
    reported = {name: rows[MID_SEVERITY] for name, rows in corrupted.items()}
    every = {"clean": metrics["clean"], **reported, MEAN: means[MID_SEVERITY]}
    by_severity = {**corrupted, MEAN: means}
    parts = [
        _paragraph(f"{model}. {about}."),
        _paragraph(_summary(metrics["clean"], reported, means[MID_SEVERITY])),
        _paragraph(CARE),
        f"<h2>Clean, and corrupted at severity {MID_SEVERITY}</h2>",
        _table(about, ("", *TITLES, "AUROC"), [_row(name, row) for name, row in every.items()]),
        "<h2>Macro-F1 by severity</h2>",
        _table(
            about,
            ("", *map(str, means)),
            [[name, *(row["f1_macro"] for row in rows.values())] for name, rows in by_severity.items()],
            shade=True,
        ),
    ]
    if metrics["slices"]:
        parts += ["<h2>Slices</h2>", _slices(about, metrics["slices"])]
    if metrics["gap"]:
        best, worst, fall = (metrics["gap"][key] for key in ("best", "worst", "f1_macro"))
        parts.append(_paragraph(f"Macro-F1 on clean images is {fall:.3f} lower for {worst} than for {best}."))
    if metrics["calibration"]:
        parts += ["<h2>Calibration</h2>", *_calibration(about, metrics["calibration"])]
    mistakes = metrics["mistakes"] + metrics["mistakes_corrupted"]
    parts += ["<h2>Most confident mistakes</h2>", _mistakes(about, mistakes) if mistakes else _paragraph("None.")]
    shown = [_image(png, caption) for png, caption in images]
    body = "\n".join([*parts, "<h2>Plots</h2>", '<div class="plots">', *shown, "</div>"])
    head = f"<head>{HEAD}<title>{TITLE}</title><style>{STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body><h1>{TITLE}</h1>\n{body}\n</body></html>\n'


def _summary(clean: Mapping[str, Any], corrupted: Mapping[str, Mapping[str, Any]], mean: Mapping[str, Any]) -> str:
    worst = min(corrupted, key=lambda name: corrupted[name]["f1_macro"])
    females, males = map(sum, clean["confusion"])
    always_male = males / (2 * males + females)  # F1 = 2 TP / (2 TP + FP + FN) of male, and 0 of female
    return (
        f"Macro-F1 is {with_interval(clean)} on clean images and {with_interval(mean)} as the mean over corruptions "
        f"at severity {MID_SEVERITY}; the worst corruption is {worst}, with {with_interval(corrupted[worst])}. "
        "Macro-F1 is the mean of the F1 of both classes: 1 is perfect, and always predicting male gives "
        f"{always_male:.2f} here. Intervals are 95 % bootstrap intervals over identities."
    )


def _row(name: str, metrics: Mapping[str, Any]) -> list[str | float | None]:
    return [name, *(with_interval(metrics, column) for column in COLUMNS), metrics["auroc"]]


def _slices(about: str, slices: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in slices:
        size = [row["slice"], row["clean"]["images"], row["clean"]["identities"]]
        rows.append([*size, *_row("", row["clean"])[1:], with_interval(row["mean_over_corruptions"])])
    return _table(f"{about}, clean", ("", "images", "identities", *TITLES, "AUROC", MEAN), rows)


def _calibration(about: str, calibration: Mapping[str, Any]) -> list[str]:
    prior, model, uncalibrated = calibration["prior"], calibration["model"], calibration["uncalibrated"]
    about = f"{about}; classes weighted to a prior of {prior:.2g}"
    clean, mean = model["clean"], model["mean_over_corruptions"]
    before = f" ({uncalibrated['clean']['ece_debiased']:.3f} before calibration)" if uncalibrated else ""
    status = "The model is calibrated" if uncalibrated else "The model is uncalibrated: its confidence is a score"
    text = (
        f"{status}. ECE, the mean distance between p(male) and the share of male images among images of about the same "
        f"p(male), is {clean['ece']:.3f} on clean images. A perfectly calibrated model would have an ECE of "
        f"{clean['ece'] - clean['ece_debiased']:.3f} on so few images by chance; minus that, the debiased ECE is "
        f"{clean['ece_debiased']:.3f}{before}, and {mean['ece_debiased']:.3f} as the mean over corruptions; below 0 is "
        "as good as 0. Slope and intercept are those of a refit of the logit on these images: a slope below 1 means "
        "overconfident, above 1 underconfident; an intercept above 0 means that female is predicted too often, below 0 "
        "male. Brier score and NLL (negative log-likelihood) measure confidence and ranking together; lower is better. "
        f"All this holds for a prior (share of male images) of {prior:.2g}"
        f"{'; predict.py prior=... predicts for another' if uncalibrated else ''}."
    )
    parts = [_paragraph(text)]
    for title, conditions in (
        ("calibrated" if uncalibrated else "uncalibrated", model),
        ("uncalibrated, moved to the same prior", uncalibrated),
    ):
        if conditions:
            rows = [
                [MEAN if name == "mean_over_corruptions" else name, *(values[key] for key in CALIBRATION)]
                for name, values in conditions.items()
            ]
            parts.append(_table(f"{title}; {about}", ("", *CALIBRATION.values()), rows))
    return [*parts, *_coverage(about, calibration["coverage"])]


def _coverage(about: str, coverage: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    def cell(row: Mapping[str, Any]) -> str:
        threshold = f" (min_confidence={math.floor(1e4 * row['confidence']) / 100})" if row["confidence"] else ""
        return f"{row['coverage']:.0%}{threshold}"

    text = (
        "If only the most confident predictions are kept, fewer are wrong. The table gives the largest share of images "
        "whose error rate stays below a limit, and in brackets the confidence in % below which predict.py "
        "min_confidence=... says unsure. These thresholds are chosen on the images of this report: expect somewhat "
        "more errors on others."
    )
    errors = [f"error rate below {row['error']:.0%}" for row in coverage["clean"]]
    rows = [[name, *map(cell, by_error)] for name, by_error in coverage.items()]
    return [_paragraph(text), _table(about, ("coverage", *errors), rows)]


def _mistakes(about: str, mistakes: Sequence[Mapping[str, Any]]) -> str:
    keys = ("condition", "label", "prediction", "p_male")
    rows = [[*(row[key] for key in keys), "/".join(Path(row["path"]).parts[-2:])] for row in mistakes]
    return _table(about, ("condition", "label", "prediction", "p(male)", "file"), rows)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]], shade: bool = False) -> str:
    """Render a table; floats have three decimals and, with `shade`, a color from 1 (none) to 0.5 (red)."""

    def cell(value: str | float | None) -> str:
        if not isinstance(value, float):
            return f"<td>{escape('' if value is None else str(value))}</td>"
        style = f' style="background: rgb(220 60 40 / {100 * min(1, max(0, 2 - 2 * value)):.0f}%)"' if shade else ""
        return f"<td{style}>{value:.3f}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _image(png: bytes, caption: str) -> str:
    data, text = b64encode(png).decode(), escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
