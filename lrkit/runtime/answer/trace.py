"""Draws an `Answer`: one panel per latent step, the replayed regions lit up on the pictures. Pillow only.

Place in the pipeline: `Answer.save_trace` -> a picture for people. Layout, from the top: question, answer, how it was
reached (trace_text.py), then the panels in even rows.
"""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps, PngImagePlugin

from lrkit.errors import DataError, clean, one_line
from lrkit.files import write_bytes
from lrkit.pictures.load import load_image
from lrkit.runtime.answer.fonts import Fonts
from lrkit.runtime.answer.regions import Region
from lrkit.runtime.answer.trace_text import PAPER, Traced, caption_width, draw_caption, draw_head, shown

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
"""Ending -> what is written."""

_GLOW = (255, 168, 0)
_MARGIN, _GAP, _LINE, _BETWEEN = 28, 24, 3, 8
_PICTURE_SIDE = 400
"""Longest side of a drawn picture in pixels; smaller ones are enlarged by whole factors towards it."""
_PAGE_WIDTH = 1360
_MIN_PAGE_WIDTH = 560
_DIM = 0.45
"""Share of white laid over what was not replayed."""
_NAMED = 3
"""Sizes in a caption."""
_MOST_DRAWN = 256
"""Pictures on a page, over all steps: some 40 million pixels."""


def save_trace(answer: Traced, path: Path, font: "os.PathLike[str] | str | None" = None) -> None:
    """Write `draw_trace(answer)` as an image file; a PNG also holds question and text as metadata.

    Raises:
        DataError: a picture can no longer be read, the path names no format of `FORMATS`, or `font` is none.
        FileError: the file cannot be written.
    """
    format = trace_format(path)
    page = draw_trace(answer, font)
    file = io.BytesIO()
    try:
        page.save(file, format, **({"pnginfo": _metadata(answer)} if format == "PNG" else {}))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{clean(str(path))}: a page of {page.width} x {page.height} pixels cannot be written as {format} "
            f"({one_line(error, 60)}); use .png"
        ) from error
    write_bytes(path, file.getvalue())


def trace_format(path: Path) -> str:
    """The format that a path asks for by its ending; PNG for a device or a pipe.

    Raises:
        DataError: the ending names none of `FORMATS`.
    """
    ending = path.suffix.lower()
    if ending in FORMATS:
        return FORMATS[ending]
    if not ending and path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe
        return "PNG"
    raise DataError(
        f"{clean(str(path))}: has no ending that names an image format that is written ({', '.join(FORMATS)}); use .png"
    )


def _metadata(answer: Traced) -> PngImagePlugin.PngInfo:
    values = PngImagePlugin.PngInfo()
    for key, text in (("question", answer.question), ("text", answer.text)):
        plain = "".join(one for one in text if one.isprintable() or one in "\n\t")
        values.add_itxt(key, plain.encode("utf-8", "replace").decode("utf-8"))
    return values


def draw_trace(answer: Traced, font: "os.PathLike[str] | str | None" = None) -> Image.Image:
    """The page as an RGB picture. `font` is a font file for texts that Pillow's own lacks letters for; None: those of
    the system.

    Raises:
        DataError: a picture can no longer be read, the pictures are not known, or `font` is no font.
    """
    if any(answer.regions) and not answer.images:
        raise DataError(
            "there is no picture to draw on, as a scene file holds none; give open_scene its images, and ask again"
        )
    fonts = Fonts((shown(answer.question), shown(answer.text)), font)
    scaled = [_scale(load_image(image)) for image in answer.images[:_MOST_DRAWN]]
    steps = answer.regions[: max(1, _MOST_DRAWN // max(1, len(scaled)))]
    rows = _rows([*_read_panel(answer, scaled, fonts), *_panels(steps, answer.step_depths, scaled, fonts)])
    width = _page_width(rows)
    head = draw_head(answer, width - 2 * _MARGIN, fonts, _left_out(answer, len(steps), len(scaled)))
    height = 2 * _MARGIN + head.height + sum(max(panel.height for panel in row) + _GAP for row in rows)
    page = Image.new("RGB", (width, height), PAPER)
    page.paste(head, (_MARGIN, _MARGIN))
    top = _MARGIN + head.height + _GAP
    for row in rows:
        left = _MARGIN
        for panel in row:
            page.paste(panel, (left, top))
            left += panel.width + _GAP
        top += max(panel.height for panel in row) + _GAP
    return page


def _left_out(answer: Traced, steps: int, pictures: int) -> str:
    """A note where not everything is on the page."""
    if not answer.images or (steps == len(answer.regions) and pictures == len(answer.images)):
        return ""
    return f"drawn: {steps} of {len(answer.regions)} steps, {pictures} of {len(answer.images)} pictures"


def _read_panel(answer: Traced, scaled: list[Any], fonts: Fonts) -> list[Image.Image]:
    """One with the pictures as small as the prompt read them, where latent steps look closer; else none."""
    read = answer.read_sizes[: len(scaled)]
    if not read:
        return []
    small = [
        load_image(image).resize(size, Image.Resampling.BICUBIC).resize(drawn.size, Image.Resampling.NEAREST)
        for image, size, (drawn, _) in zip(answer.images, read, scaled, strict=False)
    ]
    sizes = ", ".join(f"{width} x {height}" for width, height in read[:_NAMED])
    framed = [ImageOps.expand(one, _LINE, PAPER) for one in small]
    return [_panel(framed, f"as the prompt reads it: {sizes}", fonts)]


def _panels(
    steps: Sequence[Sequence[Region]], depths: Sequence[int], scaled: list[Any], fonts: Fonts
) -> list[Image.Image]:
    """One per latent step; a single plain one for a mode without latent steps; none without pictures."""
    if not scaled:
        return []
    if not steps:
        return [_panel([small for small, _ in scaled], "", fonts)]
    panels: list[Image.Image] = []
    for step, regions in enumerate(steps, start=1):
        drawn = [
            _light_up(small, factor, [region for region in regions if region.image == index])
            for index, (small, factor) in enumerate(scaled)
        ]
        caption = f"step {step}" if regions else f"step {step} (nothing replayed)"
        if depths:
            caption += f", {depths[step - 1]} extra passes"
        panels.append(_panel(drawn, caption, fonts))
    return panels


def _scale(picture: Image.Image) -> tuple[Image.Image, tuple[float, float]]:
    """The picture at drawing size, and what its x and y coordinates are multiplied by."""
    longest = max(picture.size)
    if longest * 2 <= _PICTURE_SIDE:
        factor, resample = _PICTURE_SIDE // longest, Image.Resampling.NEAREST
        size = (picture.width * factor, picture.height * factor)
    else:
        factor, resample = min(1.0, _PICTURE_SIDE / longest), Image.Resampling.LANCZOS
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, resample), (size[0] / picture.width, size[1] / picture.height)


def _light_up(picture: Image.Image, factor: tuple[float, float], regions: Sequence[Region]) -> Image.Image:
    """Fade the picture but for its regions, tint those by weight and draw one line around each connected group."""
    frame = (picture.width + 2 * _LINE, picture.height + 2 * _LINE)
    canvas = Image.new("RGB", frame, PAPER)
    canvas.paste(Image.blend(picture, Image.new("RGB", picture.size, PAPER), _DIM), (_LINE, _LINE))
    chosen, tint = Image.new("L", frame), Image.new("L", frame)
    strongest = max((region.weight for region in regions), default=1.0) or 1.0
    for region in regions:
        left, right = (round(x * factor[0]) + _LINE for x in region.box[::2])
        top, bottom = (round(y * factor[1]) + _LINE for y in region.box[1::2])
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        ImageDraw.Draw(chosen).rectangle(box, fill=255)
        ImageDraw.Draw(tint).rectangle(box, fill=round(10 + 45 * max(0.0, region.weight) / strongest))
    bright = Image.new("RGB", frame, PAPER)
    bright.paste(picture, (_LINE, _LINE))
    canvas.paste(bright, mask=chosen)
    canvas.paste(_GLOW, mask=tint)
    outline = ImageChops.subtract(chosen.filter(ImageFilter.MaxFilter(2 * _LINE + 1)), chosen)
    canvas.paste(_GLOW, mask=outline)
    return canvas


def _panel(pictures: list[Image.Image], caption: str, fonts: Fonts) -> Image.Image:
    """Pictures side by side, in rows that fit the page, over a caption."""
    places, right, below = list[tuple[int, int]](), 0, 0
    left = top = 0
    for picture in pictures:
        if left and left + picture.width > _PAGE_WIDTH - 2 * _MARGIN:
            left, top = 0, below + _BETWEEN
        places.append((left, top))
        right, below = max(right, left + picture.width), max(below, top + picture.height)
        left += picture.width + _BETWEEN
    room = 30 if caption else 0
    panel = Image.new("RGB", (max(right, caption_width(caption, fonts)), below + room), PAPER)
    for picture, place in zip(pictures, places, strict=True):
        panel.paste(picture, place)
    if caption:
        draw_caption(panel, _LINE, below + 6, caption, fonts)
    return panel


def _page_width(rows: list[list[Image.Image]]) -> int:
    """Wide enough for the widest row."""
    widest_row = max((sum(panel.width + _GAP for panel in row) - _GAP for row in rows), default=0)
    return max(_MIN_PAGE_WIDTH, widest_row + 2 * _MARGIN)


def _rows(panels: list[Image.Image]) -> list[list[Image.Image]]:
    """Panels in rows of equal length that fit the page; a panel wider than the page has a row of its own."""
    if not panels:
        return []
    widest = max(panel.width for panel in panels)
    fitting = max(1, (_PAGE_WIDTH - 2 * _MARGIN + _GAP) // (widest + _GAP))
    num_rows = math.ceil(len(panels) / fitting)
    per_row = math.ceil(len(panels) / num_rows)
    return [panels[start : start + per_row] for start in range(0, len(panels), per_row)]
