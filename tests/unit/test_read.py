"""Reading a prompt part after part (lrkit/model/read.py): behind a look, at once as in training, in batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrkit.contract.generated import Generated
from lrkit.model.decoder import picture_parts
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.read import Look
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import StepRecorder
from lrkit.model.state import Sequences
from tests.lab import PROMPTS, rich_reasoner, settings, teach_halting
from tests.tiny import EOS, IMAGE, LATENT, Prompt, batch, prompt

LIMITS = GenerationLimits(eos_id=EOS, max_new_tokens=6)
VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "replay": {"replay": {"num_tokens": 3}},
    "no replay": {"replay": {"num_tokens": 0}},
    "routing": {"replay": {"num_tokens": 3}, "routing": {"depth": 2, "alpha": 4, "layers": "all"}},
    "routing with a threshold": {
        "replay": {"num_tokens": 4},
        "routing": {"depth": 3, "alpha": 3, "threshold": 0.5, "gate": "softmax"},
    },
    "routing, rearranged": {"routing": {"depth": 1, "alpha": 5, "positions": "rearrange"}},
}
PICTURES = [0, 1, 3]
"""Prompts that have one."""


def taught(variant: str) -> LatentReasoner:
    reasoner = rich_reasoner(settings(think={"max_latent_steps": 4}, **VARIANTS[variant]))
    teach_halting(reasoner, PROMPTS, [2, 0, 3, 1])
    return reasoner


def picture_part(one: Prompt) -> int:
    return len(one.ids) - one.ids[::-1].index(IMAGE)


@torch.inference_mode()
def look_at(reasoner: LatentReasoner, one: Prompt) -> Look:
    made = batch([one])
    made.input_ids = made.input_ids[:, : picture_part(one)]
    made.prompt_mask = made.prompt_mask[:, : picture_part(one)]
    return reasoner.look(made)


def without_pixels(prompts: list[Prompt]) -> Any:
    made = batch(prompts)
    made.pixel_values = None
    return made


def tensors(state: Sequences) -> dict[str, Tensor]:
    """What the next step reads, and the keys of every layer."""
    found = {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    assert state.visual is not None
    found |= {f"visual {name}": value for name, value in vars(state.visual).items() if isinstance(value, Tensor)}
    for at, keys in {"": state.keys, **state.refinement.keys}.items():
        layers = range(4) if at == "" else [at[0]]
        found |= {f"keys {at} {layer} {side}": keys.of_layer(layer)[side] for layer in layers for side in (0, 1)}  # pyright: ignore
        found[f"valid {at}"] = keys.valid_BN  # pyright: ignore
    return found | {f"routed {layer}": count for layer, count in state.refinement.num_routed.items()}


def bare(found: list[Generated]) -> list[Generated]:
    return [replace(one, timings={}, step_seconds={}) for one in found]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_behind_a_look_everything_is_the_whole_prompts_bit_for_bit(variant: str) -> None:
    reasoner = taught(variant)
    for number in PICTURES:
        one = PROMPTS[number]
        look = look_at(reasoner, one)
        want, got = tensors(reasoner.read(batch([one]))), tensors(reasoner.read(without_pixels([one]), [look]))
        assert set(got) == set(want)
        assert all(torch.equal(got[name], want[name]) for name in want)
        answers = generate(reasoner, batch([one]), "latent", LIMITS)
        assert bare(generate(reasoner, without_pixels([one]), "latent", LIMITS, looks=[look])) == bare(answers)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_look_serves_other_questions_and_is_never_changed(variant: str) -> None:
    reasoner = taught(variant)
    first = PROMPTS[1]
    look = look_at(reasoner, first)
    before = {name: value.clone() for name, value in (("rows", look.rows_VE), ("keys", look.keys[2][0]))}
    others = [replace(first, text=text) for text in (first.text, (30, 31), (9,), (*first.text, 40))]
    for _ in range(2):
        for other in others:
            want = generate(reasoner, batch([other]), "latent", LIMITS)
            assert bare(generate(reasoner, without_pixels([other]), "latent", LIMITS, looks=[look])) == bare(want)
    assert torch.equal(look.rows_VE, before["rows"]) and torch.equal(look.keys[2][0], before["keys"])


def close(got: Sequences, want: Sequences) -> None:
    largest = float(want.last_hidden_BD.abs().max())
    torch.testing.assert_close(got.last_hidden_BD, want.last_hidden_BD, rtol=0, atol=1e-5 * largest)
    assert torch.equal(got.next_position_B, want.next_position_B)
    if want.saliency_BV is not None and got.saliency_BV is not None:
        torch.testing.assert_close(got.saliency_BV, want.saliency_BV, rtol=0, atol=1e-6)


def tokens(found: list[Generated]) -> list[object]:
    return [
        (one.token_ids, one.latent_steps, one.routed_tokens, [[t.index for t in step] for step in one.replayed])
        for one in found
    ]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_part_after_part_computes_what_is_read_at_once(variant: str, side: str) -> None:
    """Batches with and without pictures, padded on either side; training reads at once."""
    reasoner = taught(variant)
    for chosen in ([0], [1], [2], [0, 1, 2, 3], [2, 3]):
        made = batch([PROMPTS[number] for number in chosen], side, extra_pad=2)
        apart, at_once = reasoner.read(made), reasoner.prefill(made)
        close(apart, at_once)
        for active in ([True] * len(chosen), [True, *[False] * (len(chosen) - 1)]):
            reasoner.think(apart, torch.tensor(active))
            reasoner.think(at_once, torch.tensor(active))
            close(apart, at_once)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_batch_behind_looks_answers_as_each_alone(variant: str, recorded: bool) -> None:
    """Looks of unlike lengths, and one look for several questions; with steps of fixed shape too."""
    reasoner = taught(variant)
    recorder = StepRecorder(reasoner) if recorded else None
    prompts = [PROMPTS[number] for number in (*PICTURES, 1)]
    looks = [look_at(reasoner, one) for one in prompts[:3]]
    got = generate(
        reasoner, without_pixels(prompts), "latent", LIMITS, recorder=recorder, looks=[*looks, looks[1]]
    )  # fmt: skip
    want = [generate(reasoner, batch([one]), "latent", LIMITS)[0] for one in prompts]
    assert tokens(got) == tokens(want)


def test_where_the_picture_part_ends() -> None:
    """Up to the last visual token; one part without a picture and where nothing follows it."""
    made = batch([*PROMPTS, prompt(9, ((1, 4, 4),), 0)], "left", extra_pad=3)
    made.input_ids[4] = torch.where(made.prompt_mask[4], IMAGE, 0)
    made.input_ids[2][made.prompt_mask[2]] = LATENT
    want = [picture_part(one) if one.grids else 0 for one in PROMPTS]
    assert picture_parts(made, IMAGE).tolist() == [*want, 0]


@torch.inference_mode()
def test_a_prompt_that_ends_in_its_picture_is_read_at_once() -> None:
    """There is no question part whose last token could speak."""
    reasoner = taught("routing")
    whole = batch([PROMPTS[0], PROMPTS[3]])
    ends = picture_part(PROMPTS[3])
    whole.input_ids[1, ends:] = 0
    whole.prompt_mask[1, ends:] = False
    assert torch.equal(reasoner.read(whole).last_hidden_BD, reasoner.prefill(whole).last_hidden_BD)
