"""Batches made ahead on a thread are the curriculum's own, in its order, and leave no trace but time."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrkit.contract.settings import ThinkSettings
from lrkit.data.collate import TrainBatch
from lrkit.errors import DataError
from lrkit.train.ahead import WAITING, Ahead
from lrkit.train.curriculum import Curriculum
from lrkit.train.fresh import fresh_processor
from lrkit.train.recipe import load_recipe

LINES = 7
WORD = "Take"


def made(folder: Path, missing: int | None = None) -> Curriculum:
    """A curriculum over JPEG photos; of line `missing` the picture is none."""
    rng, lines = np.random.default_rng(0), list[dict[str, Any]]()
    for number in range(LINES):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
        lines.append({"image": f"{number}.jpg", "question": WORD, "steps": [WORD] * (number % 3), "answer": "1"})
    if missing is not None:
        (folder / f"{missing}.jpg").write_bytes(b"no picture")
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    stages = [{"name": "say", "updates": 9}, {"name": "think", "updates": 9, "latent_steps": 1}]
    values = {"name": "a", "init": "tiny", "batch_size": 2, "data": {"kind": "jsonl", "train": str(data)}}
    recipe = load_recipe({**values, "stages": stages})
    return Curriculum(recipe, recipe.data.open(recipe.seed, recipe.stages), fresh_processor(), ThinkSettings())


def same(first: Any, second: Any) -> bool:
    assert isinstance(first, TrainBatch) and isinstance(second, TrainBatch)
    assert first.pixel_values is not None and second.pixel_values is not None
    return (
        torch.equal(first.input_ids, second.input_ids)
        and torch.equal(first.speech_ids, second.speech_ids)
        and torch.equal(first.pixel_values, second.pixel_values)
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lrkit-batches"]


def test_batches_and_states_are_those_of_the_curriculum_through_two_stages(tmp_path: Path) -> None:
    plain, ahead = made(tmp_path), Ahead(made(tmp_path))
    for index in (0, 0, 0, 0, 0, 1, 1, 1):
        assert same(ahead.batch(index), plain.batch(index))
        assert ahead.state() == plain.state(), "what waits is not drawn yet for who saves"
    ahead.stop()
    assert ahead.state() == plain.state() and threads() == []


def test_a_saved_state_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    first, second = Ahead(made(tmp_path)), Ahead(made(tmp_path))
    for _ in range(3):
        first.batch(0)
    second.batch(0)  # it has drawn something else before
    second.load_state(json.loads(json.dumps(first.state()), object_hook=_numbers))
    for _ in range(6):
        assert same(first.batch(0), second.batch(0))
    first.stop()
    second.stop()


def test_what_fails_ahead_is_said_where_its_batch_is_taken(tmp_path: Path) -> None:
    plain, ahead = made(tmp_path, missing=4), Ahead(made(tmp_path, missing=4))
    taken = 0
    with pytest.raises(DataError) as expected:
        while True:
            plain.batch(0)
            taken += 1
    for _ in range(taken):
        ahead.batch(0)
    before = ahead.state()
    with pytest.raises(DataError) as caught:
        ahead.batch(0)
    assert str(caught.value) == str(expected.value) and "data.jsonl:5: " in str(caught.value)
    assert ahead.state() == before and threads() == []
    with pytest.raises(DataError):
        ahead.batch(0)
    assert threads() == []


def test_no_more_batches_wait_than_memory_is_meant_to_hold(tmp_path: Path) -> None:
    curriculum = made(tmp_path)
    asked, full = list[int](), threading.Event()
    original = curriculum.batch

    def counted(index: int) -> Any:
        asked.append(index)
        if len(asked) == WAITING + 1:
            full.set()
        return original(index)

    curriculum.batch = counted
    ahead = Ahead(curriculum)
    ahead.batch(0)
    assert full.wait(60), "it goes on to fill the place of the batch that was taken"
    ahead.stop()
    assert len(asked) == WAITING + 1


def _numbers(values: dict[str, Any]) -> dict[Any, Any]:
    """JSON makes texts of the lengths that are keys."""
    return {int(key) if key.isdecimal() else key: value for key, value in values.items()}
