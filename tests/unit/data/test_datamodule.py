from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gender_cls.data.validation import FaceSet, check
from gender_cls.data.datamodule import DrawSampler, FaceDataModule
from gender_cls.data.datasets import FaceDataset, collate
from gender_cls.transforms.decode import load_rgb
from gender_cls.data.sources import folder
from gender_cls.transforms.preprocessing import Preprocessing, derive_seed
from gender_cls.transforms.views import CLEAN, EvaluationViews, TrainingViews


def views(seed: int = 0) -> TrainingViews:
    return TrainingViews(Preprocessing(size=32), flip=0.5, jitter=(0.2, 0.2, 0.2), blur=3, seed=seed)


@pytest.fixture(scope="module")
def checked(drawn: Path) -> FaceSet:
    return check(folder(drawn), r"^(.+)_\d{4}$")


@pytest.mark.parametrize("replacement", [True, False])
def test_order_is_a_function_of_seed_and_epoch(replacement: bool) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = DrawSampler([1.0] * 50, seed, replacement)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert [index for index, _ in order(0, 3)] != [index for index, _ in order(0, 4)]
    assert order(0, 3) != order(1, 3)
    torch.manual_seed(99)
    assert order(0, 3) == order(0, 3)


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_count_on_over_epochs_also_after_a_jump(replacement: bool) -> None:
    sampler = DrawSampler([1.0, 2.0, 3.0], seed=0, replacement=replacement)
    seen: Counter[int] = Counter()
    epochs = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        for index, draw in epochs[-1]:
            assert draw == seen[index]
            seen[index] += 1
    for epoch in (4, 1, 3):  # as a resumed run, or one that starts again
        sampler.set_epoch(epoch)
        assert list(sampler) == epochs[epoch]


def test_both_classes_are_drawn_equally_often(checked: FaceSet) -> None:
    data = FaceDataModule(checked, views(), 8)
    labels = []
    for epoch in range(40):
        data.sampler.set_epoch(epoch)
        labels += [int(data.images["train"].labels[index]) for index, _ in data.sampler]
    assert sum(labels) / len(labels) == pytest.approx(0.5, abs=0.04)


def test_each_picture_is_drawn_once_an_epoch_where_classes_are_not_balanced(checked: FaceSet) -> None:
    data = FaceDataModule(checked, views(), 8, balanced_sampler=False)
    number = len(data.images["train"])
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        assert sorted(data.sampler) == [(index, epoch) for index in range(number)]

    some = np.arange(number) % 3 > 0
    sampler = data.make_sampler(some, seed=0)
    drawn = [index for index, _ in sampler]
    assert len(drawn) == len(sampler) == number
    assert sorted(drawn[: some.sum()]) == np.flatnonzero(some).tolist()
    assert len(set(drawn[some.sum() :])) == number - some.sum()
    assert set(drawn) == set(np.flatnonzero(some))


def test_a_view_is_a_function_of_picture_seed_and_draw(checked: FaceSet) -> None:
    def view(index: int, draw: int, seed: int = 0) -> torch.Tensor:
        item = FaceDataset(checked.splits["train"], views(seed))[index, draw]
        assert item is not None
        return item[0]

    before = torch.get_rng_state()
    assert torch.equal(view(0, 0), view(0, 0))
    assert torch.equal(torch.get_rng_state(), before)  # the caller's randomness is left alone
    assert not torch.equal(view(0, 0), view(0, 1))
    assert not torch.equal(view(0, 0), view(0, 0, seed=1))


def test_all_views_at_once_are_the_views_one_by_one(checked: FaceSet) -> None:
    """Also that blurring a channel at a time is blurring the image."""
    image = load_rgb(checked.splits["train"][0].path)
    together = views()(image, "digest", [2, 5, 0])
    assert (together.shape, together.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert all(torch.equal(together[place], views()(image, "digest", [d])[0]) for place, d in enumerate((2, 5, 0)))
    sharp = TrainingViews(Preprocessing(size=32), 0, (0, 0, 0), 3)
    resized = EvaluationViews(sharp.preprocessing)(image, "digest", [CLEAN])[0]
    torch.random.default_generator.manual_seed(derive_seed("view", 0, "digest", 0))
    torch.rand(1)  # whether to flip
    torch.randperm(4)  # the order of the jitter
    whole = sharp.blur(resized)
    assert not torch.equal(whole, resized)
    assert torch.equal(whole, sharp(image, "digest", [0])[0])


def test_derived_seeds_are_the_same_everywhere() -> None:
    assert derive_seed("view", 0, "abc", 1) == 3293282600587856894
    assert derive_seed("a", 11) != derive_seed("a", 1, 1)


def test_an_evaluation_view_is_resized_and_normalised_once(checked: FaceSet) -> None:
    preprocessing = Preprocessing(size=32)
    dataset = FaceDataset(checked.splits["val"], EvaluationViews(preprocessing))
    item = dataset[5]
    assert item is not None
    view, label, index = item
    assert (view.shape, view.dtype, index) == ((3, 32, 32), torch.float32, 5)
    assert label == checked.splits["val"][5].label
    raw = view * torch.tensor(preprocessing.std).view(3, 1, 1) + torch.tensor(preprocessing.mean).view(3, 1, 1)
    assert torch.allclose(raw * 255, (raw * 255).round(), atol=1e-3)  # 8-bit values before


def test_a_picture_that_goes_missing_is_left_out_and_said(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    checked = check(folder(faces), None)
    gone = checked.splits["val"][3].path
    Path(gone).unlink()
    data = FaceDataModule(checked, views(), batch_size=8, num_workers=0)
    batches = list(data.val_dataloader()[0])
    assert torch.cat([indices for _, _, indices in batches]).tolist() == [i for i in range(28) if i != 3]
    assert f"left out: {gone}" in caplog.text
    assert [len(part) for part in collate([None, None])] == [0, 0, 0]


def test_a_sheet_shows_what_the_network_sees_first(checked: FaceSet) -> None:
    data = FaceDataModule(checked, views(), 8)
    sheet, names = data.first_views(8)
    assert sheet.shape == (8, 3, 32, 32)
    assert 0 <= sheet.min() <= sheet.max() <= 1
    assert len(names) == 8
