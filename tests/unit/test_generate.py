"""Answers (lrkit/model/generate.py): halting, the one counter of autoregressive steps, batches, modes."""

import pytest
import torch
from torch import Tensor

from lrkit.contract.settings import ReasonerSettings
from lrkit.model.generate import GenerationLimits, generate
from lrkit.model.reasoner import LatentReasoner
from tests.lab import PROMPTS, rich_reasoner, settings, teach_halting
from tests.tiny import EOS, IMAGE, LATENT, batch, tiny_reasoner

LIMITS = GenerationLimits(eos_id=EOS, max_new_tokens=5)


def options(**think: object) -> ReasonerSettings:
    return settings(
        think={"max_latent_steps": 4, **think},
        replay={"num_tokens": 3, "weighting": "softmax"},
        routing={"depth": 1, "alpha": 4},
    )


class Forwards:
    """Counts passes of the language model by the calls of its final norm."""

    def __init__(self, reasoner: LatentReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        norm = reasoner.backbone.final_norm

        def counted(hidden: Tensor) -> Tensor:
            self.count += 1
            return norm(hidden)

        monkeypatch.setattr(reasoner.backbone, "final_norm", counted)


def test_adaptive_halting_gives_each_sample_its_own_number_of_steps() -> None:
    reasoner, wanted = rich_reasoner(options()), [2, 0, 3, 1]
    teach_halting(reasoner, PROMPTS, wanted)
    together = generate(reasoner, batch(PROMPTS), "latent", LIMITS)
    assert [made.latent_steps for made in together] == wanted
    assert {made.halting for made in together} == {"decided"}


@pytest.mark.parametrize("mode", ["latent", "cot"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_answers_as_each_sample_alone(mode: str, side: str) -> None:
    """The release runs batch 1 only."""
    reasoner = rich_reasoner(options())
    teach_halting(reasoner, PROMPTS, [2, 0, 3, 1])
    together = generate(reasoner, batch(PROMPTS, side, extra_pad=2), mode, LIMITS)  # pyright: ignore
    for made, one in zip(together, PROMPTS, strict=True):
        (alone,) = generate(reasoner, batch([one]), mode, LIMITS)  # pyright: ignore
        for field in (
            "token_ids",
            "latent_steps",
            "ar_steps",
            "halting",
            "finished",
            "prefilled_tokens",
            "routed_depths",
            "routed_tokens",
        ):
            assert getattr(made, field) == getattr(alone, field), field
        assert [[token.index for token in step] for step in made.replayed] == [
            [token.index for token in step] for step in alone.replayed
        ]


def test_the_limit_ends_thinking_and_says_so() -> None:
    reasoner = rich_reasoner(options())
    teach_halting(reasoner, PROMPTS[:2], [4, 1])
    with_limit = GenerationLimits(eos_id=EOS, max_new_tokens=2, max_latent_steps=2)
    made = generate(reasoner, batch(PROMPTS[:2]), "latent", with_limit)
    assert [(m.latent_steps, m.halting) for m in made] == [(2, "limit"), (1, "decided")]
    none = GenerationLimits(eos_id=EOS, max_new_tokens=2, max_latent_steps=0)
    assert [m.latent_steps for m in generate(reasoner, batch(PROMPTS[:2]), "latent", none)] == [0, 0]


def test_fixed_halting_takes_exactly_the_steps_whatever_the_head_says() -> None:
    reasoner = rich_reasoner(options(halting="fixed", max_latent_steps=3))
    teach_halting(reasoner, PROMPTS, [0, 1, 2, 3])
    made = generate(reasoner, batch(PROMPTS), "latent", LIMITS)
    assert [(m.latent_steps, m.halting) for m in made] == [(3, "fixed")] * 4


def test_ar_steps_count_every_forward_after_the_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latent step is one, a token fed back is one; the end token, and the last token of a cut answer, are not fed.
    The prompt is two passes where it has pictures: its picture part and its question part."""
    reasoner = rich_reasoner(options())
    teach_halting(reasoner, PROMPTS, [2, 0, 3, 1])
    for one in PROMPTS:
        for mode in ("latent", "cot"):
            forwards = Forwards(reasoner, monkeypatch)
            (made,) = generate(reasoner, batch([one]), mode, LIMITS)
            assert made.ar_steps == forwards.count - (2 if one.grids else 1)
            fed = len(made.token_ids) - (0 if made.finished else 1)
            assert made.ar_steps == made.latent_steps + fed


def ends_after(reasoner: LatentReasoner, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the head say `tokens` one after the other."""
    said = iter(tokens)

    def logits(hidden: Tensor) -> Tensor:
        scores = torch.zeros(*hidden.shape[:-1], 64)
        scores[..., next(said)] = 1.0
        return scores

    monkeypatch.setattr(reasoner, "logits", logits)


def test_the_counter_on_an_answer_that_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = rich_reasoner(options())
    ends_after(reasoner, [LATENT, LATENT, 20, 21, EOS], monkeypatch)
    (made,) = generate(reasoner, batch(PROMPTS[:1]), "latent", LIMITS)
    # The logits that stop thinking are those of the first token: they are computed once.
    assert (made.latent_steps, made.token_ids, made.ar_steps, made.finished) == (2, [20, 21], 4, True)


def test_an_answer_of_the_end_token_alone_takes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = rich_reasoner(options())
    ends_after(reasoner, [EOS], monkeypatch)
    (made,) = generate(reasoner, batch(PROMPTS[:1]), "cot", LIMITS)
    assert (made.token_ids, made.ar_steps, made.finished, made.halting) == ([], 0, True, "off")


def test_the_latent_token_is_never_spoken() -> None:
    reasoner = rich_reasoner(options())
    with torch.no_grad():
        reasoner.latent.head_row_D.zero_()
        reasoner.model.lm_head.weight.mul_(-0.0)  # every logit 0: the argmax would be the first token
    made = generate(reasoner, batch(PROMPTS), "latent", LIMITS)
    assert all(LATENT not in m.token_ids for m in made)
    teach_halting(reasoner, PROMPTS, [4, 4, 4, 4])
    for mode in ("latent", "cot", "direct"):
        assert all(LATENT not in m.token_ids for m in generate(reasoner, batch(PROMPTS), mode, LIMITS))


def test_a_cut_answer_is_not_finished_and_stopped_samples_stay_silent() -> None:
    reasoner = rich_reasoner(options(), seed=5)
    heard: list[list[int | None]] = []
    made = generate(reasoner, batch(PROMPTS), "cot", LIMITS, heard.append)
    for row, one in enumerate(made):
        assert [tokens[row] for tokens in heard if tokens[row] is not None] == one.token_ids
        assert one.finished == (len(one.token_ids) < 5)


def test_reports_name_real_tokens_only() -> None:
    reasoner = rich_reasoner(options(halting="fixed"))
    made = generate(reasoner, batch(PROMPTS), "latent", LIMITS)
    assert [[len(step) for step in m.replayed] for m in made] == [[3, 3, 3, 3], [3, 3, 3, 1], [0] * 4, [3, 1, 0, 0]]
    assert [m.prefilled_tokens for m in made] == [len(one.ids) for one in PROMPTS]
    for m in made:
        assert set(m.timings) == {"prefill", "think", "speak"} and set(m.routed_depths) == {1, 3}
    # Prompt: alpha tokens of each part; latent chunks: what was replayed and the latent, at most alpha.
    assert made[0].routed_depths[1] == 2 * 4 + 4 * 4 and made[2].routed_depths[1] == 4 + 4 * 1
    for m, one in zip(made, PROMPTS, strict=True):
        sizes = [len(one.ids), *(len(step) + 1 for step in m.replayed)]
        for layer, chunks in m.routed_tokens.items():
            assert [len(chunk) for chunk in chunks] == sizes
            assert sum(map(sum, chunks)) == m.routed_depths[layer]


def test_a_text_only_answer_reports_an_empty_replay_for_every_latent_step() -> None:
    """Alone in its batch it once reported none at all."""
    reasoner = rich_reasoner(options(halting="fixed", max_latent_steps=2))
    (made,) = generate(reasoner, batch([PROMPTS[2]]), "latent", LIMITS)
    assert made.replayed == [[], []]


def test_the_mode_of_the_module_is_put_back() -> None:
    reasoner = rich_reasoner(options()).train()
    generate(reasoner, batch(PROMPTS[:1]), "cot", LIMITS)
    assert reasoner.training


@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 3]])
def test_cot_text_without_replay_and_fresh_routing_equals_transformers_generate(rows: list[int]) -> None:
    """`<|latent|>` is suppressed there too."""
    chosen = settings(replay={"num_tokens": 0}, routing={"depth": 1, "alpha": 4})
    reasoner = tiny_reasoner(chosen, encodings=0.0)
    prompts = batch([PROMPTS[i] for i in rows], side="left")
    limits = GenerationLimits(eos_id=EOS, max_new_tokens=8)
    made = generate(reasoner, prompts, "cot", limits)
    model = reasoner.model
    model.set_attn_implementation("sdpa")
    images = {"pixel_values": prompts.pixel_values, "image_grid_thw": prompts.grids}
    said = model.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.prompt_mask.long(),
        **({} if prompts.pixel_values is None else images),
        mm_token_type_ids=(prompts.input_ids == IMAGE).int(),
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=[LATENT],
    )[:, prompts.input_ids.shape[1] :]
    for own, theirs in zip(made, said.tolist(), strict=True):
        theirs = theirs[: theirs.index(EOS)] if EOS in theirs else theirs
        assert own.token_ids == theirs
