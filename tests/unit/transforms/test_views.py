import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from gender_cls.errors import UserError
from gender_cls.transforms.augmentation import Augmentation, RandomCorruption, framed
from gender_cls.transforms.corruptions import CORRUPTIONS, SEVERITIES
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.faces import TEMPLATE
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import (
    CLEAN,
    CONDITIONS,
    IN_FRAME,
    REPORTED,
    EvaluationViews,
    TrainingViews,
    derive_seed,
    in_condition,
)

PLAIN = Augmentation(flip=0, jitter=(0, 0, 0), blur=0)


@pytest.fixture(scope="module")
def face(drawn: Path) -> Image.Image:
    return Decoder().load(next((drawn / "val" / "male").iterdir()))


def training(seed: int = 0, **augment: Any) -> TrainingViews:
    return TrainingViews(Preprocessing(size=32), Augmentation(**augment), seed=seed)


def test_derived_seeds_are_the_same_everywhere() -> None:
    assert derive_seed("view", 0, "abc", 1) == 3293282600587856894
    assert derive_seed("a", 11) != derive_seed("a", 1, 1)


def test_conditions_keep_their_numbers() -> None:
    """They are columns of the feature stores."""
    assert CONDITIONS[CLEAN] == ("clean", 0)
    assert REPORTED == {
        "clean": 0, "blurred": 3, "foggy": 8, "lowlight": 13, "noisy": 18, "rainy": 23, "resized": 28, "sunny": 33,
    }  # fmt: skip


def test_a_view_is_a_function_of_image_seed_and_draw(face: Image.Image) -> None:
    def view(draw: int, seed: int = 0, digest: str = "digest") -> torch.Tensor:
        return training(seed)(face, digest, [draw])[0]

    before = torch.get_rng_state()
    assert torch.equal(view(0), view(0))
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random state is left as it was
    assert not torch.equal(view(0), view(1))
    assert not torch.equal(view(0), view(0, seed=1))
    assert not torch.equal(view(0), view(0, digest="another"))


def test_all_views_at_once_are_the_views_one_by_one(face: Image.Image) -> None:
    """Also that blurring one channel at a time is blurring the image."""
    together = training()(face, "digest", [2, 5, 0])
    assert (together.shape, together.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert all(torch.equal(together[place], training()(face, "digest", [d])[0]) for place, d in enumerate((2, 5, 0)))
    sharp = training(flip=0, jitter=(0, 0, 0))
    resized = EvaluationViews(sharp.preprocessing)(face, "digest", [CLEAN])[0]
    torch.random.default_generator.manual_seed(derive_seed("view", 0, "digest", 0))
    torch.rand(1)  # whether to flip
    torch.randperm(4)  # the order of the jitter
    assert sharp.blur is not None
    whole = sharp.blur(resized)
    assert not torch.equal(whole, resized)
    assert torch.equal(whole, sharp(face, "digest", [0])[0])


def test_random_crops_may_be_smaller_than_the_evaluation_view() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3)).astype(np.uint8))
    views = TrainingViews(Preprocessing(40), Augmentation(scale=[0.5, 1.0], size=24))
    one = views(image, "digest", (0, 1))
    assert one.shape == (2, 3, 24, 24)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one[1], views(image, "digest", (1,))[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", [0.5]), ("scale", [0, 1]), ("scale", [0.5, 1.2]), ("scale", [1.0, 0.5]), ("scale", 0.5),
        ("scale", ["a", "b"]), ("size", 24), ("flip", 1.1), ("flip", "x"), ("jitter", [0.2, 0.2]), ("jitter", 0.2),
        ("jitter", [0.2, -0.2, 0.2]), ("blur", 2), ("blur", -1), ("blur", 3.0),
        ("frame", [0, 1]), ("frame", [1.2, 0.5]), ("frame", 0.5), ("landmarks", [0.1, 0.1]), ("landmarks", [0, 0, -1]),
    ],
)  # fmt: skip
def test_an_impossible_augmentation_is_refused(key: str, value: object) -> None:
    with pytest.raises(UserError) as failure:
        Augmentation(**{key: value})  # type: ignore[arg-type]
    assert f"data.augment.{key}={value}" in str(failure.value)
    assert failure.value.code == ("conflict" if key == "size" else "bad-value")


def test_a_crop_to_no_pixel_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.augment\.size=0") as failure:
        Augmentation(scale=[0.5, 1.0], size=0)
    assert failure.value.code == "bad-value"


def test_evaluation_views_are_corrupted_before_the_crop_always_alike(face: Image.Image) -> None:
    image = face.resize((224, 224))
    whole, cropped = (EvaluationViews(Preprocessing(size=224, crop=crop)) for crop in (1.0, 0.5))
    number = CONDITIONS.index(("noisy", 3))
    one, other = (views(image, "digest", [number])[0] for views in (whole, cropped))
    middle = Image.fromarray(one[:, 56:168, 56:168].permute(1, 2, 0).numpy())  # 224 is not resized
    assert torch.equal(other, torch.from_numpy(Preprocessing().pixels(middle)))
    assert not torch.equal(one, whole(image, "another", [number])[0])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_training_views_is_corrupted(share: float, face: Image.Image) -> None:
    corruption = RandomCorruption(share, kinds=["lowlight"], severities=[5])
    found = TrainingViews(Preprocessing(size=64), PLAIN, corruption)(face.resize((224, 224)), "digest", range(200))
    dark = (found.float().mean((1, 2, 3)) < 60).float().mean()
    assert float(dark) == pytest.approx(share, abs=0.1 * (0 < share < 1))


def test_whether_and_how_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw that decides whether a view is corrupted leaves the corruption its whole range."""
    factors = []
    monkeypatch.setitem(
        CORRUPTIONS, "resized", lambda image, _, generator: (factors.append(generator.uniform(5, 8)), image)[1]
    )
    corruption = RandomCorruption(0.5, kinds=["resized"], severities=[3])
    TrainingViews(Preprocessing(size=8), PLAIN, corruption)(Image.new("RGB", (8, 8)), "digest", range(400))
    assert len(factors) == pytest.approx(200, abs=40)
    assert np.mean(factors) == pytest.approx(6.5, abs=0.2)
    assert min(factors) < 5.2 < 7.8 < max(factors)


def test_twice_means_two_kinds() -> None:
    draws = [RandomCorruption(1.0, 0.5).draw(np.random.default_rng(seed)) for seed in range(400)]
    twice = [steps for steps in draws if len(steps) == 2]
    assert len(twice) / len(draws) == pytest.approx(0.5, abs=0.07)
    assert all(steps[0][0] != steps[1][0] for steps in twice)
    assert {steps[0] for steps in draws} == {(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share", 1.1), ("twice", -1), ("kinds", ["misty"]), ("severities", [0]), ("kinds", []), ("share", "x"),
        ("severities", 3),
    ],
)  # fmt: skip
def test_an_impossible_corruption_is_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=r"^corruption\.\w+=.*: give ") as failure:
        RandomCorruption(**{key: value})  # type: ignore[arg-type]
    assert failure.value.code == "bad-value"
    assert f"corruption.{key}=" in str(failure.value)


def test_lists_from_a_configuration_name_the_same_views() -> None:
    kinds, severities = list(CORRUPTIONS), [1, 2, 3, 4, 5]
    listed = TrainingViews(
        Preprocessing(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], crop=1),  # type: ignore[arg-type]
        Augmentation(jitter=[0.2, 0.2, 0.2]),
        RandomCorruption(0.5, 0.3, kinds, severities),
    )
    usual = TrainingViews(Preprocessing(), corruption=RandomCorruption(0.5, 0.3))
    assert json.dumps(listed.facts, sort_keys=True) == json.dumps(usual.facts, sort_keys=True)


def test_a_frame_is_the_middle_or_repeats_the_edge() -> None:
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    image = Image.fromarray(pixels)
    assert (np.asarray(framed(image, 0.5)) == pixels[10:30, 15:45]).all()
    assert (np.asarray(framed(image, 1)) == pixels).all()
    wide = np.asarray(framed(image, 1.25))
    assert wide.shape == (50, 76, 3)  # 60 * 0.125 is rounded to 8
    assert (wide[5:45, 8:68] == pixels).all()
    assert (wide[:5, 8:68] == pixels[0]).all()
    assert (wide[5:45, 68:] == pixels[:, -1:]).all()
    assert list(IN_FRAME) == [0.5, 0.65, 0.8, 1.0, 1.25]
    for share, number in IN_FRAME.items():
        assert in_condition(image, "digest", number).width == pytest.approx(60 * share, abs=1)


def test_frames_keep_their_numbers() -> None:
    assert [CONDITIONS.index(("framing", share)) for share in (0.5, 0.65, 0.8, 1.25)] == [36, 37, 38, 39]


ALIGNED = Preprocessing(size=32, faces="align", zoom=0.8)


class Told:
    """Finds what it is told by the number of the condition, and remembers what it was asked."""

    facts: ClassVar = {"detector": "told"}

    def __init__(self, answer: Callable[[int], np.ndarray | None]) -> None:
        self.answer = answer
        self.asked: list[tuple[tuple[int, int], str, int]] = []

    def __call__(self, image: Image.Image, digest: str, number: int) -> np.ndarray | None:
        self.asked.append((image.size, digest, number))
        return self.answer(number)


def test_a_face_is_cut_by_the_landmarks_of_its_condition(face: Image.Image) -> None:
    find = Told(lambda number: None if number == CLEAN else TEMPLATE * 30 + 5)
    image = face.resize((48, 48))
    numbers = [CLEAN, CONDITIONS.index(("foggy", 3)), CONDITIONS.index(("framing", 0.5))]
    views = EvaluationViews(ALIGNED, find)(image, "digest", numbers)
    assert find.asked == [
        ((48, 48), "digest", numbers[0]),
        ((48, 48), "digest", numbers[1]),
        ((24, 24), "digest", numbers[2]),
    ]
    assert (views[0].numpy() == Preprocessing(size=32).pixels(image)).all()  # the middle, where there is no face
    foggy = in_condition(image, "digest", numbers[1])
    assert (views[1].numpy() == ALIGNED.pixels(foggy, TEMPLATE * 30 + 5)).all()


def test_training_views_move_the_face_of_the_clean_image(face: Image.Image) -> None:
    image, landmarks = face.resize((300, 300)), TEMPLATE * 100 + (90, 100)
    find = Told(lambda _: landmarks)
    exact = TrainingViews(ALIGNED, PLAIN, find=find)(image, "digest", range(3))
    assert np.abs(exact.numpy().astype(int) - ALIGNED.pixels(image, landmarks)).max() <= 1
    corruption = RandomCorruption(1.0, kinds=["lowlight"], severities=[1])
    dark = TrainingViews(ALIGNED, PLAIN, corruption, find=find)(image, "digest", [0])[0].numpy().astype(float)
    assert np.corrcoef(dark.ravel(), exact[0].numpy().ravel())[0, 1] > 0.9  # in the same place of a smaller image
    assert {number for *_, number in find.asked} == {CLEAN}
    moving = Augmentation(flip=0, jitter=(0, 0, 0), blur=0, landmarks=(0.04, 0.05, 2.5))
    one, other = (TrainingViews(ALIGNED, moving, find=find)(image, "digest", range(4)) for _ in range(2))
    assert torch.equal(one, other)
    assert len({view.numpy().tobytes() for view in one}) == 4


def test_the_error_of_a_place_has_the_deviations_that_it_is_given(face: Image.Image) -> None:
    landmarks, generator = TEMPLATE * 100 + 50, np.random.default_rng(0)
    moving = Augmentation(landmarks=(0.1, 0.2, 5.0))
    placed = [moving.place(face, landmarks, generator)[1] for _ in range(2000)]
    eyes = np.array([points[1] - points[0] for points in placed])  # type: ignore[index]
    before = landmarks[1] - landmarks[0]
    assert np.log(np.hypot(*eyes.T) / np.hypot(*before)).std() == pytest.approx(0.1, rel=0.1)
    turns = np.degrees(np.arctan2(*eyes.T[::-1]) - np.arctan2(*before[::-1]))
    assert turns.std() == pytest.approx(5, rel=0.1)
    shifts = np.array([points.mean(0) for points in placed]) - landmarks.mean(0)  # type: ignore[union-attr]
    assert shifts.std(0) / np.hypot(*before) == pytest.approx([0.2, 0.2], rel=0.1)


def test_frames_are_drawn_between_their_ends(face: Image.Image) -> None:
    generator, image = np.random.default_rng(0), face.resize((200, 200))
    framing = Augmentation(frame=(0.5, 1.25))
    placed = [framing.place(image, np.full((5, 2), 100.0), generator) for _ in range(300)]
    sides = np.array([framed.width for framed, _ in placed]) / 200
    assert 0.49 < sides.min() < 0.53
    assert 1.2 < sides.max() < 1.26
    assert np.median(sides) == pytest.approx(np.sqrt(0.5 * 1.25), abs=0.05)  # evenly in the logarithm
    for found, points in placed:
        assert points == pytest.approx(np.full((5, 2), found.width / 2), abs=0.6)  # the middle stays the middle
    views = TrainingViews(Preprocessing(size=32), Augmentation(flip=0, jitter=(0, 0, 0), blur=0, frame=(0.5, 1.25)))
    assert len({view.numpy().tobytes() for view in views(image, "digest", range(5))}) == 5


def test_frames_and_faces_name_the_store_only_where_they_matter() -> None:
    find = Told(lambda _: None)
    plain, whole = TrainingViews(Preprocessing()).facts, EvaluationViews(Preprocessing()).facts
    assert not {"faces", "zoom", "min_score", "frame", "landmarks"} & (set(plain) | set(whole))
    one, other = (EvaluationViews(Preprocessing(faces="align", zoom=zoom), find).facts for zoom in (0.6, 0.7))
    assert one != other
    moved = TrainingViews(ALIGNED, Augmentation(landmarks=(0.1, 0, 0)), find=find).facts
    assert moved["landmarks"] == [0.1, 0, 0]
    assert one["detector"] == moved["detector"] == "told"
