"""The embedded data set: honest splits, true answers, and samples that depend on the seed alone."""

import re

import numpy as np
import pytest

from lrkit.data.board import MERGED_PATCH, NUM_ROOMS, BoardKind, TrailSettings, draw_board
from lrkit.data.scans import draw_scans, plain_placement, scan_bank
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import HOPS, VOCABULARY, TrailStream, sample_read, sample_trail, trail_set
from lrkit.errors import DataError, UnknownNameError

pytest.importorskip("sklearn")

KINDS: tuple[BoardKind, ...] = ("main", "long", "faint", "wide")
GRIDS = {"main": [(80, 32)], "long": [(80, 32)], "faint": [(80, 48)], "wide": [(48, 32), (48, 32)]}


def test_no_scan_is_in_two_splits():
    ids = {split: set(scan_bank(split).ids.tolist()) for split in ("train", "val", "test")}
    assert [len(ids[split]) for split in ("train", "val", "test")] == [1300, 200, 297]
    assert not ids["train"] & ids["val"] and not ids["train"] & ids["test"] and not ids["val"] & ids["test"]


def test_boards_use_scans_of_their_split_alone():
    for split in ("train", "val", "test"):
        allowed = set(scan_bank(split).ids.tolist())
        for sample in TrailStream(split, seed=1).draw(20):
            assert set(sample.info["scans"]) <= allowed


def test_every_scan_shows_the_digit_it_is_listed_for():
    datasets = pytest.importorskip("sklearn.datasets")
    labels = datasets.load_digits().target
    bank = scan_bank("test")
    digits = np.repeat(np.arange(10), 50)
    rows = bank.pick(digits, np.random.default_rng(0))
    assert (labels[bank.ids[rows]] == digits).all()
    assert len(set(rows.tolist())) > 200  # 500 draws from 297 scans: not always the same few


@pytest.mark.parametrize("kind", KINDS)
def test_answer_follows_from_labels_of_the_picture(kind: BoardKind):
    """Reads the board from the per-token labels, which come by another way than the steps."""
    rng = np.random.default_rng(3)
    for index in range(20):
        hops = HOPS[kind][index % len(HOPS[kind])]
        sample = sample_trail("test", kind, hops, rng)
        signs = dict(zip(sample.info["token_rooms"].tolist(), sample.info["token_digits"].tolist(), strict=True))
        match = re.fullmatch(r"Take (\d+) hops?\. Which room are you in\? Start in room (\d+)", sample.question)
        assert match and int(match[1]) == hops == len(sample.steps)
        room, visited = int(match[2]), [int(match[2])]
        for number, step in enumerate(sample.steps, 1):
            sign = signs[room]
            assert step == f"Step {number}: I am in room {room}; the sign here shows {sign}, so I go on to room {sign}."
            room = sign
            visited.append(room)
        assert sample.answer == str(room)
        assert sample.info["rooms"] == tuple(visited)
        assert len(set(visited)) == len(visited), "a room entered twice makes the trail shorter than asked"


@pytest.mark.parametrize("kind", KINDS)
def test_labels_lie_where_the_tints_are(kind: BoardKind):
    """The tint in a token's corner tells room number // 5 by red and % 5 by blue; distractors are grey."""
    plain = TrailSettings(faint_noise=0.0)
    sample = sample_trail("test", kind, HOPS[kind][0], np.random.default_rng(5), plain)
    assert [image.size for image in sample.images] == GRIDS[kind]
    tokens = []
    for image in sample.images:
        pixels = np.asarray(image).astype(int)
        height, width, _ = pixels.shape
        side = MERGED_PATCH
        tiles = pixels.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2)
        tokens.append(tiles.reshape(-1, side * side, 3))
    # The ink is white and only adds, so the smallest value of a channel is the tint.
    tint = np.concatenate(tokens).min(axis=1) / 255
    rooms = sample.info["token_rooms"]
    is_room = rooms >= 0
    assert np.allclose(tint[is_room, 0], 0.35 * (rooms[is_room] // 5), atol=0.2)
    assert np.allclose(tint[~is_room], 0.4, atol=0.35)
    assert (sample.info["token_digits"][~is_room] == -1).all()
    assert (np.bincount(rooms[is_room], minlength=NUM_ROOMS[kind]) == 1).all()
    assert (~is_room).sum() == (5 if kind == "faint" else 0)


def test_each_step_is_23_tokens_and_every_word_is_known():
    tokenizer = build_word_tokenizer(VOCABULARY)
    unknown = tokenizer.token_to_id("<|unk|>")
    for kind in KINDS:
        for sample in TrailStream("val", seed=2).draw(8, kind=kind):
            for step in sample.steps:
                assert len(tokenizer.encode(step).ids) == 23
                assert tokenizer.decode(tokenizer.encode(step).ids) == step
            words = tokenizer.encode(" ".join((sample.question, *sample.steps, f"Answer: {sample.answer}"))).ids
            assert unknown not in words


def test_reading_names_each_room_once_with_its_digit():
    sample = sample_read("train", "wide", np.random.default_rng(1))
    signs = dict(zip(sample.info["token_rooms"].tolist(), sample.info["token_digits"].tolist(), strict=True))
    numbers = [int(word) for word in sample.answer.split()]
    assert sorted(numbers[::2]) == list(range(12)) and numbers[::2] != list(range(12))
    assert all(signs[room] == digit for room, digit in zip(numbers[::2], numbers[1::2], strict=True))
    # Token 0 is the answer's lead-in, then room and digit take turns: the pattern keeps digits, drops rooms.
    pattern = sample.info["weight_pattern"]
    weights = [pattern[index % len(pattern)] for index in range(1 + len(numbers))]
    assert weights[1::2] == [0.0] * 12 and weights[2::2] == [1.0] * 12


def test_equal_seeds_give_equal_samples():
    first, again, other = (TrailStream("train", seed).draw(4, kind="faint") for seed in (7, 7, 8))
    assert [sample.question + sample.answer for sample in first] == [s.question + s.answer for s in again]
    assert all((np.asarray(a.images[0]) == np.asarray(b.images[0])).all() for a, b in zip(first, again, strict=True))
    assert any((np.asarray(a.images[0]) != np.asarray(b.images[0])).any() for a, b in zip(first, other, strict=True))


def test_a_stream_never_repeats_and_keeps_to_the_lengths_asked_for():
    stream = TrailStream("train", seed=0)
    pictures = {np.asarray(sample.images[0]).tobytes() for sample in stream.draw(50)}
    assert len(pictures) == 50
    assert {sample.info["hops"] for sample in stream.draw(30, hops=3)} == {3}
    assert {sample.info["hops"] for sample in stream.draw(60, hops=(2, 4))} == {2, 4}


def test_fixed_set_asks_each_length_equally_often_and_grows_at_its_end():
    small, large = trail_set("main", "test", 12, seed=4), trail_set("main", "test", 16, seed=4)
    assert [sample.info["hops"] for sample in small] == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4]
    assert [s.question for s in large[:12]] == [s.question for s in small]
    assert len({sample.id for sample in large}) == 16
    assert {sample.info["hops"] for sample in trail_set("long", "test", 4)} == {9}


def test_augmentation_is_for_training_alone():
    """A scan drawn for test is the plain scan; drawn for training it differs from draw to draw."""
    bank = scan_bank("test")
    board = draw_board("test", "main", np.random.default_rng(0))
    tile = board.pictures[0][:16, :16].astype(np.float32)
    row = bank.ids.tolist().index(board.scans[0])
    plain = draw_scans(bank.pixels[row : row + 1], plain_placement(1))[0]
    # Room 0 is nearly black, so the green channel is the ink itself.
    assert np.abs(tile[..., 1] / 255 - (0.05 + 0.95 * plain)).max() < 0.01


def test_plain_drawing_is_centred_and_loses_no_ink():
    square = np.zeros((1, 10, 10), np.float32)
    square[0, 1:9, 1:9] = 1
    drawn = draw_scans(square, plain_placement(1))[0]
    assert np.allclose(drawn, drawn[::-1]) and np.allclose(drawn, drawn.T, atol=1e-6)
    assert abs(drawn.sum() - 14 * 14) < 1


def test_no_length_or_kind_outside_the_tables():
    rng = np.random.default_rng(0)
    for hops in (0, 10):
        with pytest.raises(DataError, match="allowed are 1 to 9"):
            sample_trail("val", "main", hops, rng)
    with pytest.raises(UnknownNameError, match="did you mean 'faint'"):
        sample_trail("val", "faintt", 1, rng)  # pyright: ignore[reportArgumentType]


def test_a_brief_trail_asks_the_same_and_tells_only_the_rooms() -> None:
    (sample,) = TrailStream("train", 4).draw(1, task="brief", hops=3)
    rooms = sample.info["rooms"]
    assert sample.steps == tuple(str(room) for room in rooms[1:])
    assert sample.answer == str(rooms[-1])
    assert sample.question == f"Take 3 hops. Which room? Start in room {rooms[0]}"


def test_a_terse_trail_keeps_the_question_and_tells_only_the_rooms() -> None:
    (sample,) = TrailStream("train", 4).draw(1, task="terse", hops=3)
    rooms = sample.info["rooms"]
    assert sample.steps == tuple(str(room) for room in rooms[1:])
    assert sample.question == f"Take 3 hops. Which room are you in? Start in room {rooms[0]}"


@pytest.mark.parametrize("hops", [1, 4])
def test_a_short_trail_leaves_its_last_room_to_the_answer(hops: int) -> None:
    (sample,) = TrailStream("train", 4).draw(1, task="short", hops=hops)
    rooms = [str(room) for room in sample.info["rooms"]]
    assert (*sample.steps, sample.answer) == tuple(rooms[1:])
    assert len(sample.steps) == hops - 1
