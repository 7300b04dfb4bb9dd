"""Text of a drawn trace in any script: a font that has it, or a word in its place; and files by their ending."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit.errors import DataError
from lrkit.runtime.answer import fonts, trace, trace_text
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.answer.fonts import Fonts, has_glyph
from lrkit.runtime.answer.regions import Region
from lrkit.runtime.answer.trace import draw_trace
from lrkit.runtime.answer.trace_text import wrap

CHINESE, ARABIC = "\u5979\u662f\u4e00\u540d\u5b87\u822a\u5458", "\u0645\u0631\u062d\u0628\u0627"
MakeFont = Callable[[str], str]


@pytest.fixture
def make_font(tmp_path: Path) -> MakeFont:
    """A font file that has just the given characters, each a filled square of a size of its own."""
    builder_module = pytest.importorskip("fontTools.fontBuilder", reason="fontTools builds the test's fonts")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")

    def build(characters: str) -> str:
        builder = builder_module.FontBuilder(1000, isTTF=True)
        names = [".notdef", *(f"g{number}" for number in range(len(characters)))]
        builder.setupGlyphOrder(names)
        builder.setupCharacterMap({ord(one): name for one, name in zip(characters, names[1:], strict=True)})
        glyphs = {}
        for number, name in enumerate(names):
            pen = pens.TTGlyphPen(None)
            right, top = (500, 700) if name == ".notdef" else (600 + 10 * number, 800)
            for corner, place in enumerate(((0, 0), (0, top), (right, top), (right, 0))):
                (pen.moveTo if corner == 0 else pen.lineTo)(place)
            pen.closePath()
            glyphs[name] = pen.glyph()
        builder.setupGlyf(glyphs)
        builder.setupHorizontalMetrics({name: (900, 0) for name in names})
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        path = tmp_path / f"font{len(characters)}.ttf"
        builder.save(path)
        return str(path)

    return build


def use_system(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    monkeypatch.setattr(fonts, "system_fonts", lambda: files)


def answer(question: str, text: str = "Answer: 7", **values: object) -> Answer:
    given = {"question": question, "images": (Image.new("RGB", (80, 32)),), **values}
    return Answer(text, "7", "latent", **given)  # pyright: ignore[reportArgumentType]


def test_what_no_font_has_is_named_in_its_place_and_kept_in_the_file(tmp_path: Path, monkeypatch) -> None:
    """Pillow's own font once drew empty boxes for it, without a word."""
    use_system(monkeypatch)
    chain = Fonts([CHINESE])
    assert chain.readable(f"Ergo, {CHINESE}. x") == ("Ergo, [7 characters]. x", 7)
    assert chain.readable("plain") == ("plain", 0)
    one = answer(f"Who? {CHINESE}", "the answer\x1b[31m is \u5979")
    (note,) = trace_text._notes(one.question, chain)  # pyright: ignore[reportPrivateUsage]
    assert note.startswith("7 characters have no glyph in the fonts of this machine")
    one.save_trace(tmp_path / "trace.png")
    with Image.open(tmp_path / "trace.png") as saved:
        assert saved.text == {"question": one.question, "text": "the answer[31m is \u5979"}


def test_a_font_of_the_system_or_of_the_caller_fills_the_gap(make_font: MakeFont, monkeypatch) -> None:
    chinese, arabic = make_font(CHINESE), make_font(ARABIC)
    use_system(monkeypatch, arabic, chinese)
    text = f"a {CHINESE} b {ARABIC}"
    chain = Fonts([text])
    assert chain.readable(text) == (text, 0)
    runs = [(name, run) for name, run in chain._runs(f"a{CHINESE}b")]  # pyright: ignore[reportPrivateUsage]
    assert runs == [(None, "a"), (chinese, CHINESE), (None, "b")]
    # One font for the whole line where one has it all: the direction of its text is then kept.
    assert [name for name, _ in chain._runs(ARABIC)] == [arabic]  # pyright: ignore[reportPrivateUsage]
    assert chain.length(CHINESE, 20) > chain.length(CHINESE[:3], 20) > 0
    use_system(monkeypatch)
    assert Fonts([CHINESE], chinese).readable(CHINESE)[1] == 0
    assert Fonts([CHINESE], Path(arabic)).readable(CHINESE)[1] == 7


def test_the_page_is_drawn_with_the_glyphs_of_the_fallback(make_font: MakeFont, monkeypatch) -> None:
    use_system(monkeypatch)
    with_font = np.asarray(draw_trace(answer(CHINESE), make_font(CHINESE)))
    without = np.asarray(draw_trace(answer(CHINESE)))
    # Seven filled squares are far darker than a word in brackets.
    assert (with_font[20:80] < 60).sum() > 3 * (without[20:80] < 60).sum()


def test_a_character_that_the_own_font_has_needs_no_other(monkeypatch) -> None:
    monkeypatch.setattr(fonts, "system_fonts", lambda: pytest.fail("looked for fonts without need"))
    assert Fonts(["Where? It\u2019s here.\n\t"]).readable("It\u2019s")[1] == 0
    assert has_glyph(None, "A") and not has_glyph(None, "\u5979")


def test_letters_that_run_left_are_shaped_or_a_note_says_that_they_are_not(make_font: MakeFont, monkeypatch) -> None:
    use_system(monkeypatch, make_font(ARABIC))
    chain = Fonts([ARABIC])
    monkeypatch.setattr(trace_text, "can_shape", lambda: False)
    (note,) = trace_text._notes(ARABIC, chain)  # pyright: ignore[reportPrivateUsage]
    assert "no raqm" in note
    monkeypatch.setattr(trace_text, "can_shape", lambda: True)
    assert trace_text._notes(ARABIC, chain) == []  # pyright: ignore[reportPrivateUsage]


def test_what_is_no_font_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "words.ttf").write_text("not a font")
    for path in (tmp_path / "words.ttf", tmp_path / "missing.ttf", tmp_path):
        with pytest.raises(DataError, match=r"is no font that can be read .*; give a \.ttf or \.otf file") as error:
            answer("Why?").save_trace(tmp_path / "trace.png", font=path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert not (tmp_path / "trace.png").exists()


def test_a_broken_font_among_those_of_the_system_is_passed_over(
    tmp_path: Path, make_font: MakeFont, monkeypatch
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"\0\1\0\0" + bytes(40))
    use_system(monkeypatch, str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"), make_font(CHINESE))
    assert Fonts([CHINESE]).readable(CHINESE)[1] == 0


def test_long_texts_are_cut_and_words_without_spaces_are_wrapped(make_font: MakeFont, monkeypatch) -> None:
    use_system(monkeypatch, make_font(CHINESE))
    chain = Fonts([CHINESE])
    lines = wrap(CHINESE * 20, chain, 20, 300)
    assert "".join(lines).startswith(CHINESE) and len(lines) <= 12
    assert all(chain.length(line.removesuffix(" ..."), 20) <= 300 for line in lines)
    page = draw_trace(answer("w" * 300_000, "word " * 100_000))
    assert page.height < 1500


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jpeg", ".webp", ".bmp", ".tiff"])
def test_the_ending_says_what_is_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "deep" / f"trace{ending}"
    answer("Why?").save_trace(path)
    with Image.open(path) as saved:
        assert saved.format == {".jpg": "JPEG", ".tiff": "TIFF"}.get(
            ending.lower(), ending[1:].upper().replace("JPG", "")
        )


@pytest.mark.parametrize("name", ["trace", "trace.", "trace.eps", "trace.pdf", ".png", "trace.png.txt"])
def test_an_ending_that_names_no_format_is_refused_before_drawing(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr("lrkit.runtime.answer.trace.draw_trace", lambda *_: pytest.fail("drawn for nothing"))
    with pytest.raises(DataError, match=r"has no ending that names an image format .*use \.png"):
        answer("Why?").save_trace(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_device_gets_a_png(tmp_path: Path) -> None:
    answer("Why?").save_trace("/dev/null")
    assert not os.path.isfile("/dev/null")


def test_many_pictures_and_steps_make_a_page_that_can_be_held(monkeypatch) -> None:
    """A hundred pictures in one row were 40,000 pixels wide; a thousand steps took gigabytes."""
    monkeypatch.setattr(trace, "_MOST_DRAWN", 24)
    board = Image.new("RGB", (80, 32), "teal")
    steps = tuple((Region(index % 100, (0, 0, 8, 8), 1.0),) for index in range(1000))
    page = draw_trace(answer("Why?", images=(board,) * 100, regions=steps, latent_steps=1000))
    one = draw_trace(answer("Why?", images=(board,), regions=steps, latent_steps=1000))
    for drawn in (page, one):
        assert drawn.width <= 1500 and drawn.height < 24 / 3 * 300 + 400


def test_a_page_too_large_for_its_format_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trace, "draw_trace", lambda *_: Image.new("RGB", (20, 17_000)))
    with pytest.raises(DataError, match=r"a page of 20 x 17000 pixels cannot be written as WEBP .*use \.png"):
        answer("Why?").save_trace(tmp_path / "trace.webp")
    assert list(tmp_path.iterdir()) == []
