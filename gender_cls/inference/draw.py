"""Contact sheets, drawn by Pillow."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 256  # longer side of an image on the sheet, in pixels
LETTERS = 34  # of a line above an image; longer ones are cut
COLORS = {"female": "#e66100", "male": "#5d3a9b"}  # told apart by the color-blind; gray is anything else
MARGIN, FONT_SIZE, LINE_HEIGHT = 14, 13, 17  # pixels


def contact_sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int = 3) -> Image.Image:
    """Draw images with lines of text above them on one sheet.

    Args:
        tiles: RGB images, scaled to a longer side of `TILE`, each with its text of one or two lines.
        columns: Images in a row.
    """
    cells = [_cell(image, text) for image, text in tiles]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    tops = list(accumulate((MARGIN + max(cell.height for cell in row) for row in rows), initial=MARGIN))
    width = MARGIN + min(columns, max(1, len(cells))) * (TILE + MARGIN)
    sheet = Image.new("RGB", (width, tops[-1]), "white")
    for row, top in zip(rows, tops):
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (TILE + MARGIN), top))
    return sheet


def draw_boxes(image: Image.Image, boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> Image.Image:
    """Draw boxes (left, top, width and height in pixels) on an RGB image, in the color of their labels."""
    draw = ImageDraw.Draw(image)
    for (left, top, width, height), label in zip(boxes, labels):
        draw.rectangle((left, top, left + width, top + height), outline=COLORS.get(label, "gray"), width=2)
    return image


def _cell(image: Image.Image, text: str) -> Image.Image:
    lines = [_drawable(line) for line in text.split("\n")]
    scale = TILE / max(image.size)
    image = image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))
    above = LINE_HEIGHT * len(lines) + 4
    cell = Image.new("RGB", (TILE, above + image.height), "white")
    draw = ImageDraw.Draw(cell)
    for number, line in enumerate(lines):
        left = max(0.0, (TILE - draw.textlength(line, _font())) / 2)  # a line that is too wide loses its end
        draw.text((left, number * LINE_HEIGHT), line, "black", _font())
    cell.paste(image, ((TILE - image.width) // 2, above))
    return cell


def _drawable(line: str) -> str:
    line = "".join(letter if letter.isprintable() else "?" for letter in line)  # bytes that are not UTF-8 have no glyph
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 3]}..."


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    spec = find_spec("matplotlib")  # its fonts are read without importing it
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(file, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)
