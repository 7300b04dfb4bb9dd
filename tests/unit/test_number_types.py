"""Every option of the method in every number type (the rule: lrkit/model/precision.py): two updates and an answer.

bfloat16 with LoRA and routing, which is the paper's run on every published Qwen2-VL, once died in its first update, and
asking such a base with routers in its first question.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from lrkit.contract.generated import GenerationLimits, Mode
from lrkit.contract.settings import ReasonerSettings
from lrkit.contract.weightings import WEIGHTINGS
from lrkit.errors import UserError
from lrkit.model.build import Trainable, build_reasoner
from lrkit.model.generate import generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import StepRecorder
from lrkit.model.saliency import SaliencyRow
from tests.lab import PROMPTS
from tests.tiny import EOS, IMAGE, LATENT, MERGE, VOCABULARY, Batch, Prompt, batch, tiny_backbone, windows_of

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {"bfloat16": 0.04, "float16": 0.03}
"""Of a loss, relative to float32's: twice the largest difference found over all cases (0.022 and 0.013). bfloat16 has 8
significant bits, float16 has 11: rounding alone is a few thousandths. The rest is choices between near equals that fall
the other way (which token is replayed or routed), and AdamW's first update, whose size does not depend on the
gradient's: a gradient near zero moves its weight the other way."""
ON: Mapping[str, tuple[Any, ...]] = {
    "think.max_latent_steps": (2, 3),
    "think.passes": (2, 1),
    "replay.num_tokens": (3, 1, 500),
    "replay.weighting": tuple(WEIGHTINGS),
    "replay.zoom": (2, 3),
    "distill.weight": (0.5, 0.0),
    "distill.window": (2, 1),
    "distill.pointing": (0.3, 0.0),
    "routing.depth": (1, 2),
    "routing.layers": ((0,),),
    "routing.alpha": (4, 2, 1000),
    "routing.alpha_end": (None, 3),
    "routing.threshold": (0.0, 0.3),
    "prune.after_layer": (None, 0),
    "prune.keep": (0.4,),
    "lora.rank": (4,),
    "lora.alpha": (8.0, 4.5),
    "lora.dropout": (0.0,),
}
"""Option -> values tried beside those that its type names. An option with neither fails a test."""
OFF: Mapping[str, dict[str, Any]] = {
    "no latent step": {"think.max_latent_steps": 0},
    "no replay": {"replay.num_tokens": 0, "distill.weight": 0.0, "distill.pointing": 0.0},
    "no distillation": {"distill.weight": 0.0, "distill.pointing": 0.0},
    "no routing": {"routing.depth": 0},
    "dropout": {"lora.dropout": 0.2},
}


def named_values(kind: Any) -> Iterator[Any]:
    """The values that a type spells out, such as those of `Literal["a", "b"] | int`."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            yield from named_values(part)
    elif kind is bool:
        yield from (False, True)


def options() -> dict[str, tuple[Any, ...]]:
    """Every option of the method -> the values to try, from the settings themselves."""
    found: dict[str, tuple[Any, ...]] = {}
    for section, field in ReasonerSettings.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel), section
        for name, own in field.annotation.model_fields.items():
            found[f"{section}.{name}"] = (*named_values(own.annotation), *ON.get(f"{section}.{name}", ()))
    return found


def nested(flat: Mapping[str, Any]) -> ReasonerSettings:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        section, option = name.split(".")
        sections.setdefault(section, {})[option] = value
    return ReasonerSettings.model_validate(sections)


def first_values() -> dict[str, Any]:
    return {name: values[0] for name, values in options().items() if values}


def allowed(flat: dict[str, Any]) -> dict[str, Any]:
    """As the settings take them: a fine replay is not distilled, constants have no gradient to cut, and latents that
    are taken at once decide nothing and look where the prompt did."""
    flat = dict(flat)
    if flat["replay.source"] == "fine":
        flat["distill.weight"] = 0.0
    if flat["think.latents"] == "parallel":
        flat |= {"think.halting": "fixed", "distill.pointing": 0.0}
    else:
        flat["think.passes"] = 1
    if flat["think.latents"] == "pause":
        flat["think.gradient"] = "full"
    return flat


def rows() -> dict[str, dict[str, Any]]:
    """As few settings as hold every value of every option, with nothing turned off. One more than values of an option:
    the row of constants has no gradient to cut."""
    every = options()
    return {
        f"row {i}": allowed({name: values[i % len(values)] for name, values in every.items() if values})
        for i in range(max(map(len, every.values())) + 1)
    }


def singles() -> dict[str, dict[str, Any]]:
    """Every value of every option alone, all others at their first."""
    return {
        f"{name}={value}": allowed({**first_values(), name: value})
        for name, values in options().items()
        for value in values[1:]
    }


OFFS = {name: allowed({**first_values(), **values}) for name, values in OFF.items()}
CASES = {**rows(), **OFFS, **singles()}


@dataclass(frozen=True)
class Figures:
    """What one type makes of one case."""

    losses: Tensor
    """Of the first update, of the second, and of the trained model as it is used."""


def training_batch(settings: ReasonerSettings, device: str) -> Batch:
    """Two pictures, none and one, of other lengths; two samples think, and are told where to look."""
    most, prompts = settings.think.max_latent_steps, [PROMPTS[1], PROMPTS[2], PROMPTS[3]]
    latents = [min(2, most), 0, min(1, most)]
    made = batch(prompts, num_latents=latents, speech=[[20, 21, EOS], [22, EOS], [23, 24, 25, EOS]])
    made.looks = torch.zeros(3, 2, max(one.ids.count(IMAGE) for one in prompts))
    made.looks[[0, 2], :, :2] = 0.5
    return moved(seen_closer(made, prompts, settings), device)


def seen_closer(made: Batch, prompts: list[Prompt], settings: ReasonerSettings) -> Batch:
    """With windows of full pictures where replay is fine."""
    if (zoom := settings.replay.fine_zoom) > 1:
        made.windows, made.window_grid = windows_of(prompts, zoom), (1, zoom * MERGE, zoom * MERGE)
    return made


def moved(made: Batch, device: str) -> Batch:
    tensors = {name: value.to(device) for name, value in vars(made).items() if isinstance(value, Tensor)}
    return replace(made, **tensors)


def fresh(settings: ReasonerSettings, trainable: Trainable, dtype: torch.dtype, device: str) -> LatentReasoner:
    """As a run starts: the base in the run's type, or float32 where it trains; new weights away from zero."""
    backbone = tiny_backbone(tied=trainable == "lora", layers=2)
    nn.Module.to(backbone.model, dtype)
    torch.manual_seed(1)
    reasoner = build_reasoner(backbone, settings, LATENT, trainable=trainable)
    with torch.no_grad():
        for name, weight in reasoner.named_parameters():
            if "step_encoding" in name or "lora_B" in name:
                weight.normal_(0.0, 0.1)
    return reasoner.to(device)


def two_updates(reasoner: LatentReasoner, made: Batch, dtype: torch.dtype) -> list[Tensor]:
    """As accelerate does them: autocast around the forward pass, everything else outside."""
    kind, half = reasoner.latent.norm.device.type, dtype != torch.float32
    optimizer = torch.optim.AdamW([weight for weight in reasoner.parameters() if weight.requires_grad], lr=1e-3)
    losses: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(2)
        with torch.autocast(kind, dtype=dtype, enabled=half):
            loss = reasoner(made)
        loss.total.backward()
        for name, weight in reasoner.named_parameters():
            assert weight.grad is None or bool(weight.grad.isfinite().all()), name
        optimizer.step()
        optimizer.zero_grad()
        losses += [loss.total.detach()]
    return losses


def run(case: str, trainable: Trainable, name: str, device: str = "cpu") -> Figures:
    """Trains, then uses: asserts all that must hold of one type, and gives what types are compared by."""
    settings, dtype = nested(CASES[case]), TYPES[name]
    reasoner = fresh(settings, trainable, dtype, device)
    made = training_batch(settings, device)
    losses = two_updates(reasoner.train(), made, dtype)
    trained = {at: weight for at, weight in reasoner.named_parameters() if weight.requires_grad}
    assert trained and {weight.dtype for weight in trained.values()} == {torch.float32}
    used = as_used(reasoner, dtype)
    with torch.inference_mode():
        losses.append(used(made).total)
    modes: tuple[Mode, ...] = ("latent", "cot")
    for mode in modes:
        answers(used, mode, device)
    found = torch.stack(losses).float().cpu()
    assert bool(found.isfinite().all()), found
    return Figures(found)


def as_used(reasoner: LatentReasoner, dtype: torch.dtype) -> LatentReasoner:
    """As an engine holds it: merged, in one type, but for the method's own weights."""
    reasoner.merge_adapter()
    reasoner.to(dtype).eval()
    assert {weight.dtype for weight in reasoner.model.parameters()} == {dtype}
    own = {name: weight for name, weight in reasoner.state_dict().items() if not name.startswith("model.")}
    assert own and {weight.dtype for weight in own.values()} == {torch.float32}
    return reasoner


def answers(reasoner: LatentReasoner, mode: Mode, device: str) -> None:
    """Plain steps and recorded ones, which are recorded on a GPU alone; latents that are taken at once never are."""
    limits = GenerationLimits(EOS, 3, halting="fixed" if mode == "latent" else None)
    asked = moved(seen_closer(batch(PROMPTS[:3]), PROMPTS[:3], reasoner.settings), device)
    at_once = reasoner.settings.think.latents == "parallel"
    for recorder in (None,) if at_once else (None, StepRecorder(reasoner)):
        for made in generate(reasoner, asked, mode, limits, recorder=recorder):
            assert all(0 <= token < VOCABULARY for token in made.token_ids)
            assert made.latent_steps == (reasoner.settings.think.max_latent_steps if mode == "latent" else 0)


def agree(case: str, trainable: Trainable, device: str = "cpu") -> None:
    """Half types give finite numbers, and float32's within `TOLERANCES`."""
    want = run(case, trainable, "float32", device).losses
    for name, tolerance in TOLERANCES.items():
        got = run(case, trainable, name, device).losses
        if CASES[case]["lora.dropout"] == 0.0:  # which numbers are dropped depends on the type
            torch.testing.assert_close(got, want, rtol=tolerance, atol=0, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_every_option_has_a_case() -> None:
    """A new option, or a new value of one, is in the sweep by its type, or must be put into `ON`."""
    every = options()
    assert set(ON) <= set(every) and all(set(values) <= set(every) for values in OFF.values())
    without = [name for name, values in every.items() if not values]
    assert not without, f"no values to try of {', '.join(without)}; add them to ON"
    covered = {(name, str(value)) for case in rows().values() for name, value in case.items()}
    assert covered == {(name, str(value)) for name, values in every.items() for value in values}


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("case", rows())
def test_every_value_of_every_option_trains_and_answers_in_every_type(case: str, trainable: Trainable) -> None:
    agree(case, trainable)


@pytest.mark.parametrize("case", OFFS)
def test_without_a_part_of_the_method(case: str) -> None:
    agree(case, "lora")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_methods_own_weights_stay_float32(dtype: torch.dtype) -> None:
    """Also where the whole model is turned into another type, and their bits are not rounded on the way."""
    reasoner = fresh(nested(CASES["row 0"]), "lora", torch.float32, "cpu")
    before = {name: weight.detach().clone() for name, weight in reasoner.extra_parameters().items()}
    reasoner.to(dtype)
    for name, weight in reasoner.extra_parameters().items():
        assert torch.equal(weight, before[name]), name
    assert reasoner.latent.norm.dtype == torch.float32
    assert {weight.dtype for weight in reasoner.model.parameters()} == {dtype}


def test_a_base_in_a_half_type_trains_whole_in_float32() -> None:
    """An update is often less than bfloat16 can add to a weight."""
    reasoner = fresh(nested(CASES["row 0"]), "full", torch.bfloat16, "cpu")
    assert {weight.dtype for weight in reasoner.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saliency_of_large_keys(dtype: torch.dtype) -> None:
    """Trained Qwen2-VL has keys of some hundreds: unscaled products are beyond float16's 65,504, which attention never
    sees, as it scales first."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 4, 3, 32, generator=generator), torch.randn(1, 2, 9, 32, generator=generator)
    query, key = (query + 60.0).to(dtype), (key + 60.0).to(dtype)
    rows = [SaliencyRow(), SaliencyRow()]
    rows[0].add(query, key, None, 32**-0.5)
    rows[1].add(query.double(), key.double(), None, 32**-0.5)
    # A score near 20,000 is rounded to a multiple of 16 (float16) or 128 (bfloat16) by any attention in this type.
    assert float((query[0, 0, -1].double() @ key[0, 0].double().T).max()) > 65_504
    assert rows[0].mean().dtype == torch.float32 and bool(rows[0].mean().isfinite().all())
    assert int(rows[0].mean().argmax()) == int(rows[1].mean().argmax())


@pytest.mark.parametrize("name", TYPES)
def test_latents_of_any_length_keep_their_scale(name: str) -> None:
    """The length of a long hidden state is beyond float16 once its squares are summed."""
    reasoner = fresh(nested(CASES["row 0"]), "none", TYPES[name], "cpu")
    for length in (1e-3, 1.0, 3e3):
        hidden = torch.full((1, 32), length, dtype=TYPES[name])
        latent = reasoner.latent.as_input(hidden)
        assert latent.dtype == TYPES[name]
        assert float(latent.float().norm()) == pytest.approx(float(reasoner.latent.norm), rel=1e-2)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("mode", ["latent", "cot"])
def test_numbers_beyond_a_type_are_an_error_and_no_answer(mode: Mode, recorded: bool) -> None:
    """NaN compares with nothing: a word chosen from it would be the first of the vocabulary."""
    reasoner = fresh(nested(CASES["row 0"]), "none", torch.float16, "cpu").eval()
    with torch.no_grad():
        for name in ("up", "down"):  # each within float16, their products not
            reasoner.model.get_parameter(f"model.language_model.layers.1.mlp.{name}_proj.weight").mul_(3e3)
    recorder = StepRecorder(reasoner) if recorded else None
    with pytest.raises(UserError, match="NaN or infinite in float16; ask in dtype float32"):
        generate(reasoner, batch(PROMPTS[:2]), mode, GenerationLimits(EOS, 4), recorder=recorder)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("case", singles())
def test_each_value_alone(case: str, trainable: Trainable) -> None:
    agree(case, trainable)
