"""The model card of a trained model in Markdown, as Hugging Face reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gender_cls.inference.predictor import MODEL_NAME
from gender_cls.models.zoo import describe_weights
from gender_cls.transforms.corruptions import CORRUPTIONS


def model_card(facts: Mapping[str, Any], file: str = MODEL_NAME) -> str:
    """Return the card of a model in a file of that name, from the facts in its JSON and the template model_card.md."""
    from jinja2 import StrictUndefined, Template  # only a run that saves a model needs it

    text = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    weights = describe_weights(facts["weights"]["name"])
    return template.render(facts, file=file, initial_weights=weights, corruptions=", ".join(CORRUPTIONS))
