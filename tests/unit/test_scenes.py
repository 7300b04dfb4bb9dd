"""Scenes: pictures read once, asked about often, in memory and in files, on torch."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrkit import Answer, Reasoner, UserError
from lrkit.contract.prompt import Turn
from lrkit.errors import DataError, TimeoutExceeded
from lrkit.runtime.engines.torch.engine import TorchEngine
from tests.tiny import tiny_reasoner

FIRST, SECOND = (
    "Take 3 hops. Which room are you in? Start in room 4",
    "Take 5 hops. Which room are you in? Start in room 1",
)
HERE = "Take 2 hops. Which room are you in? Start here"


def board(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 80, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def opened() -> Reasoner:
    return Reasoner.from_checkpoint("tiny")


@pytest.fixture
def reasoner(opened: Reasoner) -> Reasoner:
    """With no scene in memory yet."""
    return Reasoner(opened.engine)


def alike(one: Answer, other: Answer) -> bool:
    """All but the time it took."""
    return replace(one, timings={}, images=()) == replace(other, timings={}, images=())


class Counted:
    """The engine, counting looks."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.looks = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def look(self, *given: Any) -> Any:
        self.looks += 1
        return self._engine.look(*given)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scenes_answers_are_those_of_whole_prompts(reasoner: Reasoner, count: int) -> None:
    pictures = [board(seed) for seed in range(count)]
    scene = reasoner.look(pictures)
    for mode in ("latent", "cot", "direct"):
        for question in (FIRST, SECOND):
            said: list[str] = []
            answer = scene.ask(question, mode, max_new_tokens=12, on_text=said.append)
            assert alike(answer, reasoner.ask(pictures, question, mode, max_new_tokens=12))
            assert answer.timings["look"] == 0.0 and "".join(said) == answer.text and list(answer.images) == pictures
    batch = scene.ask_batch([FIRST, SECOND])
    assert [one.text for one in batch] == [scene.ask(question).text for question in (FIRST, SECOND)]
    assert scene.ask_batch([]) == []


def test_a_follow_up_is_the_whole_conversation_as_one_prompt(reasoner: Reasoner) -> None:
    scene = reasoner.look(board())
    first = scene.ask(FIRST, "direct", max_new_tokens=1)
    second = scene.follow_up(HERE, max_latent_steps=2)
    assert scene.turns == (Turn(FIRST, f"Answer: {first.text}"), Turn(HERE, second.text))
    third = scene.follow_up(SECOND)
    whole = reasoner.processor.encode_prompt([board()], SECOND, earlier=scene.turns[:2])
    found = reasoner.engine.generate([whole], reasoner_options())[0]
    assert reasoner.processor.decode(found.token_ids) == third.text and found.latent_steps == third.latent_steps
    assert third.prefilled_tokens == len(whole.ids) > first.prefilled_tokens
    other = scene.new_conversation()
    assert other.turns == () and alike(other.follow_up(SECOND), reasoner.ask(board(), SECOND))
    scene.ask(SECOND)
    assert len(scene.turns) == 1


def reasoner_options() -> Any:
    from lrkit.runtime.engines.common.protocol import AskOptions

    return AskOptions()


def test_states_keep_within_the_limit_and_a_scene_that_is_out_looks_again(opened: Reasoner) -> None:
    engine: Any = Counted(opened.engine)
    once = Reasoner(engine).look(board())
    size = opened.engine.look(once._prompt).bytes  # pyright: ignore[reportPrivateUsage]
    reasoner = Reasoner(engine, scene_bytes=2 * size + 10)
    engine.looks = 0
    scenes = [reasoner.look(board(seed)) for seed in range(3)]
    assert engine.looks == 3 and reasoner.scenes.bytes == 2 * size
    assert scenes[2].ask(FIRST).timings["look"] == 0.0
    again = scenes[0].ask(FIRST)
    assert engine.looks == 4 and again.timings["look"] > 0.0 and alike(again, opened.ask(board(0), FIRST))
    scenes[2].ask(FIRST)
    assert engine.looks == 4  # the second went, which was not asked longest
    scenes[1].ask(FIRST)
    assert engine.looks == 5 and reasoner.scenes.bytes == 2 * size
    del scenes[1:]
    assert reasoner.scenes.bytes <= size


def test_a_scene_above_the_limit_looks_with_every_question(opened: Reasoner) -> None:
    engine: Any = Counted(opened.engine)
    reasoner = Reasoner(engine, scene_bytes=0)
    scene = reasoner.look(board())
    assert alike(scene.ask(FIRST), opened.ask(board(), FIRST)) and reasoner.scenes.bytes == 0
    scene.ask(SECOND)
    assert engine.looks == 3


def test_threads_that_ask_a_scene_whose_state_is_out_look_once(opened: Reasoner) -> None:
    engine: Any = Counted(opened.engine)
    reasoner = Reasoner(engine)
    scene = reasoner.look(board())
    want = [opened.ask(board(), question).text for question in (FIRST, SECOND)]
    for number in list(reasoner.scenes._held):  # pyright: ignore[reportPrivateUsage]
        reasoner.scenes.drop(number)
    engine.looks = 0
    together, found = threading.Barrier(4), [""] * 4

    def ask(index: int) -> None:
        together.wait()
        found[index] = scene.new_conversation().ask((FIRST, SECOND)[index % 2]).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == want * 2 and engine.looks == 1


def test_a_scene_from_a_file_answers_alike(reasoner: Reasoner, tmp_path: Path) -> None:
    pictures = [board(0), board(1)]
    scene = reasoner.look(pictures)
    scene.save(tmp_path / "a.scene")
    found = Reasoner(reasoner.engine).open_scene(tmp_path / "a.scene")
    assert found.images == () and alike(found.ask(FIRST), scene.ask(FIRST))
    assert found.follow_up(HERE).text == scene.follow_up(HERE).text
    drawn = reasoner.open_scene(str(tmp_path / "a.scene"), pictures).ask(FIRST)
    drawn.save_trace(tmp_path / "trace.png")
    with pytest.raises(DataError, match="no picture"):
        found.ask(FIRST, max_latent_steps=1, halting="fixed").save_trace(tmp_path / "none.png")
    with pytest.raises(DataError, match="80 x 32 and 80 x 32"):
        reasoner.open_scene(tmp_path / "a.scene", [board()])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.scene", "trace.png"]


def test_a_file_is_read_again_where_its_state_is_out(opened: Reasoner, tmp_path: Path) -> None:
    path = tmp_path / "a.scene"
    opened.look(board()).save(path)
    scene = Reasoner(opened.engine, scene_bytes=0).open_scene(path)
    assert alike(scene.ask(FIRST), opened.ask(board(), FIRST))
    opened.look(board(7)).save(path)
    with pytest.raises(DataError, match="has changed since it was opened"):
        scene.ask(FIRST)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.scene"):
        scene.ask(FIRST)


def rewritten(path: Path, change: Any) -> Path:
    """The file with another note."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    note = json.loads(header["__metadata__"]["lrkit_scene"])
    change(note, header)
    header["__metadata__"]["lrkit_scene"] = json.dumps(note)
    text = json.dumps(header).encode()
    found = path.with_name("changed.scene")
    found.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return found


CHANGES: dict[str, tuple[Any, str]] = {
    "another model": (lambda note, header: note.update(model="0" * 64), "scene of another model"),
    "another number type": (lambda note, header: note.update(dtype="bfloat16"), "scene of another model"),
    "a later version": (lambda note, header: note.update(version=2), "version 2"),
    "no version": (lambda note, header: note.pop("version"), "version null"),
    "an unknown entry": (lambda note, header: note.update(extra=1), "damaged"),
    "other pictures": (lambda note, header: note.update(grids=[[1, 2, 2]]), "prompt format"),
    "grids of another kind": (lambda note, header: note.update(grids=[[9, 9]]), "prompt format"),
    "a huge picture": (lambda note, header: note.update(grids=[[1, 1 << 38, 1 << 38]]), "prompt format"),
    "more sizes": (lambda note, header: note.update(sizes=[[1, 1], [1, 1]]), "numbers of pictures"),
    "another checksum": (lambda note, header: note.update(content="0" * 64), "not those that were written"),
    "another name": (lambda note, header: header.update(other=header.pop("visual")), "no array visual"),
    "another type": (lambda note, header: header["visual"].update(dtype="I32"), "where the model leaves"),
    "another shape": (lambda note, header: header["visual"]["shape"].reverse(), "where the model leaves"),
}


@pytest.fixture(scope="module")
def file(opened: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("scene") / "a.scene"
    opened.look(board()).save(path)
    yield path


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_with_a_file_is_one_sentence(reasoner: Reasoner, file: Path, name: str) -> None:
    change, said = CHANGES[name]
    with pytest.raises(DataError, match=said) as caught:
        reasoner.open_scene(rewritten(file, change))
    assert "\n" not in str(caught.value) and "changed.scene" in str(caught.value)


def test_damaged_and_foreign_files_are_refused(reasoner: Reasoner, file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    path = tmp_path / "x.scene"
    flipped = raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]
    for content in (b"", b"PK\x03\x04", raw[:100], raw[:-1], raw + b"0", flipped, b"\xff" * 8 + raw[8:]):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            reasoner.open_scene(path)
        assert "\n" not in str(caught.value) and "x.scene" in str(caught.value)
    for strange in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(DataError):
            reasoner.open_scene(strange)


def test_a_model_with_routing_keeps_its_refinement_in_the_file(opened: Reasoner, tmp_path: Path) -> None:
    base: Any = opened.engine
    settings = base.settings.model_copy(
        update={"routing": base.settings.routing.model_copy(update={"depth": 2, "alpha": 4, "positions": "rearrange"})}
    )
    reasoner = Reasoner(base.with_settings(settings))
    scene = reasoner.look(board())
    scene.save(tmp_path / "a.scene")
    answers = [one.ask(SECOND) for one in (scene, reasoner.open_scene(tmp_path / "a.scene"))]
    want = reasoner.ask(board(), SECOND)
    assert all(alike(answer, want) for answer in answers) and sum(want.depths) > 8
    with pytest.raises(DataError, match="another model"):
        opened.open_scene(tmp_path / "a.scene")


def test_what_cannot_be_a_scene_is_refused(reasoner: Reasoner) -> None:
    scene = reasoner.look(board())
    number: Any = 3
    wrong: list[Any] = [lambda: reasoner.look(None), lambda: reasoner.look([]), lambda: scene.ask(""),
                        lambda: scene.ask_batch(FIRST), lambda: scene.ask("Take <|image_pad|>"),
                        lambda: scene.save(number), lambda: reasoner.open_scene(number)]  # fmt: skip
    for ask in wrong:
        with pytest.raises(UserError) as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(TimeoutExceeded):
        scene.ask(FIRST, timeout=1e-9)
    assert scene.turns == ()
    with pytest.raises(UserError, match="scene_bytes"):
        Reasoner(reasoner.engine, scene_bytes=-1)


def test_a_format_with_the_question_first_has_no_scenes(reasoner: Reasoner) -> None:
    processor = reasoner.processor
    format = processor.format.model_copy(update={"template": "{question}{images}", "between_turns": None})
    other = type(processor)(processor.tokenizer, processor.geometry, format)
    with pytest.raises(UserError, match="in front of the pictures"):
        other.encode_pictures([board()])
    with pytest.raises(UserError, match="no follow-ups"):
        other.encode_prompt([board()], FIRST, earlier=[Turn(SECOND, "3")])


def test_a_model_that_was_never_in_files_has_a_digest_of_its_numbers(opened: Reasoner) -> None:
    digests = {TorchEngine(tiny_reasoner(opened.engine.settings, seed), opened.processor).digest for seed in (0, 0, 1)}
    assert len(digests) == 2
