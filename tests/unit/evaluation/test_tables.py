"""Tables and notes for the terminal."""

import numpy as np
import pytest
import torch

from gender_cls.evaluation.metrics import Evaluation
from gender_cls.evaluation.tables import classification_report


@pytest.mark.parametrize(("p_male", "label"), [(0.9, "male"), (0.1, "female"), (None, None)])
def test_a_head_that_knows_one_label_is_told(p_male: float | None, label: str | None) -> None:
    probabilities = torch.tensor([0.2, 0.8, 0.7, 0.4]) if p_male is None else torch.full((4,), p_male)
    metrics = Evaluation(probabilities[None], np.array([0, 1, 1, 0]), list("abcd")).metrics(0)
    note = f"every image of val is predicted {label}"
    assert (note in classification_report("val", metrics)) == (label is not None)
    assert label is not None or "every image" not in classification_report("val", metrics)
