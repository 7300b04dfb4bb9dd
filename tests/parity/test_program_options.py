"""Every value of every option of the method, in both dialects: a program computes it as torch does, or is refused.

Once a weighting that the export did not know was exported as 1 with one replayed token, while torch weighed it as
`relative`; and `softmax` was one-dimensional, which TensorRT has no layer for.
"""

from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from pydantic import BaseModel

from lrkit.contract.settings import ReasonerSettings, ReplaySettings, RoutingSettings, ThinkSettings
from lrkit.contract.weightings import WEIGHTINGS
from lrkit.errors import ExportError
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.latent_input import LATENTS, SCALES
from lrkit.export.graph.nodes import Graph
from lrkit.export.graph.replay_nodes import FORMATIONS, SOURCES
from lrkit.export.graph.routing_nodes import GATES, POSITIONS, ROUTERS
from lrkit.export.graph.stack import SHARED
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Norm
from tests.programs import Runner, assert_equal, build
from tests.tiny import prompt, tiny_reasoner

TABLES = {
    ("think", "latent_scale"): SCALES, ("think", "latents"): LATENTS,
    ("replay", "weighting"): WEIGHTINGS, ("replay", "formation"): FORMATIONS,
    ("replay", "positions"): SHARED, ("replay", "source"): SOURCES, ("routing", "router"): ROUTERS,
    ("routing", "gate"): GATES, ("routing", "positions"): POSITIONS,
}  # fmt: skip
SECTIONS: dict[str, type[BaseModel]] = {"think": ThinkSettings, "replay": ReplaySettings, "routing": RoutingSettings}
NOT_IN_THE_GRAPH = {("think", "halting"), ("think", "gradient")}
"""An input of every question, and a matter of training."""
REFUSED = {("think", "latents"): {"parallel"}}
"""No program is built for these."""
BOTH_HALVES = {("replay", "weighting")}
"""One table has what torch and what the graph does (tests/parity/test_weighting_table.py)."""
TWO_PICTURES = prompt(3, grids=((1, 4, 4), (1, 2, 6)))


def named(section: str, field: str) -> tuple[str, ...]:
    """The names that an option may have; none where it is a number."""
    found = get_args(SECTIONS[section].model_fields[field].annotation)
    return tuple(value for value in found if isinstance(value, str))


def test_the_export_knows_every_value_that_training_knows():
    options = {(section, field) for section, kind in SECTIONS.items() for field in kind.model_fields}
    chosen = {option for option in options if len(named(*option)) > 1}
    assert chosen - NOT_IN_THE_GRAPH == TABLES.keys() - BOTH_HALVES
    for option in TABLES.keys() - BOTH_HALVES:
        assert set(named(*option)) - REFUSED.get(option, set()) == set(TABLES[option]), option


@pytest.mark.parametrize(
    ("section", "field", "slots"), [*((*option, 1) for option in TABLES), ("replay", "weighting", 3)]
)
def test_a_value_that_the_export_does_not_know_is_refused(section, field, slots):
    base = {"think": {"max_latent_steps": 1}, "replay": {"num_tokens": slots}, "routing": {"depth": 1, "alpha": 4}}
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(base))
    part = getattr(reasoner.settings, section)
    unknown = part.model_copy(update={field: "softmix"})
    reasoner.settings = reasoner.settings.model_copy(update={section: unknown})
    with pytest.raises(ExportError, match=f"{section}.{field}='softmix'; a program knows ") as refused:
        build(reasoner)
    assert "\n" not in str(refused.value)


def both(settings: dict[str, Any], dialect: str) -> None:
    reasoner = tiny_reasoner(ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}, **settings}))
    assert_equal(reasoner, Runner(build(reasoner, Target(dialect=dialect))), TWO_PICTURES, fixed=True)


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("slots", [1, 5])
def test_weightings(dialect, weighting, slots):
    """Seven visual tokens for three steps: with five a step, the last slots stay empty."""
    both({"replay": {"num_tokens": slots, "weighting": weighting}}, dialect)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weightings_in_one_mixed_token(weighting):
    both({"replay": {"num_tokens": 5, "weighting": weighting, "formation": "soft_mix"}}, "standard")


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_more_tokens_are_mixed_than_the_cache_has_slots(dialect):
    """Three steps of one mixed token and its latent take six slots; TopK needs 24 columns, always."""
    replay = {"num_tokens": 24, "weighting": "softmax", "formation": "soft_mix"}
    settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}, "replay": replay})
    reasoner = tiny_reasoner(settings)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in (TWO_PICTURES, prompt(6, grids=((1, 2, 2),), length=2), prompt(5, grids=(), length=1)):
        assert_equal(reasoner, runner, one, fixed=True)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_standard_dialects_gate_by_softmax(depth):
    routing = {"depth": depth, "alpha": 4, "gate": "softmax", "threshold": 0.1 if depth > 1 else 0.0}
    both({"replay": {"num_tokens": 2, "weighting": "softmax"}, "routing": routing}, "standard")


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_gates_that_are_all_but_closed_lose_no_digits(dialect: str):
    """Such a gate was read by ONNX Runtime's Sigmoid, which has few right digits there; the norm of the next pass
    brings a token that it shrank back to full size, and logits were 1e-3 off at a depth of 3."""
    write = writer_for(Target(dialect=dialect), lambda _: np.zeros(0, np.float32), Norm("rms", 1e-6))
    g = Graph(write.floats)
    given = g.input("x", write.floats, ("N",))
    gates = g.typed(GATES["sigmoid"](g, write, given, None), write.floats, ("N",), "y")
    proto: Any = ir.to_proto(g.model([given], [gates], "gates", {}))
    session: Any = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.linspace(-80, 30, 221, dtype=np.float32)
    (found,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-5)
    (ends,) = session.run(["y"], {"x": np.array([-np.inf, -3e38, -1e3, 1e3, np.inf], np.float32)})
    assert ends.tolist() == [0, 0, 0, 1, 1]


def test_the_standard_dialect_has_no_softmax_of_a_vector():
    """TensorRT: "at least 2 dimensions are required for input"."""
    settings = {"replay": {"num_tokens": 4, "weighting": "softmax"}, "routing": {"depth": 2, "gate": "softmax"}}
    program = build(tiny_reasoner(ReasonerSettings.model_validate(settings)), Target(dialect="standard"))
    found = {str(n.name): n.inputs[0].producer() for n in program.model.graph.all_nodes() if n.op_type == "Softmax"}
    made_by = {name: node.op_type for name, node in found.items() if node is not None}
    assert {made_by["think/Softmax"], made_by["prompt/layer1/Softmax.1"]} == {"Unsqueeze"}
    assert set(made_by.values()) == {"Unsqueeze", "Add", "Concat"}, "the last two are scores of attention"


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize(("slots", "learned"), [(0, 2), (3, 3)])
def test_constants_in_place_of_latents(dialect: Any, slots: int, learned: int) -> None:
    """Also for more steps than were learned: the last constant serves all that follow."""
    think = {"max_latent_steps": learned, "latents": "pause"}
    reasoner = tiny_reasoner(ReasonerSettings.model_validate({"think": think, "replay": {"num_tokens": slots}}))
    torch.nn.init.normal_(reasoner.latent.constant_TD, generator=torch.Generator().manual_seed(slots))
    assert_equal(
        reasoner, Runner(build(reasoner, Target(dialect=dialect), max_latent_steps=3)), TWO_PICTURES, fixed=True
    )


def test_latents_that_are_taken_at_once_are_refused() -> None:
    think = {"max_latent_steps": 2, "latents": "parallel", "halting": "fixed"}
    with pytest.raises(ExportError, match=r"think\.latents='parallel'; a program knows fed_back, pause: train with"):
        build(tiny_reasoner(ReasonerSettings.model_validate({"think": think})))
