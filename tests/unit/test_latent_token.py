"""The latent token: its own rows, and how a hidden state becomes an input (method section 1)."""

import math

import torch

from lrkit.contract.settings import ThinkSettings
from lrkit.model.latent_token import LatentToken
from tests.lab import rich_reasoner, settings
from tests.tiny import LATENT, tiny_reasoner

ROWS = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
HIDDEN = 30 * torch.randn(3, 6, generator=torch.Generator().manual_seed(2))


def test_a_latent_has_the_mean_norm_of_the_embeddings() -> None:
    fed = LatentToken(4, ROWS, None, ThinkSettings(latent_scale="embedding")).as_input(HIDDEN)
    torch.testing.assert_close(fed.norm(dim=1), ROWS.norm(dim=1).mean().expand(3))
    torch.testing.assert_close(fed / fed.norm(dim=1, keepdim=True), HIDDEN / HIDDEN.norm(dim=1, keepdim=True))


def test_scale_none_is_the_hidden_state_itself() -> None:
    assert LatentToken(4, ROWS, None, ThinkSettings(latent_scale="none")).as_input(HIDDEN) is HIDDEN


def test_learned_scale_starts_at_mean_norm_over_root_width_and_learns() -> None:
    token = LatentToken(4, ROWS, None, ThinkSettings(latent_scale="learned"))
    torch.testing.assert_close(token.scale.detach(), ROWS.norm(dim=1).mean() / math.sqrt(6))
    token.as_input(HIDDEN).sum().backward()
    assert token.scale.grad is not None and bool(token.scale.grad != 0)


def test_a_zero_hidden_state_gives_no_nan() -> None:
    hidden = torch.zeros(1, 6, requires_grad=True)
    fed = LatentToken(4, ROWS, None, ThinkSettings(latent_scale="embedding")).as_input(hidden)
    fed.sum().backward()
    assert bool(fed.isfinite().all()) and hidden.grad is not None and bool(hidden.grad.isfinite().all())


def test_only_the_latent_column_of_the_logits_is_replaced() -> None:
    token = LatentToken(4, ROWS, HEAD, ThinkSettings(latent_scale="none"))
    with torch.no_grad():
        token.head_row_D.add_(1.0)
    plain = HIDDEN @ HEAD.T
    got = token.logits(plain.clone(), HIDDEN)
    others = [i for i in range(10) if i != 4]
    assert torch.equal(got[:, others], plain[:, others])
    torch.testing.assert_close(got[:, 4], HIDDEN @ (HEAD[4] + 1))


def test_an_untied_head_row_starts_from_the_head_not_from_the_embedding() -> None:
    """It once started from the embedding matrix, so that a fresh reasoner did not equal its backbone."""
    reasoner = tiny_reasoner(settings(), tied=False)
    assert torch.equal(reasoner.latent.head_row_D, reasoner.model.lm_head.weight[LATENT])
    assert torch.equal(reasoner.latent.embedding_row_D, reasoner.backbone.embedding_rows()[LATENT])
    assert not torch.equal(reasoner.latent.head_row_D, reasoner.latent.embedding_row_D)


def test_a_tied_row_is_one_parameter() -> None:
    reasoner = rich_reasoner(settings())
    assert reasoner.latent.head_row_D is reasoner.latent.embedding_row_D
