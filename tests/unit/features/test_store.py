"""The store of frozen features: what names it, what it finds, and that nothing breaks it."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gender_cls.errors import UserError
from gender_cls.features.store import ABOUT, DIGEST, Store, main
from gender_cls.transforms.augmentation import RandomCorruption
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import EvaluationViews, TrainingViews

DIGESTS = np.array([f"{number:032x}".encode() for number in range(48)], dtype=DIGEST)
Make = Callable[..., Store]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def store(seed: int = 0) -> Store:
        return Store(tmp_path / "store", {"of": "training", "view_seed": seed})

    return store


def write(store: Store, columns: tuple[int, ...], digests: np.ndarray = DIGESTS) -> torch.Tensor:
    features = torch.rand(len(digests), len(columns), 512).half()
    store.write(digests, columns, features)
    store.open()
    return features.float()


def test_names_are_those_of_older_versions(tmp_path: Path) -> None:
    """Stored features stay valid."""
    how = {"precision": "bf16", "dtype": "float16", "engine": "torch", "version": 1}
    preprocessing = Preprocessing(crop=0.8, median=True)
    views = (
        EvaluationViews(preprocessing),
        TrainingViews(preprocessing),
        TrainingViews(preprocessing, corruption=RandomCorruption(0.5, 0.3), seed=7),
    )
    names = [Store(tmp_path, {"backbone": "0123456789abcdef", **each.facts, **how}).folder.name for each in views]
    assert names == ["af3cb9f7c02e5063", "562a2bc64fd6071d", "92ef90e608afa0ae"]


def test_what_is_written_is_found_and_read(make: Make) -> None:
    store = make()
    features = write(store, (0, 3), DIGESTS[5:9])
    for place, column in enumerate((0, 3)):
        places = store.find(DIGESTS[4:8], column)
        assert (places < 0).tolist() == [True, False, False, False]
        assert torch.equal(store.read(places[1:]), features[:3, place])
    assert (store.find(DIGESTS, 1) < 0).all()
    again = make()
    assert torch.equal(again.read(again.find(DIGESTS[5:9], 3)), features[:, 1])


def test_places_stay_right_while_the_store_grows(make: Make) -> None:
    store = make()
    write(store, (1,))
    places = store.find(DIGESTS, 1)
    before = store.read(places)
    write(store, (0, 2, 3, 4, 5, 6))
    write(store, (1,), np.array([b"f" * 32], dtype=DIGEST))
    assert torch.equal(store.read(places), before)


def test_a_shard_that_is_still_written_is_not_read(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    store = make()
    write(store, (0,))
    (shard,) = store.folder.glob("*.pt")
    for unfinished in (f".{shard.stem}.part-1.pt", f"{shard.stem}.part"):  # the second as older versions named it
        (store.folder / unfinished).write_bytes(shard.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert (make().find(DIGESTS, 0) >= 0).all()
    assert not caplog.text
    with make().lock():
        assert {path.name for path in store.folder.iterdir()} == {ABOUT, "lock", shard.name}


def test_what_is_stored_is_listed_and_deleted(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["store", "--dir", str(tmp_path / "store"), *arguments])
        main()
        return capsys.readouterr().out

    assert command() == f"no features in {tmp_path / 'store'}\n"
    one, other = make(), make(seed=1)
    os.utime(one.folder / ABOUT, (0, 0))  # used last
    write(one, (0, 1, 2, 3, 4))
    write(other, (0,))
    lines = command().splitlines()
    assert lines[0].startswith(one.folder.name)
    assert re.search(r" 0\.\d MB +48 images +5 views .* view_seed=0$", lines[0])
    with pytest.raises(SystemExit, match="2"):
        command("--clear", "nonsense")
    with other.lock(), pytest.raises(SystemExit, match="is in use by another process"):
        command("--clear", other.folder.name)
    assert command("--clear", other.folder.name) == f"deleted {other.folder.name}\n"
    assert len(command().splitlines()) == 1
    command("--clear", "all")
    assert command() == f"no features in {tmp_path / 'store'}\n"


def test_a_store_that_can_not_be_written_is_one_line(make: Make, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match=r"^features\.dir: .*store.* can't be written") as failure:
        make()
    assert failure.value.code == "not-writable"


def test_a_full_disk_is_one_line_and_leaves_no_shard(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, path: Path) -> None:
        path.write_bytes(b"some")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    store = make()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="PytorchStreamWriter failed writing file") as failure:
        write(store, (0,))
    assert failure.value.code == "not-writable"
    assert [path.name for path in store.folder.iterdir()] == [ABOUT]


def test_a_shard_without_the_right_to_read_it_is_one_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "permission denied")

    store = make()
    write(store, (0,))
    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(UserError, match=rf"features\.dir: .*permission denied.*--clear {store.folder.name}") as failure:
        make()
    assert failure.value.code == "unreadable"
