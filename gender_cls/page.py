"""report.html: one file with its pictures in it, readable on a phone."""

import math
import warnings
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gender_cls.tables import with_interval
from gender_cls.views import MIDDLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CARE = (
    "The labels say how a data set filed a face, not who someone is. "
    "Nothing here is fit to decide anything about a person."
)
TITLE = "Where the model breaks"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
.wide { overflow-x: auto; margin-bottom: 1rem }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.figures { columns: 2 24rem } figure { margin: 0 0 1.5rem; break-inside: avoid }
img { width: 100% } figcaption, caption { font-size: .85rem; color: #555; text-align: left; white-space: normal }
"""
HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
Numbers = Mapping[str, Any]  # of one set of answers, as `metrics.Evaluation` gives them
Cell = str | int | float | None
COLUMNS = ("f1_macro", "f1_female", "f1_male", "recall_female", "recall_male")
CALIBRATION = {
    "error": "calibration error",
    "error_corrected": "less noise",
    "slope": "slope",
    "intercept": "intercept",
    "brier": "Brier score",
    "nll": "NLL",
}
TITLES = ("macro-F1", "F1 female", "F1 male", "recall female", "recall male")


def render(model: str, about: str, numbers: Numbers, pictures: Sequence[tuple[bytes, str]]) -> str:
    """The whole page.

    Args:
        model: What is reported on.
        about: Which pictures, and which weights.
        numbers: As `answers.measure` gives them.
        pictures: PNG files with their captions.
    """
    degraded, means = numbers["degraded"], numbers["mean_of_seven"]
    middle = {name: rows[MIDDLE] for name, rows in degraded.items()}
    every = {"clean": numbers["clean"], **middle, "mean of the seven": means[MIDDLE]}
    by_severity = {**degraded, "mean of the seven": means}
    parts = [
        _paragraph(f"{model}. {about}."),
        _paragraph(_in_words(numbers["clean"], middle, means[MIDDLE])),
        _paragraph(CARE),
        f"<h2>Clean, and degraded at severity {MIDDLE}</h2>",
        _table(about, ("", *TITLES, "AUROC"), [_row(name, row) for name, row in every.items()]),
        "<h2>Macro-F1 by severity</h2>",
        _table(
            about,
            ("", *map(str, means)),
            [[name, *(row["f1_macro"] for row in rows.values())] for name, rows in by_severity.items()],
            shade=True,
        ),
    ]
    if numbers["slices"]:
        parts += ["<h2>Parts of the data</h2>", _slices(about, numbers["slices"])]
    if numbers["gap"]:
        best, worst, fall = (numbers["gap"][key] for key in ("best", "worst", "f1_macro"))
        parts.append(_paragraph(f"From {best} to {worst}, macro-F1 on clean pictures falls by {fall:.3f}."))
    if numbers["calibration"]:
        parts += ["<h2>Can its confidence be believed?</h2>", *_calibration(about, numbers["calibration"])]
    mistakes = numbers["mistakes"] + numbers["mistakes_degraded"]
    parts += ["<h2>Surest mistakes</h2>", _mistakes(about, mistakes) if mistakes else _paragraph("None.")]
    shown = [_picture(png, caption) for png, caption in pictures]
    body = "\n".join([*parts, "<h2>Figures</h2>", '<div class="figures">', *shown, "</div>"])
    head = f"<head>{HEAD}<title>{TITLE}</title><style>{STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body><h1>{TITLE}</h1>\n{body}\n</body></html>\n'


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    buffer = BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # letters of file names that no font has
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _in_words(clean: Numbers, middle: Mapping[str, Numbers], mean: Numbers) -> str:
    worst = min(middle, key=lambda name: middle[name]["f1_macro"])
    females, males = map(sum, clean["confusion"])
    always_male = males / (2 * males + females)  # F1 = 2 TP / (2 TP + FP + FN) of male, and 0 of female
    return (
        f"Macro-F1 is {with_interval(clean)} on clean pictures and {with_interval(mean)} as the mean of the seven "
        f"degradations at severity {MIDDLE}; the worst of them is {worst}, {with_interval(middle[worst])}. Macro-F1 is "
        f"the mean of both classes' F1: 1 is perfect, and answering male always gives {always_male:.2f} here. "
        "Intervals are 95 %; they draw people, not pictures."
    )


def _row(name: str, numbers: Numbers) -> list[Cell]:
    cells = [with_interval(numbers, column) for column in COLUMNS]
    return [name, *cells, numbers["auroc"]]


def _slices(about: str, slices: Sequence[Numbers]) -> str:
    rows = [
        [
            row["slice"],
            row["clean"]["pictures"],
            row["clean"]["people"],
            *_row("", row["clean"])[1:],
            with_interval(row["mean_of_seven"]),
        ]
        for row in slices
    ]
    return _table(f"{about}, clean", ("", "pictures", "people", *TITLES, "AUROC", "mean of the seven"), rows)


def _calibration(about: str, numbers: Numbers) -> list[str]:
    prior, model, raw = numbers["prior"], numbers["model"], numbers["raw"]
    of_whom = f"{about}; classes weighted to a share of men of {prior:.2g}"
    clean, left, mean = model["clean"]["error"], model["clean"]["error_corrected"], model["mean_of_seven"]
    was = f" (the raw head: {raw['clean']['error_corrected']:.3f})" if raw else ""
    words = (
        f"{'The model is calibrated' if raw else 'The model is not calibrated: its confidence is a score'}. Among "
        f"pictures of about the same p(male), the share of men differs from it by {clean:.3f} on average, clean. Noise "
        f"alone gives a perfect model {clean - left:.3f} on so many pictures; less that, {left:.3f} is left{was}, and "
        f"{mean['error_corrected']:.3f} as the mean of the seven degradations; below 0 is as good as 0. Slope and "
        "intercept are what a refit on these pictures would still do to the logit: a slope below 1 means too sure, "
        "above 1 not sure enough; an intercept above 0 means that female is said too often, below 0 male. Brier score "
        "and NLL (negative log-likelihood) judge confidence and ranking together; less is better. All this "
        f"holds for a share of men of {prior:.2g} among the pictures"
        f"{'; predict.py prior=... answers for another' if raw else ''}."
    )
    parts = [_paragraph(words)]
    for title, sets in (
        ("calibrated" if raw else "the model as it is", model),
        ("raw head, before calibration, moved to that share", raw),
    ):
        if sets:
            rows = [
                ["mean of the seven" if name == "mean_of_seven" else name, *(values[key] for key in CALIBRATION)]
                for name, values in sets.items()
            ]
            parts.append(_table(f"{title}; {of_whom}", ("", *CALIBRATION.values()), rows))
    return [*parts, *_coverage(of_whom, numbers["coverage"])]


def _coverage(of_whom: str, coverages: Mapping[str, Sequence[Numbers]]) -> list[str]:
    def cell(row: Numbers) -> str:
        return f"{row['coverage']:.0%}" + (
            f" (sure={math.floor(1e4 * row['confidence']) / 100})" if row["confidence"] else ""
        )

    words = (
        "If only its surest answers are taken, fewer are wrong. The table says which share of the pictures can be "
        "answered with so few errors, and in brackets the confidence in % below which predict.py sure=... says unsure. "
        "These limits are read off the pictures reported on: expect somewhat more errors on others."
    )
    errors = [f"error below {row['error']:.0%}" for row in coverages["clean"]]
    rows = [[name, *map(cell, of_errors)] for name, of_errors in coverages.items()]
    return [_paragraph(words), _table(of_whom, ("coverage", *errors), rows)]


def _mistakes(about: str, mistakes: Sequence[Numbers]) -> str:
    keys = ("condition", "label", "answer", "p_male")
    names = ("condition", "label", "answer", "p(male)", "file")
    return _table(
        about, names, [[*(row[key] for key in keys), "/".join(Path(row["path"]).parts[-2:])] for row in mistakes]
    )


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], shade: bool = False) -> str:
    """Numbers have three digits, and are coloured from 1 (none) to 0.5 (red) if `shade`."""

    def cell(value: Cell) -> str:
        if not isinstance(value, float):
            return f"<td>{escape('' if value is None else str(value))}</td>"
        style = f' style="background: rgb(220 60 40 / {100 * min(1, max(0, 2 - 2 * value)):.0f}%)"' if shade else ""
        return f"<td{style}>{value:.3f}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _picture(png: bytes, caption: str) -> str:
    data, text = b64encode(png).decode(), escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
