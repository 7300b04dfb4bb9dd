"""The curriculum: what is drawn, how much of it is latent, and that draws can be continued exactly."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from lrkit.contract.settings import ThinkSettings
from lrkit.data.collate import TrainBatch
from lrkit.data.sources import choose
from lrkit.errors import ConfigError, DataError
from lrkit.train.curriculum import Curriculum, num_latents, num_updates, rehearsed
from lrkit.train.fresh import fresh_processor
from lrkit.train.optim import is_hidden_matrix, learning_rate
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.share import Share, refuse_share
from lrkit.train.stage import OptimizerConfig, Stage

pytest.importorskip("sklearn")

SAY = {"name": "say", "updates": 1, "lengths": [1, 2, 3]}
THINK = {"name": "think", "updates": 1, "lengths": [1, 2, 3], "length_weights": [0.2, 0.2, 0.6], "latent_steps": "all"}


def recipe(*stages, **changes) -> Recipe:
    base = {"name": "t", "init": "somewhere", "batch_size": 4, "stages": list(stages), **changes}
    return load_recipe(base)


def curriculum(made: Recipe, share: Share | None = None) -> Curriculum:
    return Curriculum(made, made.data.open(made.seed, made.stages), fresh_processor(), ThinkSettings(), share)


def same(first: TrainBatch, second: TrainBatch) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_an_equal_batch_needs_no_padding():
    draws = curriculum(recipe({**SAY, "batches": "equal", "tasks": {"trail": 1.0, "read": 1.0}}))
    shapes = set()
    for _ in range(12):
        batch = draws.batch(0)
        assert isinstance(batch, TrainBatch)
        assert batch.prompt_mask.all() and batch.speech_mask.all()
        shapes.add(batch.speech_ids.shape[1])
    assert len(shapes) >= 3  # several lengths and both tasks were drawn


def test_a_mixed_batch_holds_several_lengths_on_boards_of_one_kind():
    draws = curriculum(recipe(SAY, batch_size=12, data={"kind": "trail", "boards": {"main": 1.0, "wide": 1.0}}))
    kinds = set()
    for _ in range(6):
        samples = draws.draw(0).samples
        assert len({len(sample.steps) for sample in samples}) > 1
        assert len({sample.info["kind"] for sample in samples}) == 1
        kinds.add(samples[0].info["kind"])
    assert kinds == {"main", "wide"}


def test_lengths_are_drawn_by_their_weights():
    draws = curriculum(recipe(THINK, batch_size=1))
    counts = Counter(len(draws.draw(0).samples[0].steps) for _ in range(600))
    assert abs(counts[3] / 600 - 0.6) < 0.06 and counts[1] > 60 and counts[2] > 60


def test_rehearsal_draws_whole_batches_as_an_earlier_stage():
    made = recipe(SAY, {**THINK, "rehearsal_fraction": 0.3}, batch_size=1)
    draws = curriculum(made)
    counts = Counter(draws.draw(1).stage.name for _ in range(600))
    assert abs(counts["say"] / 600 - 0.3) < 0.06
    spoken = [draws.batch(1) for _ in range(20)]
    assert {bool(batch.num_latents.max()) for batch in spoken} == {True, False}
    # What is rehearsed as words is not asked whether to think: the latent token is masked there.
    assert all(bool(batch.may_think.all()) == bool(batch.num_latents.max()) for batch in spoken)


def test_rehearsal_can_name_its_stages():
    made = recipe(SAY, {**SAY, "name": "more"}, {**THINK, "rehearsal_fraction": 0.3, "rehearse": ["say"]})
    assert [stage.name for stage in rehearsed(made.stages, 2)] == ["say"]


def test_a_sample_never_gets_more_latents_than_steps_or_than_the_limit():
    everything, two = Stage(name="a", updates=1, latent_steps="all"), Stage(name="b", updates=1, latent_steps=2)
    assert [num_latents(n, everything, 4) for n in (0, 1, 4, 7)] == [0, 1, 4, 4]
    assert [num_latents(n, two, 4) for n in (0, 1, 2, 7)] == [0, 1, 2, 2]
    assert num_latents(3, Stage(name="c", updates=1), 4) == 0


def test_replaced_steps_are_not_spoken():
    made = recipe({**SAY, "lengths": [3]}, {**SAY, "name": "two", "lengths": [3], "latent_steps": 2})
    draws, processor = curriculum(made), fresh_processor()
    say, two = draws.batch(0), draws.batch(1)
    assert processor.decode(say.speech_ids[0].tolist()).count("Step") == 3
    assert processor.decode(two.speech_ids[0].tolist()).startswith("Step 3")


def test_reading_learns_digits_but_not_the_random_order_of_rooms():
    batch = curriculum(recipe({"name": "read", "updates": 1, "tasks": {"read": 1.0}})).batch(0)
    # "Answer:" room digit room digit ... end
    assert batch.speech_weights[0, :5].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_draws_continue_exactly_from_a_saved_state():
    made = recipe(SAY, {**THINK, "rehearsal_fraction": 0.3})
    first = curriculum(made)
    for _ in range(3):
        first.batch(1)
    state = json.loads(json.dumps(first.state()))
    expected = [first.batch(1) for _ in range(4)]
    second = curriculum(made)
    second.load_state(state)
    assert all(same(second.batch(1), batch) for batch in expected)


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (3, 1), (4, 2), (2, 6)])
def test_processes_share_the_samples_of_one(processes, accumulate):
    made = recipe(SAY, {**THINK, "rehearsal_fraction": 0.5}, batch_size=3, accumulate=accumulate)
    alone = curriculum(made, Share(accumulate=accumulate))
    shares = [Share(process, processes, accumulate) for process in range(processes)]
    several = [curriculum(made, share) for share in shares]
    for _ in range(3):
        whole = Counter(s.question for _ in range(accumulate) for s in alone.draw(1).samples)
        parts = [one.draw(1) for one in several for _ in range(shares[0].rounds)]
        assert Counter(sample.question for part in parts for sample in part.samples) == whole
        assert not any(part.silent for part in parts)
        assert all(one.state() == alone.state() for one in several)


def test_a_process_without_a_sample_runs_and_counts_nothing():
    made = recipe(THINK, batch_size=1)
    batch = curriculum(made, Share(1, 2)).batch(0)
    assert isinstance(batch, TrainBatch) and len(batch.input_ids) == 1
    assert not batch.speech_weights.any() and not batch.num_latents.any()


def test_more_processes_than_samples_are_refused():
    made = recipe({**SAY, "batch_size": 3}, THINK, batch_size=6, accumulate=2)
    for processes in (1, 2, 3, 4, 6):
        refuse_share(made, processes)
    with pytest.raises(ConfigError, match=r"8 processes cannot share .* 2 x 3 .* say.* start 6, or raise"):
        refuse_share(made, 8)


def test_seeds_draw_different_batches_and_equal_seeds_equal_ones():
    assert same(curriculum(recipe(SAY)).batch(0), curriculum(recipe(SAY)).batch(0))
    assert not same(curriculum(recipe(SAY, seed=1)).batch(0), curriculum(recipe(SAY)).batch(0))


def test_validation_never_shows_training_scans():
    made = recipe(THINK)
    source = made.data.open(0, made.stages)
    held_out = source.validation(made.stages[0], 5)
    assert sorted(held_out) == [1, 2, 3] and all(len(s.steps) == n for n, part in held_out.items() for s in part)
    again = source.validation(made.stages[0], 5)
    assert [s.question for s in held_out[2]] == [s.question for s in again[2]]
    assert {s.info["split"] for part in held_out.values() for s in part} == {"val"}


def jsonl(tmp_path, lengths, batches="equal"):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": f"q{i}", "steps": [f"s{j}" for j in range(n)], "answer": "1"}
        for i, n in enumerate(lengths)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return recipe({"name": "say", "epochs": 2.0, "batches": batches}, data={"kind": "jsonl", "train": str(path)})


def test_jsonl_passes_over_every_line_before_any_line_comes_twice(tmp_path):
    made = jsonl(tmp_path, [2] * 6)
    source, rng = made.data.open(0, made.stages), np.random.default_rng(0)
    epochs = [[s.question for _ in range(2) for s in source.draw(made.stages[0], 3, rng)] for _ in range(3)]
    assert all(sorted(epoch) == [f"q{i}" for i in range(6)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # in another order each time


def test_jsonl_batches_hold_one_length_and_never_a_line_twice(tmp_path):
    made = jsonl(tmp_path, [1, 1, 1, 1, 1, 3, 3])
    source, rng = made.data.open(0, made.stages), np.random.default_rng(0)
    drawn = [source.draw(made.stages[0], 4, rng) for _ in range(30)]
    assert {len(s.steps) for batch in drawn for s in batch} == {1, 3}
    assert all(len({len(s.steps) for s in batch}) == 1 for batch in drawn)
    assert {len(batch) for batch in drawn if len(batch[0].steps) == 3} == {2}


@pytest.mark.parametrize("batches", ["equal", "mixed"])
def test_jsonl_continues_from_a_saved_state(tmp_path, batches):
    made = jsonl(tmp_path, [1] * 5 + [2] * 4, batches)
    source, rng = made.data.open(0, made.stages), np.random.default_rng(0)
    for _ in range(5):
        source.draw(made.stages[0], 2, rng)
    other, other_rng = made.data.open(0, made.stages), np.random.default_rng(9)
    other.load_state(source.state())
    other_rng.bit_generator.state = rng.bit_generator.state
    for _ in range(8):
        assert [s.question for s in source.draw(made.stages[0], 2, rng)] == [
            s.question for s in other.draw(made.stages[0], 2, other_rng)
        ]


def test_a_length_that_the_file_lacks_is_named_with_those_it_has(tmp_path):
    made = jsonl(tmp_path, [1, 2])
    bad = load_recipe({**made.model_dump(mode="json", exclude_unset=True)}, ["stages.0.lengths=[2, 5]"])
    with pytest.raises(DataError, match=r"stage say draws chains of 5 steps.*only lengths \[1, 2\]"):
        bad.data.open(bad.seed, bad.stages)


def test_epochs_become_updates_rounded_up():
    stage = Stage(name="a", epochs=1.5)
    assert num_updates(stage, 100, 8) == 19
    assert num_updates(Stage(name="a", updates=7), None, 8) == 7


def test_choose_follows_weights_and_never_takes_weight_zero():
    rng = np.random.default_rng(0)
    counts = Counter(choose({"a": 0.0, "b": 1.0, "c": 3.0, "d": 0.0}, rng) for _ in range(2000))
    assert set(counts) == {"b", "c"} and abs(counts["c"] / 2000 - 0.75) < 0.04


def test_learning_rate_warms_up_and_ends_at_its_final_fraction():
    config = OptimizerConfig(lr=1.0, warmup=10, schedule="cosine", final_fraction=0.1)
    rates = [learning_rate(config, update, 100) for update in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1) and rates[10:] == sorted(rates[10:], reverse=True)
    linear = OptimizerConfig(lr=1.0, warmup=0, schedule="linear", final_fraction=0.0)
    assert learning_rate(linear, 50, 101) == pytest.approx(0.5)


def test_muon_takes_matrices_between_hidden_states_alone():
    matrix = torch.zeros(4, 4)
    assert is_hidden_matrix("model.layers.0.mlp.up_proj.weight", matrix)
    assert is_hidden_matrix("model.layers.0.q_proj.lora_A.default.weight", matrix)
    for name, weight in (
        ("model.embed_tokens.weight", matrix),
        ("lm_head.weight", matrix),
        ("readout_tables.token_rooms", matrix),
        ("routers.1.router.weight", torch.zeros(1, 4)),
        ("model.norm.weight", torch.zeros(4)),
        ("visual.patch_embed.proj.weight", torch.zeros(4, 3, 2, 4, 4)),
    ):
        assert not is_hidden_matrix(name, weight), name
