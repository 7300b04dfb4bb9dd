"""The text of a drawn trace: question, answer, figures and notes, wrapped, in any script. Pillow only.

Place in the pipeline: trace.py -> `draw_head`, `draw_caption` -> pasted above and below the panels.
"""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image, ImageDraw

from lrkit.errors import clean
from lrkit.families.protocols import Size
from lrkit.pictures.input import ImageSource
from lrkit.runtime.answer.fonts import Fonts, can_shape, is_right_to_left
from lrkit.runtime.answer.regions import Region

PAPER, INK, GREY = (255, 255, 255), (24, 28, 36), (108, 114, 126)
_LARGE, _SMALL, _CAPTION = (24, 32), (17, 26), 17
"""Size of letters and distance of lines, in pixels."""
_GAP = 8
_MOST_LINES = 12
_MOST_CHARACTERS = 4000
"""Of a text; longer ones do not fit anyway."""


class Traced(Protocol):
    """What is drawn of an `Answer` (answer.py, which imports this part of the room when a trace is asked for)."""

    @property
    def question(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def latent_steps(self) -> int: ...
    @property
    def spoken_tokens(self) -> int: ...
    @property
    def replayed_tokens(self) -> int: ...
    @property
    def step_depths(self) -> Sequence[int]: ...
    @property
    def read_sizes(self) -> Sequence[Size]: ...
    @property
    def regions(self) -> Sequence[Sequence[Region]]: ...
    @property
    def images(self) -> Sequence[ImageSource]: ...


def draw_head(answer: Traced, width: int, fonts: Fonts, more: str = "") -> Image.Image:
    """Question, answer, figures and notes as wrapped text, `width` pixels wide; `more` is one more note."""
    figures = f"{answer.mode}: {answer.latent_steps} latent steps, {answer.spoken_tokens} spoken tokens"
    if answer.replayed_tokens:
        figures += f", {answer.replayed_tokens} visual tokens replayed"
    question, answered = shown(answer.question), shown(answer.text)
    blocks = [(question, _LARGE, INK), (answered, _LARGE, INK), (figures, _SMALL, GREY)]
    blocks += [(note, _SMALL, GREY) for note in [*_notes(f"{question} {answered}", fonts), more] if note]
    lines: list[tuple[str, tuple[int, int], tuple[int, int, int]]] = []
    for text, kind, ink in blocks:
        lines += [(line, kind, ink) for line in wrap(fonts.readable(text)[0], fonts, kind[0], width)]
        lines.append(("", (0, _GAP), ink))
    head = Image.new("RGB", (width, sum(step for _, (_, step), _ in lines)), PAPER)
    canvas, top = ImageDraw.Draw(head), 0
    for line, (size, step), ink in lines:
        if line:
            fonts.draw(canvas, (0, top), line, size, ink)
        top += step
    return head


def draw_caption(panel: Image.Image, left: int, top: int, caption: str, fonts: Fonts) -> None:
    """A line below the pictures of a panel."""
    fonts.draw(ImageDraw.Draw(panel), (left, top), caption, _CAPTION, GREY)


def caption_width(caption: str, fonts: Fonts) -> int:
    """Pixels."""
    return round(fonts.length(caption, _CAPTION)) + 2


def shown(text: str) -> str:
    """Foreign text without control characters, cut to what can fit."""
    return " ".join(clean(text[:_MOST_CHARACTERS]).split()) + (" ..." if len(text) > _MOST_CHARACTERS else "")


def _notes(text: str, fonts: Fonts) -> list[str]:
    """What a reader must know of how the text is drawn."""
    notes: list[str] = []
    if missing := fonts.readable(text)[1]:
        notes.append(
            f"{missing} characters have no glyph in the fonts of this machine (a PNG holds the texts as metadata); "
            "install a font that has them, such as Noto Sans CJK, or give one (font=)"
        )
    if is_right_to_left(text) and not can_shape():
        notes.append("letters that run to the left are drawn unjoined and in the wrong order: this Pillow has no raqm")
    return notes


def wrap(text: str, fonts: Fonts, size: int, width: int, most_lines: int = _MOST_LINES) -> list[str]:
    """Lines no wider than `width` pixels, at most `most_lines`; words longer than a line are cut."""
    lines = [""]
    for word in text.split():
        while fonts.length(word, size) > width and len(word) > 1:
            cut = _fitting(word, fonts, size, width)
            lines.append(word[:cut])
            word = word[cut:]
        longer = f"{lines[-1]} {word}".strip()
        if fonts.length(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
        if len(lines) > most_lines + 1:
            break
    kept = [line for line in lines if line]
    return kept if len(kept) <= most_lines else [*kept[: most_lines - 1], kept[most_lines - 1] + " ..."]


def _fitting(word: str, fonts: Fonts, size: int, width: int) -> int:
    """How many characters of a word fit into a line, at least one."""
    fits, too_many = 1, len(word)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if fonts.length(word[:middle], size) <= width:
            fits = middle
        else:
            too_many = middle
    return fits
