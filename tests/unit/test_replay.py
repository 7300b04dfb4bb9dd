"""Visual replay (method section 3): selection, weights, formation, and what happens when nothing is left."""

import pytest
import torch
from torch import Tensor

from lrkit.contract.settings import ReplaySettings
from lrkit.model.replay import replay, select, weigh

WEIGHTINGS = ("softmax", "relative", "none")


def scores(seed: int = 0, batch: int = 1, visual: int = 10) -> Tensor:
    return torch.rand(batch, visual, generator=torch.Generator().manual_seed(seed))


def embeddings(visual: int = 10, width: int = 4) -> Tensor:
    return torch.randn(1, visual, width, generator=torch.Generator().manual_seed(7))


def test_selection_is_the_top_k_in_prompt_order() -> None:
    score = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2]])
    index, valid = select(score, torch.ones(1, 5, dtype=torch.bool), 3)
    assert index.tolist() == [[1, 2, 3]] and bool(valid.all())


def test_selection_passes_over_visited_tokens_and_padding() -> None:
    score = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2]])
    index, valid = select(score, torch.tensor([[True, False, True, False, True]]), 2)
    assert index[valid].tolist() == [2, 4]


def test_ties_go_to_the_lower_index() -> None:
    index, _ = select(torch.full((1, 6), 0.5), torch.ones(1, 6, dtype=torch.bool), 3)
    assert index.tolist() == [[0, 1, 2]]


def test_k_above_the_number_of_visual_tokens_takes_them_all() -> None:
    index, valid = select(scores(), torch.ones(1, 10, dtype=torch.bool), 500)
    assert index.tolist() == [list(range(10))] and bool(valid.all())


@pytest.mark.parametrize("formation", ["tokens", "soft_mix"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_replaying_past_the_last_token_gives_masked_slots_never_zero_vectors_or_nan(
    weighting: str, formation: str
) -> None:
    """The release inserts zero vectors at the fourth replay of a small image and NaN at the fifth."""
    chosen = ReplaySettings(num_tokens=4, weighting=weighting, formation=formation)  # pyright: ignore
    visual, free = embeddings(), torch.ones(1, 10, dtype=torch.bool)
    seen: list[int] = []
    for step in range(5):
        found = replay(chosen, scores(step), visual, free)
        free = free & ~found.selected_BV
        seen += found.index_BK[found.index_BK >= 0].tolist()
        assert bool(found.tokens_BRE.isfinite().all()) and bool(found.weight_BK.isfinite().all())
        assert bool((found.tokens_BRE.norm(dim=-1)[found.valid_BR] > 0).all())
        left = [4, 4, 2, 0, 0][step]
        assert int((found.index_BK >= 0).sum()) == left == int(found.selected_BV.sum())
        assert int(found.valid_BR.sum()) == (min(left, 1) if formation == "soft_mix" else left)
    assert sorted(seen) == list(range(10))


def test_no_slot_is_empty_in_every_sample() -> None:
    """Once a chunk kept all K slots when a tenth of them held a token, and the model computed the empty ones too."""
    free = torch.zeros(2, 10, dtype=torch.bool)
    free[0, :2] = free[1, 5] = True
    index, valid = select(scores(batch=2), free, 8)
    assert index.shape == (2, 2) and valid.tolist() == [[True, True], [True, False]]
    assert select(scores(batch=2), free & False, 8)[0].shape == (2, 0)


def test_softmax_weights_are_eq_6_over_the_real_slots() -> None:
    score = torch.tensor([[0.3, 0.1, 0.2, 9.0]])
    weight = weigh(score, torch.tensor([[True, True, True, False]]), "softmax")
    torch.testing.assert_close(weight, torch.cat([score[:, :3].softmax(1), torch.zeros(1, 1)], 1))


def test_relative_weights_average_one_over_the_real_slots() -> None:
    weight = weigh(torch.tensor([[0.3, 0.1, 0.2, 9.0]]), torch.tensor([[True, True, True, False]]), "relative")
    torch.testing.assert_close(weight, torch.tensor([[1.5, 0.5, 1.0, 0.0]]))


def test_weight_none_leaves_embeddings_as_they_are() -> None:
    visual = embeddings()
    found = replay(ReplaySettings(num_tokens=3, weighting="none"), scores(), visual, torch.ones(1, 10) > 0)
    assert torch.equal(found.tokens_BRE[0], visual[0, found.index_BK[0]])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_soft_mix_is_the_normalised_weighted_sum(weighting: str) -> None:
    visual, score = embeddings(), scores()
    free = torch.ones(1, 10, dtype=torch.bool)
    tokens = replay(ReplaySettings(num_tokens=3, weighting=weighting), score, visual, free)  # pyright: ignore
    mixed = replay(ReplaySettings(num_tokens=3, weighting=weighting, formation="soft_mix"), score, visual, free)  # pyright: ignore
    want = tokens.tokens_BRE.sum(1) / tokens.weight_BK.sum()
    torch.testing.assert_close(mixed.tokens_BRE[:, 0], want)
    assert mixed.tokens_BRE.shape == (1, 1, 4)


def test_gradient_reaches_the_scores_through_the_weights() -> None:
    for weighting in ("softmax", "relative"):
        score = scores().requires_grad_()
        found = replay(
            ReplaySettings(num_tokens=3, weighting=weighting),
            score,
            embeddings(),
            torch.ones(1, 10) > 0,  # pyright: ignore
        )
        (found.tokens_BRE * torch.randn(1, 3, 4)).sum().backward()
        assert score.grad is not None and int((score.grad != 0).sum()) == 3
