"""Where CUDA graphs may be asked for, and what a report makes of runs with and without. Without a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import UserError
from lrkit.model.reasoner import LatentReasoner
from lrkit.profile.measure.cases import Model, ModelChoice, make_cases
from lrkit.profile.measure.shape_model import open_shape
from lrkit.profile.measure.suite import load_suite
from lrkit.profile.pages.markdown import how_it_runs
from lrkit.profile.report import headlines
from lrkit.runtime.engines.torch.engine import TorchEngine
from lrkit.runtime.sdk import Reasoner
from tests.bundles import torch_reasoner


def test_a_cpu_has_none() -> None:
    with pytest.raises(UserError, match="CUDA graphs are for GPUs, and the device is cpu"):
        Reasoner.from_checkpoint("tiny", cuda_graphs=True)


def test_runs_about_them_are_skipped_with_the_reason_where_there_is_no_gpu() -> None:
    suite = load_suite("gpu-shape", ["forced.cot_tokens=3"])
    model = Model(ModelChoice("x"), "x", torch_reasoner(), 0.0, None, random_weights=True)
    made = make_cases([model], suite)
    assert {item["run"]: item["reason"] for item in made.skipped} == {
        "latent-eager": "CUDA graphs are for a GPU", "cot-eager": "CUDA graphs are for a GPU",
    }  # fmt: skip
    assert [case.id for case in made.cases] == ["latent", "no-replay", "routing", "cot", "direct"]


def test_the_headline_tells_the_first_run_in_words() -> None:
    """A variant in words, such as one without CUDA graphs, once had a headline of its own that named nothing."""

    def pair(run: str, ratio: float) -> dict[str, Any]:
        value = {"value": ratio}
        return {
            "run": run, "reference": "latent", "mode": "cot", "reference_mode": "latent", "ar_steps_ratio": value,
            "time_ratio": value, "latency_ratio": value, "accuracy_difference": None,
        }  # fmt: skip

    told = headlines({"models": [{}], "pairs": [pair("cot", 5.0), pair("cot-eager", 19.0)]})
    assert len(told) == 1 and "5.0x faster" in told[0]


def test_baselines_keep_the_number_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once words were asked in the type on disk, whatever the latents were asked in."""
    asked: list[tuple[object, ...]] = []
    engine: Any = Reasoner.from_checkpoint("tiny", dtype="bfloat16").engine
    found = engine.baseline("cot")
    assert engine.dtype == found.dtype == "bfloat16"
    assert isinstance(found.reasoner, LatentReasoner) and found.reasoner is not engine.reasoner

    def loaded(folder: Path, *options: object) -> None:
        asked.append(options)

    monkeypatch.setattr(TorchEngine, "from_checkpoint", loaded)
    engine.baseline("cot")
    assert asked == [("cpu", "bfloat16", False, engine._attention)]


@pytest.mark.parametrize("device, said", [("cuda", "torch sees no GPU here"), ("tpu?", "unknown device")])
def test_a_shape_says_so_before_it_is_built(device: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there once ended in a traceback of torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=said):
        open_shape("qwen2-vl-2b", ReasonerSettings(), ModelChoice("qwen2-vl-2b", device))
    with pytest.raises(UserError, match="CUDA graphs are for GPUs"):
        open_shape("qwen2-vl-2b", ReasonerSettings(), ModelChoice("qwen2-vl-2b", "cpu", cuda_graphs=True))


def test_a_report_says_that_steps_were_recorded() -> None:
    model = {"engine": "torch", "precision": "bfloat16", "device": "cuda", "cuda_graphs": True}
    assert how_it_runs(model) == "torch, bfloat16, cuda, CUDA graphs"
    assert how_it_runs({**model, "cuda_graphs": None}) == "torch, bfloat16, cuda"
