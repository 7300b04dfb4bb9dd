"""The flash kernels that are installed, on a GPU: `pytest -m gpu`. Answers, saliency and losses beside those of SDPA in
the same number type. tests/unit/test_flash_attention.py runs the same paths by a reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lrkit.contract.attention import NEEDS, Attention, problems, read_attention
from lrkit.data.trail import trail_set
from lrkit.model.generate import generate
from lrkit.runtime.sdk import Reasoner
from tests.lab import PROMPTS, rich_reasoner, settings
from tests.tiny import batch
from tests.unit.test_recorded import LIMITS, VARIANTS, taught

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


@pytest.fixture(params=list(NEEDS))
def kernel(request: pytest.FixtureRequest) -> str:
    asked = read_attention(request.param)
    if missing := next(problems(asked, "cuda", "bfloat16"), None):
        pytest.skip(missing)
    return request.param


def on_gpu(made: Any) -> Any:
    return replace(
        made, **{name: value.to("cuda") for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
    )


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_saliency_is_that_of_sdpa(kernel: str, side: str) -> None:
    reasoner = rich_reasoner(settings(replay={"num_tokens": 2}), dtype=torch.bfloat16).to("cuda")
    made = on_gpu(batch(PROMPTS, side, extra_pad=3))
    want = reasoner.prefill(made).saliency_BV
    reasoner.backbone.use_attention(read_attention(kernel))
    torch.testing.assert_close(reasoner.prefill(made).saliency_BV, want, rtol=0, atol=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_chunk_runs(kernel: str, variant: str) -> None:
    """Padding, empty slots, routed tokens. Which words come is left open: rounding may change a choice."""
    reasoner = taught(variant).to(torch.bfloat16).to("cuda")
    reasoner.backbone.use_attention(read_attention(kernel))
    for made in (batch(PROMPTS), batch(PROMPTS, "left", extra_pad=2), batch(PROMPTS[:1])):
        for answer in generate(reasoner, on_gpu(made), "latent", LIMITS):
            assert answer.token_ids or answer.finished


def test_a_step_of_training(kernel: str) -> None:
    made = on_gpu(batch(PROMPTS, num_latents=[2, 1, 3, 0], speech=[[9, 10, 1], [11, 1], [12, 13, 14, 1], [15, 1]]))
    losses: list[float] = []
    for asked in (Attention(), read_attention(kernel)):
        reasoner = rich_reasoner(settings(replay={"num_tokens": 3}), trainable="full").to("cuda")
        reasoner.backbone.use_attention(asked)
        with torch.autocast("cuda", torch.bfloat16):
            loss = reasoner(made).total
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in reasoner.parameters() if p.grad is not None)
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_shipped_model(kernel: str) -> None:
    """It must be right about as often as with SDPA in bfloat16."""
    right: list[int] = []
    for name in ("sdpa", kernel):
        reasoner = Reasoner.from_checkpoint("tiny", "cuda", "bfloat16", attention=name)
        samples = trail_set("main", "test", 60)
        answers = reasoner.ask_batch([(sample.images, sample.question) for sample in samples])
        right.append(sum(answer.answer == sample.answer for answer, sample in zip(answers, samples, strict=True)))
    assert abs(right[0] - right[1]) <= 3
