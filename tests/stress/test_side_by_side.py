"""Several processes train what one would, and stop together: with gloo on a CPU, each started as a launcher does."""

import os

import pytest

from tests.commands import killer

pytest.importorskip("sklearn")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line sets it before torch is imported."""
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")


def test_two_processes_train_what_one_does() -> None:
    (line,) = killer("side_by_side", "curve:2")
    assert line.startswith("curve:2: log within")


@pytest.mark.long
def test_fifty_updates_with_latents_are_those_of_one_process() -> None:
    """Latents, replay, routing, distillation and rehearsal on."""
    assert len(killer("side_by_side", "--updates", "4", "6", "50", "--", "curve:2", "curve:4")) == 2


@pytest.mark.long
def test_batches_of_all_processes_are_one_large_batch() -> None:
    assert len(killer("side_by_side", "accumulate:1", "accumulate:2", "accumulate:4")) == 3


@pytest.mark.long
def test_a_killed_process_ends_the_others_and_any_number_goes_on() -> None:
    checks = [
        "killed:2:1:at:update:6:1",  # between two updates
        "killed:2:0:before:state.pt:4:2",  # the one that writes, and that all meet at
        "killed:4:2:at:update:5:2",
        "killed:1:0:after:01-say:1:4",
    ]
    assert len(killer("side_by_side", *checks)) == len(checks)


def test_two_processes_with_a_part_of_the_state_each_train_what_one_does() -> None:
    first, second = killer("side_by_side", "--also", "shard=true", "--", "curve:2", "crossed:2:2:true")
    assert first.startswith("curve:2: log within") and second.startswith("crossed:2:2:true: log within")


@pytest.mark.long
def test_fifty_updates_of_shards_are_those_of_one_process() -> None:
    asked = ["--updates", "4", "6", "50", "--also", "shard=true", "gradient_checkpointing=true", "--", "curve:2"]
    assert len(killer("side_by_side", *asked)) == 1


@pytest.mark.long
def test_shards_of_an_adapter_are_trained_as_one_process_does() -> None:
    adapter = [
        "init=tiny/base",
        "trainable=lora",
        "model.lora.dropout=0",
        "optimizer.lr=1e-4",
        'stages.0={"name": "look", "updates": 0}',
    ]
    asked = [
        "--updates",
        "2",
        "4",
        "4",
        "--set",
        *adapter,
        "--also",
        "shard=true",
        "--",
        "curve:2",
        "crossed:2:1:false",
    ]
    assert len(killer("side_by_side", *asked)) == 2


@pytest.mark.long
def test_a_state_serves_whole_weights_and_shards_on_any_number_of_processes() -> None:
    checks = ["crossed:2:1:false", "crossed:2:2:false", "crossed:2:4:true", "crossed:1:2:true"]
    checks.append("killed:2:1:at:update:6:1")
    assert len(killer("side_by_side", "--also", "shard=true", "--", *checks)) == len(checks)
    assert len(killer("side_by_side", "crossed:2:2:true")) == 1


@pytest.mark.long
def test_batches_of_shards_are_one_large_batch() -> None:
    assert len(killer("side_by_side", "--also", "shard=true", "--", "accumulate:1", "accumulate:2")) == 2


@pytest.mark.long
def test_data_that_one_process_cannot_read_are_told_once() -> None:
    assert len(killer("side_by_side", "damaged:2")) == 1
