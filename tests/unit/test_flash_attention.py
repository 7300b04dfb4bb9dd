"""Flash kernels in the tower and in the language model (lrkit/model/flash.py), by a reference that runs on a CPU: who
is asked for what, and that answers, saliency, losses and gradients are those of SDPA. tests/gpu runs the real ones."""

from typing import Any

import pytest
import torch

from lrkit.contract.attention import Attention
from lrkit.model.flash import Packing
from lrkit.model.generate import generate
from lrkit.model.saliency import visible_mask
from tests.flash_reference import Calls, stand_in
from tests.lab import PROMPTS, rich_reasoner, settings
from tests.tiny import batch
from tests.unit.test_recorded import LIMITS, VARIANTS, same, taught

BOTH = Attention(vision="flash_attention_2", text="flash_attention_2")
BATCHES = [batch(PROMPTS), batch(PROMPTS, "left", extra_pad=2), batch(PROMPTS[:1])]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return stand_in(monkeypatch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_those_of_sdpa(variant: str, calls: Calls) -> None:
    """Padding on either side, samples that stop early, empty replay slots, routed tokens with their own keys."""
    reasoner = taught(variant)
    want = [generate(reasoner, prompts, "latent", LIMITS) for prompts in BATCHES]
    assert not calls.seen
    reasoner.backbone.use_attention(BOTH)
    for prompts, answers in zip(BATCHES, want, strict=True):
        same(generate(reasoner, prompts, "latent", LIMITS), answers)
    assert {(causal, packed) for _, causal, packed in calls.seen} == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize(
    ("asked", "text", "tower"),
    [
        (Attention(text="flash_attention_3"), "flash_attention_3", None),
        (Attention(vision="flash_attention_4"), None, "flash_attention_4"),
        (Attention(vision="flash_attention_2", text="flash_attention_3"), "flash_attention_3", "flash_attention_2"),
    ],
)
@torch.no_grad()
def test_tower_and_text_use_what_was_asked(asked: Attention, text: str | None, tower: str | None, calls: Calls) -> None:
    """The tower's attention looks both ways, the language model's is causal."""
    reasoner = rich_reasoner(settings(replay={"num_tokens": 2}))
    want = reasoner.prefill(batch(PROMPTS)).saliency_BV
    reasoner.backbone.use_attention(asked)
    got = reasoner.prefill(batch(PROMPTS)).saliency_BV
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert {name for name, causal, _ in calls.seen if causal} == ({text} if text else set())
    assert {name for name, causal, _ in calls.seen if not causal} == ({tower} if tower else set())
    assert sum(causal for _, causal, _ in calls.seen) == (reasoner.backbone.num_layers if text else 0)
    calls.seen.clear()
    reasoner.backbone.use_attention(Attention())
    reasoner.prefill(batch(PROMPTS))
    assert not calls.seen


def test_losses_and_gradients_are_those_of_sdpa(calls: Calls) -> None:
    made = batch(PROMPTS, num_latents=[2, 1, 3, 0], speech=[[9, 10, 1], [11, 1], [12, 13, 14, 1], [15, 1]])
    chosen = settings(replay={"num_tokens": 3}, routing={"depth": 1, "alpha": 4, "layers": "all"})
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    for asked in (Attention(), BOTH):
        reasoner = rich_reasoner(chosen, trainable="full")
        reasoner.backbone.use_attention(asked)
        loss = reasoner(made).total
        loss.backward()
        grads = {name: p.grad for name, p in reasoner.named_parameters() if p.grad is not None}
        found.append((float(loss.detach()), grads))
    (loss, want), (other, got) = found
    assert calls.seen and other == pytest.approx(loss, rel=1e-5) and got.keys() == want.keys()
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_what_is_real_is_read_from_the_mask() -> None:
    """Three earlier keys and a chunk of three; the chunk's last token sees itself, also as padding."""
    real_BN = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]).bool()
    at = Packing.of(visible_mask(real_BN, 3))
    assert at.key_ends.tolist() == [0, 4, 8, 10] and at.query_ends.tolist() == [0, 2, 4, 6]
    assert at.query_Q.tolist() == [0, 2, 3, 5, 7, 8] and (at.most_queries, at.most_keys) == (2, 4)
    assert at.key_K.tolist() == [0, 1, 3, 5, 7, 8, 9, 11, 16, 17]


def test_all_layers_of_a_chunk_share_one_packing(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packing waits for the device."""
    made: list[Any] = []
    of = Packing.of
    monkeypatch.setattr(Packing, "of", lambda mask: made.append(mask.shape) or of(mask))
    reasoner = rich_reasoner(settings(replay={"num_tokens": 2}))
    reasoner.backbone.use_attention(BOTH)
    with torch.no_grad():
        reasoner.prefill(batch(PROMPTS))
    assert len(made) == 1
