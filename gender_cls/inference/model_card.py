"""The model card of a trained model in Markdown, as Hugging Face reads it."""

from collections.abc import Mapping
from typing import Any

from gender_cls.models.zoo import describe_weights

CARD = """---
license: other
pipeline_tag: image-classification
tags: [{backbone}, pytorch, gender]
---

# Female or male in face images

A {backbone} whose last layer is replaced by a linear layer with one output; the other layers are {trainable}. The
prediction is {prediction}. The labels say how a data set filed a face, not who someone is.

## Training

| | |
| --- | --- |
| initial weights | {weights} |
| data | fingerprint {fingerprint}: {counts} |
| preprocessing | {preprocessing} |
| packages | {versions} |

## Metrics

{metrics}

Intervals are 95 %, by a bootstrap over identities. Metrics on corrupted images (blur, fog, low light, noise, rain, low
resolution, glare) are in the report of the training run, if it wrote one (`report=full`), or come from
`python -m gender_cls.evaluation.report`; predictions on corrupted images are worse.

## Confidence

{calibration}

## Uses to avoid

Deciding anything about a person: access, services, advertising, hiring, policing, surveillance. Nobody's gender can be
read off a face, least of all that of trans, non-binary and gender-nonconforming people. Use it to study recognition
under corruption and imbalance, and to sort images of people who agreed to it, with a way to object.

## Known weaknesses

It fails more often on those the data holds few of: with FACECOM, women (one image in five), people with darker skin,
the young and the old, people with head coverings, and anything cropped, turned or lit unlike press photographs.
"""
TRAINABLE = {"head": "frozen", "all": "trained as well"}


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card of a model from the facts in its JSON."""
    data, weights = facts["data"], facts["weights"]
    rows = ["| split | images | identities | macro-F1 | F1 female | F1 male |", "| --- | --- | --- | --- | --- | --- |"]
    for split, values in facts["metrics"].items():
        scores = [_score(values, name) for name in ("f1_macro", "f1_female", "f1_male")]
        rows.append(f"| {split} | {values['images']} | {values['identities']} | {' | '.join(scores)} |")
    counts = ", ".join(
        f"{row['images']} {row['class']} images of {row['identities']} identities in {row['split']}"
        for row in data["counts"]
    )
    return CARD.format(
        backbone=facts["backbone"],
        trainable=TRAINABLE.get(weights["trainable"], f"trained from {weights['trainable']} on"),
        prediction=facts["prediction"],
        weights=f"{describe_weights(weights['name'])} (hash {weights['hash']})",
        fingerprint=data["fingerprint"],
        counts=counts,
        preprocessing=", ".join(f"{name} {value}" for name, value in facts["preprocessing"].items()),
        versions=", ".join(f"{name} {value}" for name, value in facts["versions"].items()),
        metrics="\n".join(rows),
        calibration=_calibration(facts.get("calibration")),
    )


def _score(values: Mapping[str, Any], name: str) -> str:
    if values[name] is None:
        return "-"
    low, high = values[f"{name}_ci95"]
    return f"{values[name]:.3f} ({low:.3f} to {high:.3f})"


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if not calibration:
        return "Uncalibrated: the confidence is a score, not the share of such predictions that are right."
    if calibration.get("blind"):
        return (
            "On the images of the calibration the model does no better than chance: for any image, it predicts male "
            f"with a probability of about {calibration['prior']:.0%}."
        )
    clean, corrupted = (calibration[name]["calibrated"]["ece_debiased"] for name in ("clean", "corrupted"))
    return (
        f"Calibrated to a share of male images of {calibration['prior']:.0%}, on {calibration['images']} images of "
        f"{calibration['identities']} identities of {calibration['split']} that the head was not trained on. There the "
        f"debiased ECE is {clean:.3f} on clean and {corrupted:.3f} on corrupted images. It holds for similar images."
    )
