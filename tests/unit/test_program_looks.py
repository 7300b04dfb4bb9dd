"""Looks of programs: what a bundle leaves goes into later questions, and what a stranger gives is checked first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrkit import Reasoner
from lrkit.errors import DataError, UserError
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine
from lrkit.runtime.engines.programs.looks import ProgramLooked
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from tests.bundles import QUESTION, picture
from tests.hostile import edit


@pytest.fixture(scope="module")
def engine(bundle: Path) -> ProgramEngine:
    found = Reasoner.load(bundle, threads=1).engine
    assert isinstance(found, ProgramEngine)
    return found


@pytest.fixture(scope="module")
def prompt(engine: ProgramEngine) -> EncodedPrompt:
    return engine.processor.encode_prompt([picture(0)], QUESTION)


@pytest.fixture(scope="module")
def looked(engine: ProgramEngine, prompt: EncodedPrompt) -> ProgramLooked:
    return engine.look(prompt)


def test_an_answer_behind_a_look_is_that_of_the_whole_prompt(
    engine: ProgramEngine, prompt: EncodedPrompt, looked: ProgramLooked
) -> None:
    (whole,) = engine.generate([prompt], AskOptions())
    behind = replace(prompt, looked=looked, patches=None)
    (asked,) = engine.generate([behind], AskOptions())
    for name in ("token_ids", "latent_steps", "ar_steps", "halting", "prefilled_tokens", "routed_depths"):
        assert getattr(asked, name) == getattr(whole, name), name
    assert asked.routed_tokens == whole.routed_tokens, "of all tokens of the prompt"
    indices = [[[token.index for token in step] for step in answer.replayed] for answer in (asked, whole)]
    assert indices[0] == indices[1]


def test_its_arrays_make_it_again(engine: ProgramEngine, prompt: EncodedPrompt, looked: ProgramLooked) -> None:
    arrays = looked.arrays()
    assert looked.bytes == sum(array.nbytes for array in arrays.values())
    again = engine.looked_of(arrays, prompt)
    assert all(np.array_equal(again.past[name], array) for name, array in looked.past.items())


SPOILED = {
    "keys": lambda keys: keys[:, :, :, 1:],
    "visual": lambda visual: visual.astype(np.float64),
    "ids": lambda ids: ids + 1,
    "passes": lambda passes: passes + 100,
}


@pytest.mark.parametrize("name", SPOILED)
def test_arrays_of_a_stranger(name: str, engine: ProgramEngine, prompt: EncodedPrompt, looked: ProgramLooked) -> None:
    arrays = looked.arrays()
    with pytest.raises(DataError, match=rf"^{name} .*; look at the pictures again$"):
        engine.looked_of({**arrays, name: SPOILED[name](arrays[name])}, prompt)
    with pytest.raises(DataError, match=f"no array {name}, which the program leaves"):
        engine.looked_of({key: array for key, array in arrays.items() if key != name}, prompt)
    with pytest.raises(DataError, match="an array 'more', which the program does not leave"):
        engine.looked_of({**arrays, "more": arrays[name]}, prompt)


def test_numbers_that_are_none(engine: ProgramEngine, prompt: EncodedPrompt, looked: ProgramLooked) -> None:
    keys = looked.past["past_keys"].copy()
    keys[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="keys holds NaN or infinite numbers"):
        engine.looked_of({**looked.arrays(), "keys": keys}, prompt)


def without_scenes(values: dict) -> None:
    """As a bundle that was written before there were scenes."""
    for entry in values["programs"].values():
        for kind, begin in (("inputs", "past_"), ("outputs", "new_")):
            entry["spec"][kind] = [one for one in entry["spec"][kind] if not one["name"].startswith(begin)]


def test_a_bundle_without_scenes_says_how_to_get_them(own_bundle: Path, prompt: EncodedPrompt) -> None:
    edit(own_bundle, without_scenes)
    engine = OrtEngine.from_bundle(own_bundle)
    with pytest.raises(UserError, match=r"reads a picture with each question; .* export the checkpoint again with"):
        engine.look(prompt)
