"""Batches made ahead by any number of workers are the curriculum's own, in its order, and leave no trace but time."""

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
from lrkit.runtime.encode.kept_cuts import KeptCuts, key_of
from lrkit.train.ahead import Ahead, tokens_of
from lrkit.train.curriculum import Curriculum
from lrkit.train.fresh import fresh_processor
from lrkit.train.loading import LoaderConfig, Pace
from lrkit.train.recipe import load_recipe

LINES = 7
WORKERS = pytest.mark.parametrize("workers", (0, 1, 2, 5))
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


@WORKERS
def test_batches_and_states_are_those_of_the_curriculum_through_two_stages(tmp_path: Path, workers: int) -> None:
    plain, ahead = made(tmp_path), Ahead(made(tmp_path), LoaderConfig(workers=workers))
    for index in (0, 0, 0, 0, 0, 1, 1, 1):
        assert same(ahead.batch(index), plain.batch(index))
        assert ahead.state() == plain.state(), "what waits is not drawn yet for who saves"
    ahead.stop()
    assert ahead.state() == plain.state() and threads() == []


@WORKERS
def test_a_saved_state_goes_on_with_the_same_batches(tmp_path: Path, workers: int) -> None:
    first, second = Ahead(made(tmp_path), LoaderConfig(workers=workers)), Ahead(made(tmp_path))
    for _ in range(3):
        first.batch(0)
    second.batch(0)  # it has drawn something else before
    second.load_state(json.loads(json.dumps(first.state()), object_hook=_numbers))
    for _ in range(6):
        assert same(first.batch(0), second.batch(0))
    first.stop()
    second.stop()


@WORKERS
def test_what_fails_ahead_is_said_where_its_batch_is_taken(tmp_path: Path, workers: int) -> None:
    plain, ahead = made(tmp_path, missing=4), Ahead(made(tmp_path, missing=4), LoaderConfig(workers=workers))
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


@pytest.mark.parametrize(("workers", "asked_ahead", "most"), [(1, 2, 2), (1, 1, 1), (3, 2, 3), (2, 4, 4)])
def test_no_more_batches_wait_than_memory_is_meant_to_hold(
    tmp_path: Path, workers: int, asked_ahead: int, most: int
) -> None:
    curriculum = made(tmp_path)
    asked, full = list[int](), threading.Event()
    original = curriculum.draw

    def counted(index: int) -> Any:
        asked.append(index)
        if len(asked) == most + 1:
            full.set()
        return original(index)

    curriculum.draw = counted
    ahead = Ahead(curriculum, LoaderConfig(workers=workers, ahead=asked_ahead))
    ahead.batch(0)
    assert full.wait(60), "they go on to fill the place of the batch that was taken"
    ahead.stop()
    assert len(asked) == most + 1


def test_a_slow_batch_keeps_its_place(tmp_path: Path) -> None:
    """The first batch is held until the others are done: they wait behind it."""
    plain, curriculum = made(tmp_path), made(tmp_path)
    original, others, started = curriculum.collate, threading.Semaphore(0), list[int]()

    def held(stage: Any, samples: Any) -> Any:
        started.append(1)
        if len(started) == 1:
            for _ in range(2):
                assert others.acquire(timeout=60)
            return original(stage, samples)
        batch = original(stage, samples)
        others.release()
        return batch

    curriculum.collate = held
    ahead = Ahead(curriculum, LoaderConfig(workers=3, ahead=3))
    for _ in range(4):
        assert same(ahead.batch(0), plain.batch(0))
    ahead.stop()


def test_a_failed_draw_is_said_behind_the_batches_before_it(tmp_path: Path) -> None:
    curriculum, plain = made(tmp_path), made(tmp_path)
    original, count = curriculum.draw, list[int]()

    def failing(index: int) -> Any:
        count.append(index)
        if len(count) == 3:
            raise DataError("the stream ended; start again")
        return original(index)

    curriculum.draw = failing
    ahead = Ahead(curriculum, LoaderConfig(workers=2))
    assert same(ahead.batch(0), plain.batch(0)) and same(ahead.batch(0), plain.batch(0))
    with pytest.raises(DataError, match="the stream ended"):
        ahead.batch(0)
    assert threads() == [] and ahead.state() == plain.state()


def test_kept_pictures_change_no_bit_and_stay_within_their_bytes(tmp_path: Path) -> None:
    plain, curriculum = made(tmp_path), made(tmp_path)
    per_picture = plain.batch(0).pixel_values.shape[0] // 2 * fresh_processor().geometry.patch_bytes  # pyright: ignore
    plain.load_state(curriculum.state())
    for room, all_found in ((per_picture * LINES, True), (per_picture * 2, False), (per_picture - 1, False)):
        kept = KeptCuts(room)
        curriculum._processor.kept = kept  # pyright: ignore[reportPrivateUsage]
        ahead = Ahead(curriculum, LoaderConfig(workers=2))
        for _ in range(3 * LINES):
            assert same(ahead.batch(0), plain.batch(0))
            assert kept.num_bytes <= room
        ahead.stop()
        assert (kept.missed <= LINES + 2) == all_found, "each is decoded once, or twice where two workers met"
        plain.load_state(curriculum.state())


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    processor = fresh_processor()
    processor.kept = KeptCuts(1 << 20)
    file = tmp_path / "a.png"
    for color in ("red", "blue"):
        Image.new("RGB", (48, 32 if color == "red" else 64), color).save(file)
        for _ in range(2):
            prompt = processor.encode_prompt([file], WORD)
            assert prompt.patches is not None and prompt.sizes == [(48, 32 if color == "red" else 64)]
    assert (processor.kept.found, processor.kept.missed) == (2, 2)
    assert len({key_of(file, processor.geometry, 1), key_of(file, processor.geometry.with_max_pixels(784 * 4), 1)}) == 2
    assert key_of(Image.new("RGB", (8, 8)), processor.geometry, 1) is None, "what has no name is not kept"


def test_the_pace_is_of_updates_alone(tmp_path: Path) -> None:
    ahead = Ahead(made(tmp_path), LoaderConfig(workers=0))
    pace, tokens = Pace(ahead), 0
    for _ in range(2):
        with pace.update():
            tokens += tokens_of(ahead.batch(0))
    figures = pace.figures(2)
    assert tokens > 20 and 0 < figures["waiting_share"] <= 1 and figures["tokens_per_second"] > 0
    assert pace.figures(1) == {"tokens_per_second": 0.0, "waiting_share": 0.0}


def test_the_number_of_workers_follows_the_cores_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (2, 1), (6, 3), (64, 8)):
        monkeypatch.setattr("lrkit.train.loading.usable_cores", lambda cores=cores: cores)
        assert LoaderConfig().num_workers == workers and LoaderConfig(workers=0).num_workers == 0


def _numbers(values: dict[str, Any]) -> dict[Any, Any]:
    """JSON makes texts of the lengths that are keys."""
    return {int(key) if key.isdecimal() else key: value for key, value in values.items()}
