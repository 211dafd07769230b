"""Extraction: that only what is missing is computed, what changes the features, and what happens when it is cut off."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from gender_cls.data.datasets import FeatureDataset
from gender_cls.errors import UserError
from gender_cls.features import filling
from gender_cls.features.extractor import Extractor, FeatureOptions
from gender_cls.features.store import DIGEST, Store
from gender_cls.models.backbones import torch_backbone
from gender_cls.models.network import GenderNet
from gender_cls.transforms.augmentation import Augmentation, RandomCorruption
from gender_cls.transforms.decode import Decoder, content_digest
from gender_cls.transforms.listing import list_images
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CONDITIONS, EvaluationViews, TrainingViews, Views

COLUMNS = (0, 1, 2, 3, 4)
UNFINISHED = "*/.*.part-*.pt"


class How:
    """An extractor, the views that it makes features of, and their store."""

    def __init__(self, extractor: Extractor, views: Views) -> None:
        self.extractor = extractor
        self.views = views
        self.store = extractor.store(views)

    def compute(self, images: dict[bytes, str], columns: tuple[int, ...] = COLUMNS, num_workers: int = 0) -> int:
        """Return how many features are new."""
        digests = np.array(list(images), dtype=DIGEST)

        def stored(store: Store) -> int:
            return sum(int((store.find(digests, column) >= 0).sum()) for column in columns)

        before = stored(self.extractor.store(self.views))
        self.store = self.extractor.compute(self.views, images, dict.fromkeys(images, columns), num_workers)
        return stored(self.store) - before


Make = Callable[..., How]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARD_IMAGES", 10)


@pytest.fixture(scope="module")
def network(backbone_file: Path) -> GenderNet:
    return GenderNet(str(backbone_file))


@pytest.fixture
def make(network: GenderNet, tmp_path: Path) -> Make:
    def how(net: GenderNet = network, where: str = "store", seed: int = 0, **given: Any) -> How:
        preprocessing = Preprocessing(**{"size": 32} | given.pop("preprocessing", {}))
        corruption = given.pop("corruption", RandomCorruption())
        options = FeatureOptions(tmp_path / where, precision="fp32")
        options = replace(options, **{key: given.pop(key) for key in ("dtype", "engine", "precision") if key in given})
        views = TrainingViews(preprocessing, Augmentation(**given), corruption, seed)
        return How(Extractor(net, options), views)

    return how


def wanted(root: Path) -> dict[bytes, str]:
    return {content_digest(Path(path).read_bytes()).encode(): path for path in list_images(root / "train").paths}


def read(store: Store, images: dict[bytes, str], column: int) -> torch.Tensor:
    places = store.find(np.array(list(images), dtype=DIGEST), column)
    assert (places >= 0).all()
    return store.read(places)


def shards(store: Path) -> dict[str, torch.Tensor]:
    return {path.name: torch.load(path, weights_only=True)["features"] for path in store.glob("*/[!.]*.pt")}


def test_stored_features_are_those_of_the_network(drawn: Path, make: Make, network: GenderNet) -> None:
    how = make(dtype="float32")
    images = wanted(drawn)
    assert how.compute(images) == 48 * 5
    digest, path = list(images.items())[7]
    views = how.views(Decoder().load(path), digest.decode(), COLUMNS)
    expected = network.features(how.views.preprocessing.normalize(views))
    for column, row in zip(COLUMNS, expected):
        assert torch.allclose(read(how.store, images, column)[7], row, rtol=1e-4, atol=1e-5)
    halves = make()
    halves.compute(images)
    assert torch.equal(read(halves.store, images, 2), read(how.store, images, 2).half().float())


def test_bf16_is_close_to_fp32(drawn: Path, make: Make) -> None:
    images = wanted(drawn)
    exact, fast = make(), make(precision="bf16")
    exact.compute(images, (0,))
    fast.compute(images, (0,))
    one, other = (read(how.store, images, 0) for how in (exact, fast))
    assert not torch.equal(one, other)
    assert torch.nn.functional.cosine_similarity(one, other).min() > 0.999


@pytest.mark.skipif(not find_spec("openvino"), reason="the extra `fast` is not installed")
def test_openvino_gives_the_same_features(drawn: Path, make: Make) -> None:
    images = wanted(drawn)
    how, other = make(), make(engine="openvino")
    assert other.store.folder != how.store.folder
    how.compute(images, (0,))
    other.compute(images, (0,), num_workers=1)
    one, two = (read(each.store, images, 0) for each in (how, other))
    assert torch.allclose(one, two, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("precision", "fp16", "bad-value"), ("dtype", "int8", "bad-value"), ("engine", "tvm", "bad-value"),
        ("engine", "openvino", "missing-package"),
    ],
)  # fmt: skip
def test_an_impossible_option_is_refused(key: str, value: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"features.{key}={value}") as failure:
        FeatureOptions(**{key: value})
    assert failure.value.code == code


def test_the_usual_folder_is_the_cache(network: GenderNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Extractor(network).store(EvaluationViews(Preprocessing()))
    assert store.folder.parent == tmp_path / "gender_cls"


@pytest.mark.parametrize(
    "change",
    [
        {"net": None}, {"dtype": "float32"}, {"precision": "bf16"}, {"flip": 0.9}, {"jitter": (0.2, 0.2, 0.3)},
        {"blur": 5}, {"seed": 1}, {"corruption": RandomCorruption(1.0)}, {"preprocessing": {"crop": 0.8}},
        {"preprocessing": {"size": 40}}, {"preprocessing": {"interpolation": "bicubic"}},
        {"preprocessing": {"mean": (0.5, 0.5, 0.5)}}, {"preprocessing": {"std": (0.5, 0.5, 0.5)}},
        {"scale": (0.5, 1.0)}, {"scale": (0.5, 1.0), "size": 40},
    ],
    ids=str,
)  # fmt: skip
def test_each_part_of_the_name_alone_leads_to_other_features(change: dict[str, Any], drawn: Path, make: Make) -> None:
    change = {key: GenderNet(None) if key == "net" else value for key, value in change.items()}
    images = wanted(drawn)
    one, other = make(), make(**change)
    assert one.store.folder != other.store.folder
    assert one.compute(images, (0,)) == other.compute(images, (0,)) == 48
    assert not torch.equal(read(one.store, images, 0), read(other.store, images, 0))


def test_an_added_image_computes_one_image_and_a_changed_one_too(faces: Path, make: Make) -> None:
    assert make().compute(wanted(faces)) == 48 * 5
    assert make().compute(wanted(faces)) == 0
    first, second, *_ = sorted((faces / "train" / "male").iterdir())
    image = Decoder().load(first).rotate(90)
    image.save(faces / "train" / "male" / "zz_0001.png")
    assert make().compute(wanted(faces)) == 5
    image.rotate(90).save(second)  # the same name, another content
    assert make().compute(wanted(faces)) == 5


def test_more_views_compute_the_further_ones_alone(drawn: Path, make: Make) -> None:
    how = make()
    assert how.compute(wanted(drawn), tuple(range(5))) == 48 * 5
    before = read(how.store, wanted(drawn), 2)
    assert make().compute(wanted(drawn), tuple(range(9))) == 48 * 4
    how.store.open()
    assert torch.equal(read(how.store, wanted(drawn), 2), before)
    whole = make(where="at_once")
    whole.compute(wanted(drawn), tuple(range(9)))
    for column in range(9):
        one, other = read(whole.store, wanted(drawn), column), read(how.store, wanted(drawn), column)
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-4)  # float16, in other batches


def test_a_truncated_shard_is_noticed_and_rebuilt(drawn: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    how = make()
    how.compute(wanted(drawn))
    before = shards(how.store.folder.parent)
    broken = sorted(how.store.folder.glob("*.pt"))[1]
    rows = len(before[broken.name])
    broken.write_bytes(broken.read_bytes()[:-1000])
    again = make()
    assert f"{broken} is damaged" in caplog.text
    assert broken.exists()  # only the holder of the lock deletes it
    assert again.compute(wanted(drawn)) == rows
    after = shards(how.store.folder.parent)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_for_a_gpu_the_workers_make_views_and_the_process_the_features(drawn: Path, make: Make) -> None:
    on_cpu, as_on_gpu = make(), make(where="gpu")
    as_on_gpu.extractor.device = torch.device("cuda")  # the backbone itself stays on the CPU
    assert as_on_gpu.compute(wanted(drawn), num_workers=2) == on_cpu.compute(wanted(drawn)) == 48 * 5
    for column in COLUMNS:
        one, other = read(on_cpu.store, wanted(drawn), column), read(as_on_gpu.store, wanted(drawn), column)
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-4)  # float16, in other batches


def test_places_stay_right_while_features_are_added(drawn: Path, make: Make) -> None:
    how = make()
    images = wanted(drawn)
    how.compute(images, (1,))
    places = how.store.find(np.array(list(images), dtype=DIGEST), 1)
    before = how.store.read(places)
    how.compute(images, tuple(range(7)))
    assert torch.equal(how.store.read(places), before)


def test_an_image_that_changes_after_the_check_is_left_out_with_a_warning(
    faces: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    images = wanted(faces)
    path, other = list(images.values())[3:5]
    Path(path).write_bytes(Path(other).read_bytes())
    how = make()
    how.compute(images)
    assert f"left out: {path}: changed since it was checked" in caplog.text
    assert (how.store.find(np.array(list(images), dtype=DIGEST), 0) < 0).nonzero()[0].tolist() == [3]


def test_an_image_that_goes_missing_is_left_out_with_a_warning(
    faces: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    images = wanted(faces)
    paths = list(images.values())
    for path in paths[20:31]:  # a whole shard of them, and one more
        Path(path).unlink()
    how = make()
    how.compute(images)
    assert f"left out: {paths[25]}" in caplog.text
    digests = np.array(list(images), dtype=DIGEST)
    assert (how.store.find(digests, 0) < 0).nonzero()[0].tolist() == list(range(20, 31))
    split = type("Faces", (), {"labels": np.arange(48, dtype=np.int8) % 2, "digests": digests})
    rows, labels, indices = FeatureDataset(split, how.store, 4).__getitems__([(19, 6), (20, 0), (31, 1)])
    assert (indices.tolist(), labels.tolist()) == ([19, 31], [1, 1])
    assert torch.equal(rows[0], read(how.store, {digests[19]: ""}, 6 % 4)[0])


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from gender_cls.features import extractor, filling, store
from gender_cls.models.network import GenderNet
from gender_cls.transforms.decode import content_digest
from gender_cls.transforms.listing import list_images
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import TrainingViews
filling.SHARD_IMAGES = 10
{before}
views = TrainingViews(Preprocessing(size=32))
how = extractor.Extractor(GenderNet({weights!r}), extractor.FeatureOptions(sys.argv[1], precision="fp32"))
{start}
images = {{content_digest(Path(path).read_bytes()).encode(): path for path in list_images({faces!r}).paths}}
how.compute(views, images, dict.fromkeys(images, {columns!r}), num_workers=1)
"""
KILLED_WHILE_WRITING = """
import os, signal, torch
save, count = torch.save, []
def half(content, path):
    save(content, path)
    count.append(path)
    if len(count) == 3:
        os.truncate(path, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
store.torch.save = half
"""
TOGETHER = """
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def driver(drawn: Path, backbone_file: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(store: str, before: str = "", at_start: str = "") -> subprocess.Popen[str]:
        code = DRIVER.format(
            root=str(ROOT), weights=str(backbone_file), faces=str(drawn / "train"), columns=COLUMNS,
            before=before, start=at_start,
        )  # fmt: skip
        command = [sys.executable, "-c", code, str(tmp_path / store)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
def test_killed_while_it_computes_and_run_again_is_undisturbed(
    driver: Callable[..., subprocess.Popen[str]], make: Make, drawn: Path, tmp_path: Path
) -> None:
    cut = driver("cut", KILLED_WHILE_WRITING)
    cut.communicate()
    assert cut.returncode == -signal.SIGKILL
    assert len(shards(tmp_path / "cut")) == 2
    assert len(list((tmp_path / "cut").glob(UNFINISHED))) == 1
    how, again = make(), make(where="cut")
    assert again.compute(wanted(drawn), num_workers=1) == (48 - 2 * 10) * 5
    how.compute(wanted(drawn), num_workers=1)
    one, other = shards(tmp_path / "store"), shards(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "cut").glob(UNFINISHED))


@pytest.mark.slow
def test_two_processes_started_together_end_with_one_store(
    driver: Callable[..., subprocess.Popen[str]], make: Make, drawn: Path, tmp_path: Path
) -> None:
    both = [driver("both", at_start=TOGETHER) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n")[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("computing features of 240 training views of 48 images" in text for text in said) == 1
    make().compute(wanted(drawn), num_workers=1)
    one, other = shards(tmp_path / "store"), shards(tmp_path / "both")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_views_are_stored_apart_and_shared_by_all_ways_to_train(drawn: Path, make: Make) -> None:
    one, other = make(), make(flip=0, corruption=RandomCorruption(1.0))
    evaluation = EvaluationViews(one.views.preprocessing)
    images = wanted(drawn)
    assert How(one.extractor, evaluation).compute(images, (0, len(CONDITIONS) - 1)) == 48 * 2
    assert How(other.extractor, EvaluationViews(other.views.preprocessing)).compute(images, (0,)) == 0


def test_an_extraction_on_a_full_disk_is_one_line_and_leaves_no_shard(
    drawn: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    how = make()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="PytorchStreamWriter failed writing file"):
        how.compute(wanted(drawn))
    assert not shards(how.store.folder.parent)


def test_what_a_worker_sends_needs_no_shared_memory(drawn: Path, network: GenderNet) -> None:
    """Tensors of workers do: containers have little of it, and their sockets fail below a long TMPDIR."""
    images, views = wanted(drawn), EvaluationViews(Preprocessing(size=32))
    cpu = torch.device("cpu")
    build = partial(torch_backbone, network.backbone, views.preprocessing, "fp32", cpu)
    work = filling.Work(views, build, Decoder(), cpu, torch.float16, "features of {} views")
    for in_workers in (False, True):
        blocks = filling._Blocks([((0,), list(images)[:2])], images, work, in_workers)
        read, sent = blocks[0]
        assert len(read) == len(sent) == 2
        assert type(sent) is np.ndarray
