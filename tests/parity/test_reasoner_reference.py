"""The cached, batched reasoner against the full recompute of reference.py, over the settings of the method.

Each case runs a sample with one picture, one with two, and one without, with other prompt lengths and latent counts, in
one padded batch; the reference reads each alone. Tolerance in float32: 1e-5 of the largest value compared (logits reach
10); measured worst: 7e-6 of it. Float64 would not be sharper than half of that: the backbone's norms and rotations
compute in float32.
"""

import pytest
import torch

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.build import extra_state
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.reasoner import LatentReasoner
from tests.lab import Steps, pieces, rich_reasoner, run_steps, settings, teach_halting
from tests.parity.reference import Reference
from tests.parity.reference_losses import distill_loss, speech_loss
from tests.parity.reference_parts import Told
from tests.tiny import EOS, IMAGE, LATENT, MERGE, Batch, batch, prompt, windows_of

TOLERANCE = 1e-5

PROMPTS = [
    prompt(11, ((1, 6, 8),), length=6),
    prompt(12, ((1, 4, 6), (1, 6, 4)), length=9),
    prompt(13, (), length=5),
]
LATENTS = [3, 2, 1]
SPEECH = [[20, 21, 22, EOS], [30, EOS], [40, 41, EOS]]

AT_ONCE: dict[str, object] = {"max_latent_steps": 3, "latents": "parallel", "halting": "fixed"}
BASE = {
    "think": {"max_latent_steps": 4},
    "replay": {"num_tokens": 3, "weighting": "softmax"},
    "routing": {"depth": 1, "alpha": 4},
}
CASES: dict[str, dict[str, dict[str, object]]] = {
    "paper": {},
    "no_replay": {"replay": {"num_tokens": 0}},
    "replay_1": {"replay": {"num_tokens": 1}},
    "replay_more_than_there_are": {"replay": {"num_tokens": 64}},
    "shared_positions": {"replay": {"num_tokens": 3, "positions": "shared"}},
    "shared_positions_exhaust": {"replay": {"num_tokens": 5, "positions": "shared"}},
    "replay_exhausts": {"replay": {"num_tokens": 5}},
    "relative": {"replay": {"num_tokens": 3, "weighting": "relative"}},
    "unweighted": {"replay": {"num_tokens": 3, "weighting": "none"}},
    "soft_mix": {"replay": {"num_tokens": 3, "weighting": "softmax", "formation": "soft_mix"}},
    "soft_mix_relative": {"replay": {"num_tokens": 3, "weighting": "relative", "formation": "soft_mix"}},
    "soft_mix_exhausts": {"replay": {"num_tokens": 7, "weighting": "none", "formation": "soft_mix"}},
    "no_routing": {"routing": {"depth": 0}},
    "depth_2": {"routing": {"depth": 2, "alpha": 4}},
    "depth_3": {"routing": {"depth": 3, "alpha": 4}},
    "threshold": {"routing": {"depth": 3, "alpha": 6, "threshold": 0.5}},
    "threshold_high": {"routing": {"depth": 2, "alpha": 6, "threshold": 0.9}},
    "threshold_softmax": {"routing": {"depth": 3, "alpha": 6, "threshold": 0.2, "gate": "softmax"}},
    "gate_softmax": {"routing": {"depth": 2, "alpha": 4, "gate": "softmax"}},
    "rearranged": {"routing": {"depth": 2, "alpha": 4, "positions": "rearrange"}},
    "rearranged_threshold": {"routing": {"depth": 2, "alpha": 6, "positions": "rearrange", "threshold": 0.5}},
    "router_mlp": {"routing": {"depth": 2, "alpha": 4, "router": "mlp"}},
    "alpha_1": {"routing": {"depth": 1, "alpha": 1}},
    "alpha_above_chunk": {"routing": {"depth": 2, "alpha": 500}},
    "alpha_cosine": {"routing": {"depth": 1, "alpha": 9, "alpha_end": 2, "layers": "all"}},
    "layers_all": {"routing": {"depth": 1, "alpha": 4, "layers": "all"}},
    "layers_chosen": {"routing": {"depth": 1, "alpha": 4, "layers": [0, 3]}},
    "latent_unscaled": {"think": {"max_latent_steps": 4, "latent_scale": "none"}},
    "latent_learned": {"think": {"max_latent_steps": 4, "latent_scale": "learned"}},
    "fixed": {"think": {"max_latent_steps": 3, "halting": "fixed"}},
    "distilled": {"distill": {"weight": 0.7, "window": 2}},
    "distilled_mlp_soft_mix": {
        "distill": {"weight": 0.2, "head": "mlp"},
        "replay": {"num_tokens": 4, "weighting": "relative", "formation": "soft_mix"},
    },
    "pruned": {"prune": {"after_layer": 1, "keep": 0.4}},
    "pruned_at_once": {"prune": {"after_layer": 0, "keep": 0.25}, "routing": {"depth": 2, "alpha": 3, "layers": "all"}},
    "pruned_late": {"prune": {"after_layer": 2, "keep": 0.7}, "routing": {"depth": 2, "alpha": 4, "gate": "softmax"}},
    "pruned_to_one": {"prune": {"after_layer": 0, "keep": 0.001}, "replay": {"num_tokens": 5}},
    "pruned_without_replay": {"prune": {"after_layer": 1, "keep": 0.5}, "replay": {"num_tokens": 0}},
    "pruned_rearranged": {
        "prune": {"after_layer": 0, "keep": 0.5},
        "routing": {"depth": 2, "alpha": 6, "positions": "rearrange", "threshold": 0.5},
    },
    "distilled_pruned": {"distill": {"weight": 0.7, "window": 2}, "prune": {"after_layer": 1, "keep": 0.3}},
    "fine": {"replay": {"num_tokens": 2, "source": "fine", "zoom": 2}},
    "fine_thrice": {"replay": {"num_tokens": 1, "source": "fine", "zoom": 3, "positions": "shared"}},
    "fine_exhausts": {"replay": {"num_tokens": 5, "source": "fine"}, "routing": {"depth": 2, "alpha": 6}},
    "fine_soft_mix_pruned": {
        "replay": {"num_tokens": 3, "source": "fine", "formation": "soft_mix", "weighting": "relative"},
        "prune": {"after_layer": 1, "keep": 0.4},
    },
    "pointing": {"distill": {"pointing": 0.4}},
    "pause": {"think": {"max_latent_steps": 4, "latents": "pause"}},
    "pause_learned_pruned": {
        "think": {"max_latent_steps": 3, "latents": "pause", "latent_scale": "learned"},
        "prune": {"after_layer": 1, "keep": 0.4},
    },
    "cut": {"think": {"max_latent_steps": 4, "gradient": "cut"}},
    "at_once": {"think": AT_ONCE},
    "at_once_twice": {"think": {**AT_ONCE, "passes": 2}, "replay": {"num_tokens": 3, "positions": "shared"}},
    "at_once_thrice_pruned": {
        "think": {**AT_ONCE, "passes": 9, "latent_scale": "none", "gradient": "cut"},
        "routing": {"depth": 2, "alpha": 3, "positions": "rearrange", "threshold": 0.5},
        "prune": {"after_layer": 1, "keep": 0.4},
    },
    "at_once_distilled": {"think": {**AT_ONCE, "passes": 2}, "distill": {"weight": 0.7, "window": 2}},
    "at_once_fine": {"think": AT_ONCE, "replay": {"num_tokens": 2, "source": "fine", "formation": "soft_mix"}},
    "at_once_without_replay": {"think": {**AT_ONCE, "passes": 2}, "replay": {"num_tokens": 0}},
    "distilled_exhausts": {"distill": {"weight": 1.0, "window": 3}, "replay": {"num_tokens": 9}},
}


LONG = {
    "pause_learned_pruned", "at_once_thrice_pruned", "at_once_distilled", "at_once_fine", "at_once_without_replay",
}  # fmt: skip
"""Left out of the default run."""


def case(name: str) -> ReasonerSettings:
    return settings(**{**BASE, **CASES[name]})


def reference_of(reasoner: LatentReasoner) -> Reference:
    return Reference(reasoner.model, extra_state(reasoner), reasoner.settings, LATENT)


def training_batch(zoom: int = 1) -> Batch:
    """With windows of full pictures where replay zooms."""
    made = batch(PROMPTS, num_latents=LATENTS, speech=SPEECH)
    if zoom > 1:
        made.windows, made.window_grid = windows_of(PROMPTS, zoom), (1, zoom * MERGE, zoom * MERGE)
    made.speech_weights = made.speech_mask * torch.tensor([1.0, 3.0, 0.5, 2.0])
    return made


def has_tokens() -> torch.Tensor:
    """(B, 1, V) 1 for a visual token."""
    count_B = torch.tensor([one.ids.count(IMAGE) for one in PROMPTS])
    return (torch.arange(int(count_B.max())) < count_B[:, None]).float()[:, None]


def close(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    scale = max(1.0, float(want.detach().abs().max()))
    torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=TOLERANCE * scale, msg=lambda t: f"{what}: {t}")


def compare_thoughts(steps: Steps, told: Told, row: int) -> None:
    for step, thought in enumerate(told.thoughts):
        close(steps.sources[step][row], thought.latent_D, f"sample {row}, source of latent {step}")
        if not len(thought.scores_V) or steps.replays[step] is None:
            continue
        scores, found = steps.saliency[step], steps.replays[step]
        assert scores is not None and found is not None
        close(scores[row, : len(thought.scores_V)], thought.scores_V, f"sample {row}, saliency {step}")
        index = [i for i in found.index_BK[row].tolist() if i >= 0]
        assert index == thought.replayed
        if index:
            close(found.weight_BK[row, : len(index)], torch.stack(thought.weights), f"sample {row}, weights {step}")


def compare_routing(steps: Steps, told: Told, row: int) -> None:
    found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for routed in steps.routed:
        chosen, depths = found.setdefault((routed.layer, routed.chunk), ([], []))
        chosen += [i for i in routed.index_BA[row].tolist() if i >= 0]
        depths += [d for i, d in zip(routed.index_BA[row], routed.depth_BA[row].tolist(), strict=True) if i >= 0]
    for at, (chosen, depths) in found.items():
        want = told.run.routed.get(at, [])
        # A latent chunk keeps room for K tokens; the reference has none for those that are missing.
        assert chosen == want or (at[1] > 0 and len(chosen) == len(want))
        assert depths == told.run.depths.get(at, [])
    assert {at for at in found if at[1] == 0} == {at for at in told.run.routed if at[1] == 0}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CASES])
@torch.no_grad()
def test_cached_batched_run_equals_full_recompute(name: str) -> None:
    reasoner = rich_reasoner(case(name))
    reference, made = reference_of(reasoner), training_batch(reasoner.settings.replay.fine_zoom)
    made.looks = torch.rand(3, 3, 12, generator=torch.Generator().manual_seed(3)) * has_tokens()
    steps, loss = run_steps(reasoner, made), reasoner(made)
    total, count, distilled, pointed = 0.0, 0.0, [], []
    for row, one in enumerate(PROMPTS):
        reference.windows = [] if made.windows is None else list(made.windows[row])
        told = reference.tell(*pieces(one), LATENTS[row], SPEECH[row])
        close(steps.speech_BSW[row, : len(SPEECH[row])], told.speech_logits_SW, f"sample {row}, speech")
        compare_thoughts(steps, told, row)
        compare_routing(steps, told, row)
        weights = made.speech_weights[row, : len(SPEECH[row])].tolist()
        summed, weight = speech_loss(reference, told, SPEECH[row], weights, may_think=True)
        total, count = total + summed, count + weight
        if reasoner.settings.distill.weight and (own := distill_loss(reference, told, *pieces(one)[1:])) is not None:
            distilled.append(own)
        for step, thought in enumerate(told.thoughts if one.grids else []):
            shares = thought.scores_V / thought.scores_V.sum()
            pointed.append(-(made.looks[row, step, : len(shares)] * shares.log()).sum())
    close(loss.speech, total / count, "speech loss")
    if distilled:
        close(loss.distill, sum(distilled) / len(distilled), "distillation loss")
    weights = reasoner.settings.distill
    if weights.pointing:
        close(loss.pointing, torch.stack(pointed).mean(), "pointing loss")
    close(loss.total, loss.speech + weights.weight * loss.distill + weights.pointing * loss.pointing, "total loss")


def test_the_sweep_covers_every_option() -> None:
    """A new option of a section must come with a case here."""
    swept = {(section, key) for name in CASES for section, values in CASES[name].items() for key in values}
    swept |= {(section, key) for section, values in BASE.items() for key in values}
    options = {
        (section, key)
        for section in ("think", "replay", "distill", "routing", "prune")
        for key in type(getattr(ReasonerSettings(), section)).model_fields
    }
    assert options == swept
    assert len(CASES) == 54


GENERATED = (
    "paper", "threshold", "distilled", "no_replay", "fixed", "rearranged_threshold", "pruned", "pause", "at_once_twice",
)  # fmt: skip


@pytest.mark.parametrize("name", GENERATED)
@torch.no_grad()
def test_generation_equals_full_recompute(name: str) -> None:
    """Greedy answers token for token; the latent row is fitted so that the samples think 2, 0 and 3 steps."""
    reasoner = rich_reasoner(case(name), seed=5)
    wanted = [2, 0, 3]
    if reasoner.settings.think.latents != "parallel":
        teach_halting(reasoner, PROMPTS, wanted)
    reference = reference_of(reasoner)
    limits = GenerationLimits(eos_id=EOS, max_new_tokens=6)
    for mode in ("latent", "cot"):
        made = generate(reasoner, batch(PROMPTS), mode, limits)
        for got, one in zip(made, PROMPTS, strict=True):
            spoken, latents = reference.answer(*pieces(one), 6, EOS, thinks=mode == "latent")
            assert (got.token_ids, got.latent_steps) == (spoken, latents)
        fixed = reasoner.settings.think.halting == "fixed"
        expected = {"cot": [0, 0, 0], "latent": [3, 3, 3] if fixed else wanted}[mode]
        assert [got.latent_steps for got in made] == expected


@pytest.mark.parametrize("name", ["paper", "depth_3", "latent_learned"])
@torch.no_grad()
def test_untied_and_plain_weights_equal_full_recompute(name: str) -> None:
    """Without an adapter, and with a language head of its own."""
    reasoner = rich_reasoner(case(name), seed=3, trainable="none", tied=False)
    steps, reference = run_steps(reasoner, training_batch()), reference_of(reasoner)
    for row, one in enumerate(PROMPTS):
        told = reference.tell(*pieces(one), LATENTS[row], SPEECH[row])
        close(steps.speech_BSW[row, : len(SPEECH[row])], told.speech_logits_SW, f"sample {row}")
