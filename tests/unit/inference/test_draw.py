"""Contact sheets."""

import subprocess
import sys

import pytest
from PIL import Image, ImageFont

from gender_cls.inference import draw
from gender_cls.inference.draw import MARGIN, TILE, contact_sheet


def test_images_stand_three_in_a_row_in_their_order() -> None:
    tiles = [(Image.new("RGB", (30, 30), (10 * number, 0, 0)), "a\nb") for number in range(5)]
    sheet = contact_sheet(tiles)
    assert sheet.width == 3 * TILE + 4 * MARGIN
    centres = range(MARGIN + TILE // 2, sheet.width, TILE + MARGIN)
    bottoms = ((sheet.height - MARGIN) // 2 - 1, sheet.height - MARGIN - 1)
    reds = [sheet.getchannel("R").getpixel((x, y)) for y in bottoms for x in centres]
    assert reds == [0, 10, 20, 30, 40, 255]
    assert contact_sheet(tiles, columns=5).height < sheet.height


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3000, 2000), (8, 8)])
def test_any_size_is_scaled_to_a_tile(size: tuple[int, int]) -> None:
    sheet = contact_sheet([(Image.new("RGB", size, "red"), "one line")])
    assert sheet.width == TILE + 2 * MARGIN
    left, top, right, bottom = sheet.convert("HSV").getchannel("S").getbbox() or ()
    assert max(right - left, bottom - top) == TILE
    assert contact_sheet([]).width > 0


def test_names_that_can_not_be_drawn_and_long_ones() -> None:
    def sheet(text: str) -> bytes:
        return contact_sheet([(Image.new("RGB", (8, 8)), text)]).tobytes()

    assert sheet("f\udcff\x1b.jpg") == sheet("f??.jpg")
    assert sheet("i" * 34) != sheet("i" * 35) == sheet("i" * 31 + "...")
    assert len(sheet("W" * 34)) == len(sheet("i"))  # too wide, and clipped


def test_the_font_is_that_of_matplotlib_which_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from gender_cls.inference import draw; print(draw._font().getname(), 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "('DejaVu Sans', 'Book') False\n"
    monkeypatch.setattr(draw, "find_spec", lambda _: None)
    assert isinstance(draw._font.__wrapped__(), ImageFont.FreeTypeFont)  # the one in Pillow
