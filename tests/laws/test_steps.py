"""Merging of steps, and selection and weights of replayed tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrkit.contract.settings import ReplaySettings
from lrkit.data.collate import merge_steps, num_replaced
from lrkit.errors import DataError
from lrkit.model.replay import replay, select, weigh


@given(st.integers(0, 60), st.integers(0, 30))
def test_steps_are_merged_in_order_into_groups_of_nearly_equal_size(steps: int, latents: int) -> None:
    groups = merge_steps(range(steps), latents)
    assert len(groups) == min(steps, latents)
    sizes = {len(group) for group in groups}
    assert not sizes or (min(sizes) >= 1 and max(sizes) - min(sizes) <= 1)
    if groups:
        assert [step for group in groups for step in group] == list(range(steps)), "each once, in order"
    if steps <= latents:
        assert groups == tuple((step,) for step in range(steps))


@given(st.integers(0, 60), st.one_of(st.none(), st.integers(0, 30)))
def test_each_latent_stands_for_more_steps_and_all_for_all(steps: int, most: int | None) -> None:
    groups = min(steps, steps if most is None else most)
    replaced = [num_replaced(steps, latents, most) for latents in range(groups + 1)]
    assert replaced[0] == 0 and replaced == sorted(set(replaced))
    assert replaced[-1] == (steps if groups else 0)
    with pytest.raises(DataError, match=f"at most {groups}, so lower the number"):
        num_replaced(steps, groups + 1, most)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Scores [B, V] with many ties, which tokens are free, and how many to choose."""
    rows, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e-30]) | st.floats(0, 1, width=32, allow_subnormal=False)
    scores = draw(st.lists(st.lists(levels, min_size=tokens, max_size=tokens), min_size=rows, max_size=rows))
    free = draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=rows, max_size=rows))
    return torch.tensor(scores), torch.tensor(free), draw(st.integers(1, 14))


def best(scores: Tensor, free: Tensor, number: int) -> list[int]:
    """The plain way: highest first, of equal ones the lower index, and then in order of the prompt."""
    ranked = sorted(np.flatnonzero(free.numpy()).tolist(), key=lambda token: (-float(scores[token]), token))
    return sorted(ranked[:number])


@given(scored(), st.booleans())
def test_the_highest_free_scores_are_selected_in_prompt_order(case: tuple[Tensor, Tensor, int], fixed: bool) -> None:
    scores, free, number = case
    slots = min(number, scores.shape[1]) if fixed else None
    index, valid = select(scores, free, number, slots)
    for row in range(len(scores)):
        wanted = best(scores[row], free[row], number)
        assert index[row][valid[row]].tolist() == wanted
        assert valid[row].tolist() == [True] * len(wanted) + [False] * (index.shape[1] - len(wanted))
    assert index.shape[1] == (slots if fixed else min(number, int(free.sum(1).max())))
    assert bool((index >= 0).all()) and bool((index < scores.shape[1]).all())


@given(scored(), st.sampled_from(["softmax", "relative", "none"]))
def test_weights_of_selected_tokens(case: tuple[Tensor, Tensor, int], weighting: str) -> None:
    scores, free, number = case
    index, valid = select(scores, free, number)
    chosen = scores.gather(1, index)
    weights = weigh(chosen, valid, weighting)
    assert bool((weights[~valid] == 0).all()) and bool(weights.isfinite().all()) and bool((weights >= 0).all())
    for row in range(len(scores)):
        own, count = weights[row][valid[row]], int(valid[row].sum())
        if not count:
            continue
        total = {"softmax": 1.0, "none": float(count), "relative": float(count)}[weighting]
        if weighting != "relative" or float(chosen[row][valid[row]].sum()) > 1e-3:
            assert float(own.sum()) == pytest.approx(total, rel=1e-4)
        order = chosen[row][valid[row]].argsort(stable=True)
        assert bool((own[order].diff() >= -1e-6).all()), "a higher score has no lower weight"


@given(scored(), st.sampled_from(["softmax", "relative", "none"]), st.sampled_from(["tokens", "soft_mix"]))
def test_what_is_replayed_was_free_and_is_marked(
    case: tuple[Tensor, Tensor, int], weighting: str, formation: str
) -> None:
    scores, free, number = case
    embeddings = torch.randn(*scores.shape, 4, generator=torch.Generator().manual_seed(number))
    settings = ReplaySettings.model_validate({"num_tokens": number, "weighting": weighting, "formation": formation})
    replayed = replay(settings, scores, embeddings, free)
    assert not bool((replayed.selected_BV & ~free).any())
    assert replayed.selected_BV.sum(1).tolist() == [min(number, int(row.sum())) for row in free]
    for row in range(len(scores)):
        chosen = [token for token in replayed.index_BK[row].tolist() if token >= 0]
        assert chosen == replayed.selected_BV[row].nonzero()[:, 0].tolist()
        if formation == "tokens":
            weights = replayed.weight_BK[row, : len(chosen), None]
            torch.testing.assert_close(replayed.tokens_BRE[row, : len(chosen)], embeddings[row, chosen] * weights)
    assert bool(replayed.tokens_BRE[replayed.valid_BR].isfinite().all())
