"""Plots: each set has a panel, however many there are."""

import pytest
import torch

from gender_cls.evaluation import plots


@pytest.mark.parametrize("number", [1, 8, 9])
def test_each_set_has_a_panel(number: int) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    sets = {f"corruption {at}": torch.tensor([0.1, 0.9, 0.4, 0.6]) for at in range(number)}
    figure = plots.plot_scores(sets, labels)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == list(sets)
    assert [ax for ax in figure.axes if ax.axison] == figure.axes[:number]  # spare ones are blank
    assert plots.to_image(figure).width > 0
