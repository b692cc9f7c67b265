"""A sheet of pictures with their sentences beneath them."""

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont


TILE = 160
MARGIN = 8
LINE = 13
TEXT_LINES = 6
COLUMNS = 8
LETTERS = 27
PAPER = (250, 249, 246)
INK = (30, 30, 34)
WARNING = (186, 32, 28)


def contact_sheet(pictures: Sequence[torch.Tensor], captions: Sequence[str], remarks: Sequence[str]) -> Image.Image:
    """Pictures in rows of eight.

    Args:
        pictures: each `(3, height, width)`, uint8, of any size; enlarged to 160 pixels.
        captions: a sentence each, in black.
        remarks: what is to be noticed about each, in red; may be empty.
    """
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = TILE + MARGIN, TILE + MARGIN + LINE * TEXT_LINES
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (picture, caption, remark) in enumerate(zip(pictures, captions, remarks, strict=True)):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        image = Image.fromarray(picture.movedim(0, -1).contiguous().cpu().numpy())
        sheet.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), (left, top))
        _write(draw, left, top + TILE + 2, caption, remark)
    return sheet


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, caption: str, remark: str) -> None:
    lines = [(line, INK) for line in textwrap.wrap(caption, LETTERS)]
    lines += [(line, WARNING) for line in textwrap.wrap(remark, LETTERS)]
    for row, (line, color) in enumerate(lines[:TEXT_LINES]):
        draw.text((left, top + row * LINE), line, fill=color, font=ImageFont.load_default(11))
