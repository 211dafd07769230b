"""The model card: what a model is, was made of, is good for and not, in Markdown as Hugging Face reads it."""

from collections.abc import Mapping
from typing import Any

from gender_cls.calibration import is_blind
from gender_cls.weights import shown_name

CARD = """---
license: other
pipeline_tag: image-classification
tags: [{backbone}, pytorch, gender]
---

# Female or male in face pictures

A {backbone} whose last layer is replaced by a linear one with one output; the rest is {trainable}; {answer}. The
labels say how a data set filed a face, not who someone is.

## Made of

| | |
| --- | --- |
| weights it started from | {weights} |
| data | fingerprint {fingerprint}: {counts} |
| preprocessing | {preprocessing} |
| trained with | {versions} |

## Figures

{figures}

Intervals are 95 %, by a bootstrap that draws people. Figures on degraded pictures (blur, fog, low light, noise,
rain, low resolution, glare) are in the report of the training run, if it wrote one (`report=full`), or come from
`python -m gender_cls.report`; degraded pictures are answered worse.

## Confidence

{calibration}

## Not for

Deciding anything about a person: access, services, advertising, hiring, policing, surveillance. Nobody's gender can be
read off a face, least of all trans, non-binary and gender-nonconforming people's. Use it to study recognition under
degradation and imbalance, and to sort pictures of people who agreed to it, with a way to object.

## Fails on

Whom the data holds few of; with FACECOM, women (one picture in five), darker skin, the young and the old, head
coverings, and anything cut, turned or lit otherwise than press photographs.
"""


TRAINABLE = {"head": "frozen", "all": "trained, too"}


def model_card(facts: Mapping[str, Any]) -> str:
    """The card of a model.

    Args:
        facts: As the model's JSON has them.
    """
    data, weights = facts["data"], facts["weights"]
    rows = ["| split | pictures | people | macro-F1 | F1 female | F1 male |", "| --- | --- | --- | --- | --- | --- |"]
    for split, values in facts["metrics"].items():
        scores = [_score(values, name) for name in ("f1_macro", "f1_female", "f1_male")]
        rows.append(f"| {split} | {values['pictures']} | {values['people']} | {' | '.join(scores)} |")
    counts = ", ".join(
        f"{row['pictures']} {row['class']} pictures of {row['people']} people in {row['split']}"
        for row in data["counts"]
    )
    return CARD.format(
        backbone=facts["backbone"],
        trainable=TRAINABLE.get(weights["trainable"], f"trained from {weights['trainable']} on"),
        answer=facts["answer"],
        weights=f"{shown_name(weights['name'])} (hash {weights['hash']})",
        fingerprint=data["fingerprint"],
        counts=counts,
        preprocessing=", ".join(f"{name} {value}" for name, value in facts["preprocessing"].items()),
        versions=", ".join(f"{name} {value}" for name, value in facts["versions"].items()),
        figures="\n".join(rows),
        calibration=_calibration(facts.get("calibration")),
    )


def _score(values: Mapping[str, Any], name: str) -> str:
    if values[name] is None:
        return "-"
    low, high = values[f"{name}_ci95"]
    return f"{values[name]:.3f} ({low:.3f} to {high:.3f})"


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if not calibration:
        return "Not calibrated: the confidence is a score, not the share of such answers that are right."
    if is_blind(calibration):
        return (
            "On the pictures that calibration was fitted on it does no better than chance: whatever the picture, it "
            f"says male with about {calibration['prior']:.0%}."
        )
    clean, degraded = (calibration[name]["calibrated"]["error_corrected"] for name in ("clean", "degraded"))
    return (
        f"Calibrated for pictures of which {calibration['prior']:.0%} show men, on {calibration['pictures']} pictures "
        f"of {calibration['people']} people of {calibration['split']} whom the head was not trained on. There the "
        f"error of p(male), less noise, is {clean:.3f} clean and {degraded:.3f} degraded. It holds for such pictures."
    )
