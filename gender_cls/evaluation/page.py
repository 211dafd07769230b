"""report.html: a report with its images in one file, readable on a phone."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gender_cls.evaluation.tables import with_interval
from gender_cls.transforms.views import MID_SEVERITY


def render(model: str, about: str, metrics: Mapping[str, Any], images: Sequence[tuple[bytes, str]]) -> str:
    """Render the page of a model from the fields of its `Report` and its plots as PNG, with their captions."""
    from jinja2 import Environment, StrictUndefined  # only a full report needs it

    reported = {name: rows[MID_SEVERITY] for name, rows in metrics["corrupted"].items()}
    mistakes = metrics["mistakes"] + metrics["mistakes_corrupted"]
    females, males = map(sum, metrics["clean"]["confusion"])
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"interval": with_interval, "number": lambda x: "" if x is None else f"{x:.3f}"}
    template = pages.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        model=model,
        about=about,
        metrics=metrics,
        means=metrics["mean_over_corruptions"],
        severity=MID_SEVERITY,
        reported=reported,
        worst=min(reported, key=lambda name: reported[name]["f1_macro"]) if females and males else None,
        always_male=males / (2 * males + females),  # F1 = 2 TP / (2 TP + FP + FN) of male, and 0 of female
        mistakes=[row | {"file": "/".join(Path(row["path"]).parts[-2:])} for row in mistakes],
        images=[(b64encode(png).decode(), caption) for png, caption in images],
    )
