"""A scene of a family: what is asked behind a look, and followed up, is what the whole prompt gets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrkit.contract.prompt import Turn
from lrkit.errors import UserError
from lrkit.runtime.encode.encoded_prompt import EncodedPrompt
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.runtime.sdk import Reasoner
from tests.families.cases import FamilyCase
from tests.families.conftest import pictures_of
from tests.families.reasoners import rich_reasoner, settings_of

OPTIONS = AskOptions(max_new_tokens=4)


def test_a_scenes_answers_are_those_of_whole_prompts(any_case: FamilyCase, any_folder: Path, tmp_path: Path) -> None:
    """With routing and replay; several pictures; a follow-up; a file. Bit for bit, up to the tokens' weights."""
    processor = Processor.from_folder(any_folder)
    engine = TorchEngine(rich_reasoner(any_folder, settings_of(any_case), processor), processor)
    pictures: list[Any] = list(pictures_of(any_case, 2))
    reasoner = Reasoner(engine)
    if not processor.format.asks_behind_pictures:
        with pytest.raises(UserError, match="in front of the pictures"):
            reasoner.look(pictures)
        return
    scene = reasoner.look(pictures)
    scene.save(tmp_path / "a.scene")
    earlier = [Turn(any_case.question, any_case.answer)] if processor.format.between_turns is not None else []
    for turns in ([], earlier):
        prompt = processor.encode_prompt(pictures, any_case.question, earlier=turns)
        for one in (scene, reasoner.open_scene(tmp_path / "a.scene")):
            looked, _ = one._held.take(OPTIONS.stop)  # pyright: ignore[reportPrivateUsage]
            behind = processor.encode_behind(one._prompt, any_case.question, turns)  # pyright: ignore[reportPrivateUsage]
            assert said(engine, replace(behind, looked=looked)) == said(engine, prompt)


def said(engine: TorchEngine, prompt: EncodedPrompt) -> object:
    found = engine.generate([prompt], OPTIONS)[0]
    return replace(found, timings={}, step_seconds={})
