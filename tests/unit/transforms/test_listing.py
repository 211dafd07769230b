"""The images below a folder."""

import os
from pathlib import Path

import pytest
from PIL import Image

from gender_cls.transforms.listing import ignored_note, list_images


def found(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in list_images(folder).paths]


def test_endings_of_all_of_pillows_formats_and_hidden_files(tmp_path: Path) -> None:
    names = ("b.JPG", "a.png", "c.mpo", "d.jp2", "e.jpe", "f.apng", "g.HEIC", "h.tga", "i.qoi", "deep/d.jpeg")
    others = (".hidden.jpg", "._b.jpg", ".git/e.jpg", "@eaDir/a.jpg", ".ipynb_checkpoints/a.png", "__MACOSX/a.jpg")
    ignored = ("notes.txt", "faces.csv", "b.JPG.xmp", "clip.mov", "README", "film.mpg", "d.eps", "photo.nef")
    for name in (*names, *others, *ignored):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path) == sorted(names[:-1]) + ["deep/d.jpeg"]
    assert list_images(tmp_path).ignored == {
        **{".txt": 1, ".csv": 1, ".xmp": 1, ".mov": 1, ".mpg": 1, ".eps": 1, ".nef": 1, "without ending": 1},
        **{"hidden": 4, "@eaDir": 1, "__MACOSX": 1},
    }
    assert ignored_note(list_images(tmp_path).ignored).startswith("ignored as no images: 4 hidden, 1 .csv, 1 .eps, ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM", "JPEG2000"])
def test_other_endings_are_tried_by_content(kind: str, tmp_path: Path) -> None:
    image = Image.effect_noise((16, 16), 50).convert("RGB")
    for name in ("download", "photo.php", "x.jpg_large", "01.tmp"):
        image.save(tmp_path / name, kind)
    (tmp_path / "P1 text.rst").write_text("P1 is a section\n")
    (tmp_path / "header.h").write_text("#define WIDTH 3\n")
    (tmp_path / "zeros.bin").write_bytes(bytes(1000))
    assert found(tmp_path) == ["01.tmp", "download", "photo.php", "x.jpg_large"]
    assert list_images(tmp_path).ignored == {".rst": 1, ".h": 1, ".bin": 1}


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("root/a/x.jpg", "root/b/y.jpg", "outside/c/z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    (root / "a" / "up").symlink_to(root)  # a circle
    (root / "0_same").symlink_to(root / "b")  # the real one counts
    (root / "far").symlink_to(outside)
    (root / "far again").symlink_to(outside / "c")
    (root / "whole").symlink_to(tmp_path)  # holds all of it, and itself
    (root / "gone.jpg").symlink_to(tmp_path / "nothing")
    (root / "file.jpg").symlink_to(root / "a" / "x.jpg")
    assert found(root) == ["file.jpg", "gone.jpg", "a/x.jpg", "b/y.jpg", "far/c/z.jpg"]
    assert found(root / "0_same") == ["y.jpg"]  # a link as the folder itself


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert list_images(tmp_path).ignored == {"without ending": 1}
