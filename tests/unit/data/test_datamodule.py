from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gender_cls.data.datamodule import FolderDataModule
from gender_cls.data.datasets import FaceDataset, collate
from gender_cls.data.sampler import DrawSampler
from gender_cls.errors import UserError
from gender_cls.models.network import GenderNet
from gender_cls.training.callbacks import first_views
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import EvaluationViews


@pytest.fixture(scope="module")
def data(drawn: Path) -> FolderDataModule:
    return module(drawn)


def module(root: Path, **options: Any) -> FolderDataModule:
    return FolderDataModule(root, size=32, batch_size=8, num_workers=0, holdout=0, **options)


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


def test_both_classes_are_drawn_equally_often(data: FolderDataModule) -> None:
    labels = []
    for epoch in range(40):
        data.sampler.set_epoch(epoch)
        labels += [int(data.datasets["train"].labels[index]) for index, _ in data.sampler]
    assert sum(labels) / len(labels) == pytest.approx(0.5, abs=0.04)


def test_each_image_is_drawn_once_an_epoch_where_classes_are_not_balanced(drawn: Path) -> None:
    data = module(drawn, balanced_sampler=False)
    number = len(data.datasets["train"])
    for epoch in range(3):
        data.sampler.set_epoch(epoch)
        assert sorted(data.sampler) == [(index, epoch) for index in range(number)]

    some = np.arange(number) % 3 > 0
    sampler = data.make_sampler(some, seed=0)
    drawn_indices = [index for index, _ in sampler]
    assert len(drawn_indices) == len(sampler) == number
    assert sorted(drawn_indices[: some.sum()]) == np.flatnonzero(some).tolist()
    assert len(set(drawn_indices[some.sum() :])) == number - some.sum()
    assert set(drawn_indices) == set(np.flatnonzero(some))


def test_a_training_item_is_the_view_of_its_image_seed_and_draw(data: FolderDataModule, drawn: Path) -> None:
    def view(index: int, draw: int, seed: int = 0) -> torch.Tensor:
        item = (data if seed == 0 else module(drawn, view_seed=seed)).datasets["train"][index, draw]
        assert item is not None
        return item[0]

    before = torch.get_rng_state()
    assert torch.equal(view(0, 0), view(0, 0))
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random state is left alone
    assert not torch.equal(view(0, 0), view(0, 1))
    assert not torch.equal(view(0, 0), view(1, 0))
    assert not torch.equal(view(0, 0), view(0, 0, seed=1))


def test_an_evaluation_view_is_resized_and_normalized_once(data: FolderDataModule) -> None:
    preprocessing, faces = Preprocessing(size=32), data.faces.splits["val"]
    item = FaceDataset(faces, EvaluationViews(preprocessing))[5]
    own = data.datasets["val"][5]
    assert item is not None
    assert own is not None
    view, label, index = item
    assert (view.shape, view.dtype, index) == ((3, 32, 32), torch.float32, 5)
    assert label == faces[5].label
    pixels = view * torch.tensor(preprocessing.std).view(3, 1, 1) + torch.tensor(preprocessing.mean).view(3, 1, 1)
    assert torch.allclose(pixels * 255, (pixels * 255).round(), atol=1e-3)  # 8-bit values before
    assert torch.equal(own[0], view)


def test_an_image_that_goes_missing_is_left_out_and_said(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(faces, identity=None)
    gone = data.faces.splits["val"][3].path
    Path(gone).unlink()
    (loader,) = data.val_dataloader()
    batches = list(loader)
    assert torch.cat([indices for _, _, indices in batches]).tolist() == [i for i in range(28) if i != 3]
    assert f"left out: {gone}" in caplog.text
    assert [len(part) for part in collate([None, None])] == [0, 0, 0]


def test_the_first_views_are_what_the_network_sees_first(data: FolderDataModule) -> None:
    views = first_views(data, 8)
    assert views.shape == (8, 3, 32, 32)
    assert 0 <= views.min() <= views.max() <= 1
    assert len({view.numpy().tobytes() for view in views}) == 8
    data.sampler.set_epoch(0)
    first = data.datasets["train"][next(iter(data.sampler))]
    assert first is not None
    assert torch.allclose(data.views.preprocessing.normalize((views[0] * 255).round().byte()), first[0], atol=1e-5)


def test_features_are_cached_of_a_frozen_backbone_alone(data: FolderDataModule, drawn: Path) -> None:
    assert data.caches(GenderNet(None))
    assert not data.caches(GenderNet(None, trainable="layer4"))
    assert not module(drawn, cached_views=0).caches(GenderNet(None))


def test_without_a_trainer_batches_are_views(drawn: Path) -> None:
    data = FolderDataModule(drawn, size=32, batch_size=8, num_workers=0, holdout=0.2)
    data.setup("fit")
    assert data.eval_splits == ["dev", "val"]
    views, labels, indices = next(iter(data.train_dataloader()))
    assert (views.shape, labels.dtype, len(indices)) == ((8, 3, 32, 32), torch.float32, 8)
    assert sum(data.class_counts) == len(data.datasets["train"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.batch_size", 0), ("data.num_workers", -1), ("seed", -1), ("cached_views", -1), ("data.size", 0)],
)
def test_an_impossible_value_is_refused(key: str, value: int, drawn: Path) -> None:
    with pytest.raises(UserError) as failure:
        FolderDataModule(drawn, **{key.rpartition(".")[2]: value})
    assert failure.value.code == "bad-value"
    assert f"{key}={value}" in str(failure.value)
