"""Scenes of models that look closer: the small picture is read once, and every question still reads its own windows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrkit import Answer, Reasoner, UserError
from lrkit.contract.settings import PruneSettings, ReplaySettings
from lrkit.errors import DataError
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.engines.torch.engine import TorchEngine

FIRST, SECOND = (
    "Take 3 hops. Which room are you in? Start in room 4",
    "Take 5 hops. Which room are you in? Start in room 1",
)
FINE = ReplaySettings(num_tokens=1, source="fine", zoom=2, positions="shared")
THINK: dict[str, Any] = {"halting": "fixed", "max_latent_steps": 3, "max_new_tokens": 3}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


PICTURES: dict[str, list[Image.Image]] = {
    "one": [picture(160, 64)],
    "two that differ": [picture(96, 96, 1), picture(64, 32, 2)],
}


@pytest.fixture(scope="module")
def plain() -> Reasoner:
    return Reasoner(TorchEngine.from_checkpoint(resolve_checkpoint("tiny/latent")))


@pytest.fixture(scope="module")
def reasoner(plain: Reasoner) -> Reasoner:
    """tiny, told to look closer: it has not learned to, and every mechanism runs."""
    return changed(plain, replay=FINE)


def changed(reasoner: Reasoner, **update: Any) -> Reasoner:
    engine: Any = reasoner.engine
    return Reasoner(engine.with_settings(engine.settings.model_copy(update=update)))


def alike(one: Answer, other: Answer) -> bool:
    """All but the time it took."""
    return replace(one, timings={}, images=()) == replace(other, timings={}, images=())


@pytest.mark.parametrize("name", PICTURES)
def test_answers_of_a_scene_are_those_of_whole_prompts(reasoner: Reasoner, name: str) -> None:
    pictures = PICTURES[name]
    scene = reasoner.look(pictures)
    for question in (FIRST, SECOND):
        answer = scene.ask(question, **THINK)
        assert alike(answer, reasoner.ask(pictures, question, **THINK)) and answer.replayed_tokens > 0
    batch = scene.ask_batch([FIRST, SECOND], **THINK)
    assert [one.regions for one in batch] == [scene.ask(question, **THINK).regions for question in (FIRST, SECOND)]


def test_a_file_holds_the_windows(reasoner: Reasoner, tmp_path: Path) -> None:
    """Of two pictures; a follow-up, another process's reader and one without memory look closer as the first did."""
    scene = reasoner.look(PICTURES["two that differ"])
    scene.save(tmp_path / "a.scene")
    for limit in (None, 0):
        reader = Reasoner(reasoner.engine, **({} if limit is None else {"scene_bytes": limit}))
        found = reader.open_scene(tmp_path / "a.scene")
        scene.new_conversation()
        assert alike(found.ask(FIRST, **THINK), scene.ask(FIRST, **THINK))
        assert alike(found.follow_up(SECOND, **THINK), scene.follow_up(SECOND, **THINK))
    drawn = reasoner.open_scene(tmp_path / "a.scene", PICTURES["two that differ"]).ask(FIRST, **THINK)
    drawn.save_trace(tmp_path / "trace.png")


def test_a_model_that_looks_otherwise_refuses_the_file(plain: Reasoner, reasoner: Reasoner, tmp_path: Path) -> None:
    """The weights are the same; what is read of the pictures is not."""
    others = {
        "plain": plain,
        "closer": changed(plain, replay=FINE.model_copy(update={"zoom": 4})),
        "more windows": changed(plain, replay=FINE.model_copy(update={"num_tokens": 2})),
    }
    reasoner.look(PICTURES["one"]).save(tmp_path / "fine.scene")
    plain.look(PICTURES["one"]).save(tmp_path / "plain.scene")
    for name, other in others.items():
        with pytest.raises(DataError, match=r"^\S+fine\.scene is a scene of another model \([^\n]*again$"):
            other.open_scene(tmp_path / "fine.scene")
            pytest.fail(f"{name} took it")
    with pytest.raises(DataError, match=r"^\S+plain\.scene is a scene of another model \([^\n]*again$"):
        reasoner.open_scene(tmp_path / "plain.scene")


def _cut(header: dict[str, Any]) -> None:
    header["prompt.windows"]["shape"][0] -= 1


def _flat(header: dict[str, Any]) -> None:
    header["prompt.windows"]["shape"] = [int(np.prod(header["prompt.windows"]["shape"]))]


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "under another name": lambda header: header.update(windows=header.pop("prompt.windows")),
    "flat": _flat,
    "of signed numbers": lambda header: header["prompt.windows"].update(dtype="BOOL"),
    "turned round": lambda header: header["prompt.windows"]["shape"].reverse(),
    "too few": _cut,
    "of a huge shape": lambda header: header["prompt.windows"].update(shape=[1 << 40, 1 << 40, 1 << 40]),
}


@pytest.mark.parametrize("name", SPOILED)
def test_windows_of_a_stranger_are_refused_in_one_sentence(reasoner: Reasoner, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.scene"
    reasoner.look(PICTURES["one"]).save(path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    SPOILED[name](header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(DataError) as caught:
        reasoner.open_scene(path)
    assert "\n" not in str(caught.value) and "a.scene" in str(caught.value)


def test_a_pruned_token_comes_back_as_a_window(plain: Reasoner) -> None:
    """One of ten tokens of the small picture stays behind the first layer. Nine looks need eight others."""
    reasoner = changed(plain, replay=FINE, prune=PruneSettings(after_layer=0, keep=0.1))
    pictures = PICTURES["one"]
    nine: dict[str, Any] = {**THINK, "max_latent_steps": 9}
    answer = reasoner.ask(pictures, FIRST, **nine)
    assert len({region.box for step in answer.regions for region in step}) == 9 and answer.replayed_tokens == 36
    asked = [(pictures, FIRST), (PICTURES["two that differ"], SECOND), ([], FIRST)]
    for one, (images, question) in zip(reasoner.ask_batch(asked, **nine), asked, strict=True):  # pyright: ignore
        alone = reasoner.ask(images, question, **nine)
        assert (one.text, one.regions, one.replayed_tokens) == (alone.text, alone.regions, alone.replayed_tokens)
    with pytest.raises(UserError, match=r"prunes visual tokens by what is asked .*without pruning$"):
        reasoner.look(pictures)
