"""What applications hand to `Reasoner`: sensible values are taken, all others are one sentence before anything runs."""

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lrkit import LrkitError, Reasoner
from lrkit.contract.generated import MODES
from lrkit.contract.prompt import PromptFormat
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.runtime.answer.answering import _Speaker
from lrkit.runtime.encode.processor import Processor
from tests.bundles import QUESTION, picture


@pytest.fixture(scope="module")
def reasoner(bundle: Path) -> Reasoner:
    return Reasoner.load(bundle, threads=1)


def encoded() -> bytes:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    return stream.getvalue()


def test_pictures_are_taken_in_every_form_that_holds_one(reasoner: Reasoner, tmp_path: Path) -> None:
    raw, path = encoded(), tmp_path / "p.png"
    path.write_bytes(raw)
    opened = path.open("rb")
    expected = reasoner.ask(picture(), QUESTION).text
    forms: list[Any] = [
        path, str(path), raw, bytearray(raw), memoryview(raw), io.BytesIO(raw), opened,
        np.asarray(picture().convert("RGB")), [path], (path,), iter([path]), (each for each in [raw]),
    ]  # fmt: skip
    assert {reasoner.ask(form, QUESTION).text for form in forms} == {expected}
    opened.close()
    assert [a.text for a in reasoner.ask_batch((form, QUESTION) for form in (raw, [path]))] == [expected] * 2
    assert reasoner.ask_batch([[raw, QUESTION]])[0].text == expected


def test_whole_numbers_of_numpy_are_whole_numbers(reasoner: Reasoner) -> None:
    asked = reasoner.ask(None, QUESTION, max_new_tokens=np.int64(2), max_latent_steps=np.uint8(1))  # pyright: ignore
    assert (asked.spoken_tokens <= 2, asked.latent_steps <= 1) == (True, True)


class Pathless:
    """Its path cannot be had, or is a number."""

    def __init__(self, path: object = None) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        if self.path is None:
            raise RuntimeError("the volume is gone\nand with it the path")
        return self.path


class Uncountable:
    def __index__(self) -> int:
        raise OverflowError("no index")


class Broken:
    """A flag that cannot be asked, as one in another process that has ended."""

    def is_set(self) -> bool:
        raise ConnectionResetError("the other end\nis gone")


WRONG: dict[str, dict[str, Any]] = {
    "no question": {"question": None},
    "a question of bytes": {"question": b"Take"},
    "a number as the question": {"question": 5},
    "a list as the question": {"question": ["a"]},
    "half of a pair": {"question": "\ud83d"},
    "the other half": {"question": f"{QUESTION} \ude00"},
    "a book": {"question": "x" * 1_000_001},
    "text for tokens": {"max_new_tokens": "5"},
    "a half token": {"max_new_tokens": 2.5},
    "a whole float": {"max_new_tokens": 5.0},
    "true tokens": {"max_new_tokens": True},
    "numpy's true": {"max_new_tokens": np.True_},
    "no tokens": {"max_new_tokens": 0},
    "digits without end": {"max_new_tokens": 10**5000},
    "an array": {"max_latent_steps": np.zeros(3, int)},
    "fewer than no steps": {"max_latent_steps": -1},
    "steps that are no number": {"max_latent_steps": float("nan")},
    "an unknown halting": {"halting": "sometimes"},
    "a halting that cannot be hashed": {"halting": ["fixed"]},
    "an unknown mode": {"mode": "latnt"},
    "a mode that cannot be hashed": {"mode": ["latent"]},
    "no mode": {"mode": None},
    "pixels": {"max_pixels": "many"},
    "a text to call": {"on_text": "print"},
    "a picture by address": {"image": "https://example.com/a.png"},
    "a picture in the text": {"image": "data:image/png;base64," + base64.b64encode(b"x" * 5000).decode()},
    "a picture without its file": {"image": base64.b64encode(b"x" * 5000).decode()},
    "a mapping": {"image": {"image": "p.png"}},
    "a set": {"image": {"p.png"}},
    "none in a list": {"image": [None]},
    "lists in lists": {"image": [[picture()]]},
    "a number": {"image": 7},
    "an array of floats": {"image": np.zeros((8, 8, 3))},
    "an array of one side": {"image": np.zeros(8, np.uint8)},
    "a name with a NUL": {"image": "a\0b.png"},
    "text as bytes": {"image": b"p.png"},
    "an object": {"image": object()},
    "a path that fails": {"image": Pathless()},
    "a path that is a number": {"image": [Pathless(3)]},
    "a path of bytes": {"image": Pathless(b"p.png")},
    "an array that is huge once it is copied": {"image": np.broadcast_to(np.uint8(0), (300_000, 300_000))},
    "a count that fails": {"max_new_tokens": Uncountable()},
    "a time as text": {"timeout": "3"},
    "a time without end": {"timeout": np.float32("inf")},
    "a list of times": {"timeout": [1, 2]},
    "the class in place of an event": {"cancel": threading.Event},
    "a flag that fails": {"cancel": Broken()},
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_cannot_be_used_is_one_sentence(name: str, reasoner: Reasoner) -> None:
    asked: dict[str, Any] = {"image": None, "question": QUESTION} | WRONG[name]
    with pytest.raises(LrkitError) as caught:
        reasoner.ask(**asked)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400 and "; " in message


def test_numbers_of_numpy_are_seconds(reasoner: Reasoner) -> None:
    for seconds in (np.float64(60), np.float32(60), np.int16(60)):
        assert reasoner.ask(None, QUESTION, timeout=seconds, max_new_tokens=2).spoken_tokens <= 2  # pyright: ignore[reportArgumentType]


def test_a_trace_is_written_to_a_path_alone(reasoner: Reasoner) -> None:
    answer = reasoner.ask(picture(), QUESTION, max_new_tokens=2)
    for path in (None, 3, b"t.png", io.BytesIO(), Pathless()):
        with pytest.raises(LrkitError, match=r"path is .*; give the path of a file, as text or Path"):
            answer.save_trace(path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LrkitError, match="font is an int; give the path"):
        answer.save_trace("t.png", font=3)  # pyright: ignore[reportArgumentType]


class Odd:
    """Its repr has two lines, and its name says so."""

    def __repr__(self) -> str:
        return "two\nlines"


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    "questions",
    [
        None, 5, "text", b"bytes", {"a": "b"}, [("p.png",)], [(None, "q", "latent")], ["ab"], [None], [{}], [[None]],
        [(None, 5)], [(None, "q"), (None, None)], [(Odd(), "q")], Odd(), [Rude()], [{None, "q"}], np.zeros((2, 2)),
    ],
)  # fmt: skip
def test_a_batch_of_something_else_is_one_sentence(questions: Any, reasoner: Reasoner) -> None:
    with pytest.raises(LrkitError) as caught:
        reasoner.ask_batch(questions)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400 and "; " in message


@pytest.mark.parametrize(
    "options",
    [
        {"provider": 5}, {"provider": b"cpu"}, {"threads": "2"}, {"threads": 0}, {"threads": 1.5}, {"threads": True},
        {"verify": "no"}, {"verify": 1}, {"session_config": "a=b"}, {"session_config": {"a": 1}}, {"engine": 1},
        {"session_config": {1: "a"}}, {"engine_options": ["a"]}, {"engine_options": {1: 2}}, {"engine": Rude()},
        {"path": None}, {"path": 5}, {"path": b"bundle"}, {"path": ""}, {"path": "a\0b"}, {"path": "x" * 5000},
        {"path": ["a"]}, {"path": Odd()}, {"path": Pathless()}, {"path": Pathless(3)}, {"provider": ""},
        {"engine": " "}, {"threads": Rude()}, {"threads": 10**6000},
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_opened_so_is_one_sentence(options: dict[str, Any], bundle: Path) -> None:
    for opener in (Reasoner.load, Reasoner.open):
        given = {"path": bundle} | options
        if opener == Reasoner.open and set(options) & {"verify", "session_config"}:
            continue
        with pytest.raises(LrkitError) as caught:
            opener(**given)
        message = str(caught.value)
        assert message.isprintable() and len(message) < 700 and "; " in message


@pytest.mark.parametrize(
    "options", [{"device": 5}, {"device": "gpu\n"}, {"dtype": 16}, {"dtype": torch.int8}, {"cuda_graphs": "yes"}]
)
def test_a_checkpoint_that_cannot_be_opened_so_is_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(LrkitError) as caught:
        Reasoner.from_checkpoint("tiny", **options)
    assert str(caught.value).isprintable()


def test_torchs_own_devices_and_types_are_taken_by_name() -> None:
    opened = Reasoner.from_checkpoint("tiny", torch.device("cpu"), torch.float32)  # pyright: ignore[reportArgumentType]
    assert opened.ask(None, "Take 2 hops.", max_new_tokens=1).mode in MODES


def byte_processor() -> Processor:
    """A tokenizer with a token for each byte, so that every character beyond ASCII takes several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = PromptFormat().tokens
    tokenizer.add_special_tokens([value for value in names.model_dump().values() if isinstance(value, str)])
    return Processor(tokenizer, ImageGeometry(), PromptFormat())


@pytest.mark.parametrize("text", ["plain", "caf\u00e9", "\u65e5\u672c", "\U0001f600 ok", "a\ufffdb", "\u00e9" * 5, ""])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_streamed_pieces_make_the_whole_answer_however_it_ends(text: str, cut: int) -> None:
    """An answer cut in the middle of a character ended without it: the stream waited for bytes that never came."""
    processor = byte_processor()
    ids = processor.tokenizer.encode(text, add_special_tokens=False).ids
    ids = ids[: len(ids) - cut]
    pieces: list[str] = []
    speaker = _Speaker(processor, pieces.append)
    for token in [*ids, None]:
        speaker([token])
    speaker.finish()
    assert "".join(pieces) == processor.decode(ids)
    assert "" not in pieces


@pytest.mark.parametrize("name", ["engine", "provider"])
def test_a_name_of_any_length_is_told_briefly(name: str, bundle: Path) -> None:
    options: dict[str, Any] = {name: "x" * 20_000}
    with pytest.raises(LrkitError, match=f"unknown {name} 'xxx") as caught:
        Reasoner.load(bundle, **options)
    assert len(str(caught.value)) < 400
