"""Draws an `Answer`: one panel per latent step, the replayed regions lit up on the pictures. Pillow only.

Place in the pipeline: `Answer.save_trace` -> a PNG for people. Layout, from the top: question, answer, how it was
reached, then the panels in even rows.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from lrkit.errors import DataError
from lrkit.runtime.pictures import load_image
from lrkit.runtime.regions import Region

if TYPE_CHECKING:
    from lrkit.runtime.answer import Answer

_PAPER, _INK, _GREY = (255, 255, 255), (24, 28, 36), (108, 114, 126)
_GLOW = (255, 168, 0)
_MARGIN, _GAP, _LINE = 28, 24, 3
_PICTURE_SIDE = 400
"""Longest side of a drawn picture in pixels; smaller ones are enlarged by whole factors towards it."""
_PAGE_WIDTH = 1360
_MIN_PAGE_WIDTH = 560
_DIM = 0.45
"""Share of white laid over what was not replayed."""


def save_trace(answer: "Answer", path: Path) -> None:
    """Write `draw_trace(answer)` as an image file.

    Raises:
        DataError: a picture can no longer be read, or the path cannot be written or names no image format.
    """
    page = draw_trace(answer)
    try:
        page.save(path)
    except ValueError as error:
        raise DataError(f"{path}: has no ending that names an image format; use .png") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def draw_trace(answer: "Answer") -> Image.Image:
    """The page as an RGB picture.

    Raises:
        DataError: a picture can no longer be read.
    """
    pictures = [load_image(image) for image in answer.images]
    rows = _rows(_panels(answer, pictures))
    width = _page_width(rows)
    head = _draw_head(answer, width - 2 * _MARGIN)
    height = 2 * _MARGIN + head.height + sum(max(panel.height for panel in row) + _GAP for row in rows)
    page = Image.new("RGB", (width, height), _PAPER)
    page.paste(head, (_MARGIN, _MARGIN))
    top = _MARGIN + head.height + _GAP
    for row in rows:
        left = _MARGIN
        for panel in row:
            page.paste(panel, (left, top))
            left += panel.width + _GAP
        top += max(panel.height for panel in row) + _GAP
    return page


def _panels(answer: "Answer", pictures: list[Image.Image]) -> list[Image.Image]:
    """One per latent step; a single plain one for a mode without latent steps; none without pictures."""
    if not pictures:
        return []
    scaled = [_scale(picture) for picture in pictures]
    if not answer.regions:
        return [_panel([small for small, _ in scaled], "")]
    panels = []
    for step, regions in enumerate(answer.regions, start=1):
        drawn = [
            _light_up(small, factor, [region for region in regions if region.image == index])
            for index, (small, factor) in enumerate(scaled)
        ]
        caption = f"step {step}" if regions else f"step {step} (nothing replayed)"
        panels.append(_panel(drawn, caption))
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
    canvas = Image.new("RGB", frame, _PAPER)
    canvas.paste(Image.blend(picture, Image.new("RGB", picture.size, _PAPER), _DIM), (_LINE, _LINE))
    chosen, tint = Image.new("L", frame), Image.new("L", frame)
    strongest = max((region.weight for region in regions), default=1.0) or 1.0
    for region in regions:
        left, right = (round(x * factor[0]) + _LINE for x in region.box[::2])
        top, bottom = (round(y * factor[1]) + _LINE for y in region.box[1::2])
        box = (left, top, max(left, right - 1), max(top, bottom - 1))
        ImageDraw.Draw(chosen).rectangle(box, fill=255)
        ImageDraw.Draw(tint).rectangle(box, fill=round(10 + 45 * max(0.0, region.weight) / strongest))
    bright = Image.new("RGB", frame, _PAPER)
    bright.paste(picture, (_LINE, _LINE))
    canvas.paste(bright, mask=chosen)
    canvas.paste(_GLOW, mask=tint)
    outline = ImageChops.subtract(chosen.filter(ImageFilter.MaxFilter(2 * _LINE + 1)), chosen)
    canvas.paste(_GLOW, mask=outline)
    return canvas


def _panel(pictures: list[Image.Image], caption: str) -> Image.Image:
    """Pictures side by side over a caption."""
    font = ImageFont.load_default(size=17)
    room = 30 if caption else 0
    width = sum(picture.width for picture in pictures) + 8 * (len(pictures) - 1)
    height = max(picture.height for picture in pictures)
    panel = Image.new("RGB", (max(width, round(font.getlength(caption)) + 2), height + room), _PAPER)
    left = 0
    for picture in pictures:
        panel.paste(picture, (left, 0))
        left += picture.width + 8
    ImageDraw.Draw(panel).text((_LINE, height + 6), caption, font=font, fill=_GREY)
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


def _draw_head(answer: "Answer", width: int) -> Image.Image:
    """Question, answer and figures as wrapped text."""
    figures = f"{answer.mode}: {answer.latent_steps} latent steps, {answer.spoken_tokens} spoken tokens"
    if answer.replayed_tokens:
        figures += f", {answer.replayed_tokens} visual tokens replayed"
    large, small = ImageFont.load_default(size=24), ImageFont.load_default(size=17)
    blocks = [(answer.question, large, _INK, 32), (answer.text, large, _INK, 32), (figures, small, _GREY, 26)]
    lines = [(line, font, ink, step) for text, font, ink, step in blocks for line in [*_wrap(text, font, width), ""]]
    # The empty line that ends a block is a small gap.
    head = Image.new("RGB", (width, sum(step if line else 8 for line, _, _, step in lines)), _PAPER)
    top = 0
    for line, font, ink, step in lines:
        ImageDraw.Draw(head).text((0, top), line, font=font, fill=ink)
        top += step if line else 8
    return head


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, max_lines: int = 12) -> list[str]:
    """Lines no wider than `width`, at most `max_lines`; words longer than a line are cut."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            cut = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or font.getlength(word[:end]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = [line for line in lines if line]
    return kept if len(kept) <= max_lines else [*kept[: max_lines - 1], kept[max_lines - 1] + " ..."]
