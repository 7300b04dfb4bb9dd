"""Checkpoints on a GPU: `pytest -m gpu`. Recorded steps against plain ones, and the shipped model against the CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lrkit.data.trail import trail_set
from lrkit.model.generate import generate
from lrkit.model.recorded import StepRecorder
from lrkit.runtime.sdk import Reasoner
from tests.lab import PROMPTS
from tests.tiny import batch
from tests.unit.test_recorded import LIMITS, VARIANTS, same, taught

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]
SAMPLES = trail_set("main", "test", 12)


@pytest.mark.parametrize("mode", ["latent", "cot"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_steps_say_the_same(variant: str, mode: Any) -> None:
    reasoner = taught(variant).to("cuda")
    recorder = StepRecorder(reasoner)
    for _ in range(2):  # recorded, then launched
        for prompts in (batch(PROMPTS), *(batch([one]) for one in PROMPTS)):
            moved = replace(
                prompts,
                **{name: value.to("cuda") for name, value in vars(prompts).items() if isinstance(value, torch.Tensor)},
            )
            want = generate(reasoner, moved, mode, LIMITS)
            same(generate(reasoner, moved, mode, LIMITS, recorder=recorder), want)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_shipped_model_answers_as_on_the_cpu(cuda_graphs: bool) -> None:
    on_cpu = Reasoner.from_checkpoint("tiny")
    on_gpu = Reasoner.from_checkpoint("tiny", "cuda", cuda_graphs=cuda_graphs)
    for mode in ("latent", "cot", "direct"):
        for sample in SAMPLES:
            want = on_cpu.baseline(mode).ask(sample.images, sample.question, mode)
            got = on_gpu.baseline(mode).ask(sample.images, sample.question, mode)
            assert (got.text, got.ar_steps, got.latent_steps) == (want.text, want.ar_steps, want.latent_steps)


def test_baselines_keep_number_type_and_graphs() -> None:
    """Once words were asked in the type on disk, whatever the latents were asked in."""
    engine: Any = Reasoner.from_checkpoint("tiny", "cuda", "bfloat16", cuda_graphs=True).baseline("cot").engine
    assert (engine.dtype, engine.cuda_graphs, engine.device) == ("bfloat16", True, "cuda")
