"""Visual-token pruning (docs/method.md, section 8): who stays, what training sees, and what replay brings back."""

import pytest
import torch

from lrkit.contract.settings import PruneSettings, ReasonerSettings
from lrkit.errors import ConfigError
from lrkit.model.pruning import choose
from lrkit.model.state import VisualTokens
from tests.lab import PROMPTS, rich_reasoner, run_steps, settings, to_double
from tests.tiny import EOS, batch, tiny_reasoner

PRUNED = {"think": {"max_latent_steps": 4}, "prune": {"after_layer": 1, "keep": 0.3}}
SPEECH = [[20, 21, EOS], [30, EOS], [40, 41, 42, EOS], [22, EOS]]


@pytest.mark.parametrize(
    ("keep", "count", "stay"),
    [(0.7, 10, 7), (0.29, 100, 29), (0.57, 100, 57), (1 / 3, 9, 3), (0.001, 1, 1), (0.001, 2000, 2), (0.999, 12, 12)],
)
def test_a_share_is_counted_in_whole_numbers(keep, count, stay):
    """Of ten tokens 0.7 are seven: as a product of floats they were 7.000000000000001, and so eight."""
    visual = VisualTokens(torch.zeros(1, count, 1), torch.ones(1, count, dtype=torch.bool), torch.arange(count)[None])
    valid = torch.ones(1, count, dtype=torch.bool)
    made = choose(PruneSettings(after_layer=0, keep=keep), torch.arange(count)[None].float(), visual, valid)
    assert made.index_BS.tolist() == [list(range(count - stay, count))]


def test_ties_go_to_the_lower_index_and_text_always_stays():
    visual = VisualTokens(
        torch.zeros(1, 4, 1), torch.tensor([[True, True, True, True]]), torch.tensor([[1, 2, 4, 5]])
    )  # fmt: skip
    valid = torch.tensor([[True, True, True, True, True, True, True, False]])
    made = choose(PruneSettings(after_layer=0, keep=0.5), torch.tensor([[0.1, 0.3, 0.3, 0.3]]), visual, valid)
    assert made.index_BS.tolist() == [[0, 2, 3, 4, 6]]
    assert made.kept_BV.tolist() == [[False, True, True, False]]
    assert [made.column_BV[0, i].item() for i in (1, 2)] == [1, 3]


@pytest.mark.parametrize(("side", "extra_pad"), [("left", 0), ("right", 3), ("left", 5)])
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(side, extra_pad):
    routing = {"depth": 2, "alpha": 4, "layers": "all"}
    reasoner = rich_reasoner(settings(**PRUNED, routing=routing), dtype=torch.float64)
    latents = [3, 2, 1, 4]
    together = run_steps(reasoner, to_double(batch(PROMPTS, side, extra_pad, latents, SPEECH)))
    for row, (one, count, said) in enumerate(zip(PROMPTS, latents, SPEECH, strict=True)):
        alone = run_steps(reasoner, to_double(batch([one], "right", 0, [count], [said])))
        torch.testing.assert_close(together.speech_BSW[row, : len(said)], alone.speech_BSW[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_layers_behind_hold_keys_of_survivors_alone():
    state = rich_reasoner(settings(**PRUNED)).prefill(batch([PROMPTS[0]]))
    assert state.pruned is not None and state.visual is not None
    tokens, visual = len(PROMPTS[0].ids), state.visual.real_BV.shape[1]
    assert visual == 12 and int(state.pruned.kept_BV.sum()) == 4
    early, late = [state.keys.cache.layers[i].keys.shape[2] for i in (0, 1)], state.pruned.keys.cache.layers
    assert early == [tokens, tokens]
    assert [late[i].keys.shape[2] for i in (2, 3)] == [tokens - 8, tokens - 8]


@torch.no_grad()
def test_replay_brings_pruned_tokens_back():
    """Twelve tokens, of which four survive: three steps of four replay all of them, each once."""
    reasoner = rich_reasoner(settings(**PRUNED, replay={"num_tokens": 4}))
    steps = run_steps(reasoner, batch([PROMPTS[0]], num_latents=[3], speech=[SPEECH[0]]))
    replayed = [i for found in steps.replays if found is not None for i in found.index_BK[0].tolist()]
    assert sorted(replayed) == list(range(12))
    assert all(scores is not None and bool((scores > 0).all()) for scores in steps.saliency)


def test_gradient_reaches_the_prompt_through_survivors_and_through_the_layers_before():
    reasoner = rich_reasoner(settings(**PRUNED))
    rows: list[torch.Tensor] = []
    encode = reasoner.backbone.encode_images

    def watched(pixels, grids):
        rows.append(encode(pixels, grids).detach().requires_grad_())
        return rows[-1]

    reasoner.backbone.encode_images = watched  # pyright: ignore
    reasoner(batch([PROMPTS[0]], num_latents=[2], speech=[SPEECH[0]])).total.backward()
    assert rows[0].grad is not None and bool((rows[0].grad.norm(dim=1) > 0).all()), "pruned tokens were seen before"
    assert all(bool(p.grad.isfinite().all()) for p in reasoner.parameters() if p.grad is not None)


@pytest.mark.parametrize("off", [{}, {"keep": 0.25}, {"after_layer": 2, "keep": 1.0}, {"after_layer": 99, "keep": 1.0}])
@torch.no_grad()
def test_off_changes_no_number(off):
    made = batch(PROMPTS, num_latents=[2, 1, 0, 3], speech=SPEECH)
    plain, same = (run_steps(tiny_reasoner(settings(prune=prune)), made) for prune in ({}, off))
    assert same.state.pruned is None
    assert torch.equal(plain.speech_BSW, same.speech_BSW)


def test_what_is_off_is_not_written():
    assert "prune" not in ReasonerSettings().model_dump(mode="json")
    chosen = settings(prune={"after_layer": 3, "keep": 0.25})
    assert ReasonerSettings.model_validate(chosen.model_dump(mode="json")) == chosen


def test_a_layer_that_nothing_follows_is_refused():
    for layer in (3, 40):
        with pytest.raises(ConfigError, match=f"prune.after_layer is {layer}, but a model of 4 layers"):
            tiny_reasoner(settings(prune={"after_layer": layer}))
