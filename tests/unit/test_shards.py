"""`shard: true` in one process; with several: tests/stress/test_side_by_side.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrkit.errors import ConfigError
from lrkit.resources import STATE_FILE
from lrkit.train import parts
from lrkit.train.accelerator import make_accelerator
from lrkit.train.metrics import read_metrics
from lrkit.train.recipe import load_recipe
from lrkit.train.replicas import Replicas
from lrkit.train.run import train
from lrkit.train.shards import Shards, hold
from lrkit.train.stage import OptimizerConfig
from lrkit.train.stop_signals import TrainingInterrupted

pytest.importorskip("sklearn")

SMALL = [f"stages.{stage}.updates=2" for stage in range(3)]
KEPT = ["eval.show=0", "eval.samples=2", "eval.every=1", "keep_best=1", "save_every=1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = sorted(folder.rglob("*.safetensors"))
    assert len(found) > 6, "three stages, and their best"
    return {f"{file.relative_to(folder)}/{name}": w for file in found for name, w in load_file(file).items()}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def test_one_process_trains_the_same_with_and_without(tmp_path: Path) -> None:
    plain, sharded = (load_recipe("smoke", [*SMALL, *KEPT, f"shard={shard}"]) for shard in ("false", "true"))
    train(plain, tmp_path / "plain", quiet=True)
    with pytest.raises(TrainingInterrupted):
        train(sharded, tmp_path / "run", quiet=True, stop=lambda: len(losses(tmp_path / "run")) > 4)
    state = torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)
    assert state["optimizers"][0]["state"], "stopped within a stage"
    train(plain, tmp_path / "run", quiet=True, resume=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    want, got = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert want.keys() == got.keys()
    assert max(float((want[name] - got[name]).abs().max()) for name in want) < 1e-5


def test_bfloat16_weights_keep_what_is_less_than_their_last_digit() -> None:
    """An update of 1e-5 is lost in a bfloat16 weight of 1; a hundred of them are not."""
    accelerator = make_accelerator(load_recipe("smoke", ["precision=bfloat16"]))
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    weight = model.weight
    shards = Shards(accelerator, model, OptimizerConfig(lr=1e-5, weight_decay=0.0), model)
    assert weight.dtype == torch.bfloat16
    for _ in range(100):
        with accelerator.accumulate(shards.model):
            shards.backward(shards.model(torch.ones(1, 3)).sum())
            assert weight.grad is None, "only the sum is kept"
            shards.clip(1.0)
            shards.step()
    with shards.whole():
        assert weight.dtype == torch.float32
        assert torch.allclose(weight, torch.tensor(1.0 - 1e-3), atol=1e-5)
        weight.data.fill_(0.5)  # as a state that is restored
    assert weight.dtype == torch.bfloat16 and weight.tolist() == [[0.5, 0.5, 0.5]]
    shards.close()
    assert weight.dtype == torch.float32 and not shards.optimizers


def test_what_has_no_gradient_is_left_alone_as_without_shards() -> None:
    """A gradient of zeros would move a weight: AdamW decays it, and goes on with its running mean."""
    for shard in (False, True):
        accelerator = make_accelerator(load_recipe("smoke"))
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        before = model[1].weight.detach().clone()
        held = hold(accelerator, model, OptimizerConfig(weight_decay=0.5), model, shard)
        assert isinstance(held, Shards if shard else Replicas)
        held.backward(model[0](torch.ones(1, 2)).sum())
        held.step()
        assert torch.equal(model[1].weight, before)
        assert len(held.optimizer_states()[0]["state"]) == 2


def test_large_models_are_exchanged_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_AT_ONCE", 5)
    made = [parts.Part.of(nn.Parameter(torch.full((size,), float(size))), 0, 1, None) for size in (2, 3, 9, 1)]
    for part in made:
        part.whole.grad = torch.full_like(part.whole, 2.0 * len(part.whole))
    for part, total in parts.sum_parts(made, 1):
        assert total.tolist() == [2.0 * len(part.whole)] * len(part.whole) and part.whole.grad is None
    joined = list(parts.join_parts(made, 1, lambda part: part.own.data, torch.float32))
    assert [len(whole) for _, whole in joined] == [2, 3, 9, 1]
    assert all(torch.equal(part.whole, whole) for part, whole in joined)


def test_muon_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"muon \(stage say\) updates whole matrices; set optimizer.kind: adamw"):
        load_recipe("smoke", ["shard=true", "stages.1.optimizer.kind=muon"])
