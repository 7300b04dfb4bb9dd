"""Programs whose visual tokens add features behind deeper layers, against torch: in the prompt, and where latent steps
replay them."""

from dataclasses import replace

import onnx_ir as ir
import pytest

from lrkit.export.graph.nodes import Carried, Graph
from lrkit.export.graph.program import Program, build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.model.reasoner import LatentReasoner
from tests.deep import DEEP, deepened
from tests.parity.test_program import PROMPTS, settings
from tests.programs import Runner, assert_equal, dialect_of, limits, tower_of
from tests.tiny import EOS, GEOMETRY, tiny_reasoner

LAST = (1, 3)
"""With the last of four layers, of which only the last token is read."""
CASES = {
    "no replay": ({"num_tokens": 0}, {}, DEEP),
    "one token": ({"num_tokens": 1}, {}, LAST),
    "runs out": ({"num_tokens": 4, "weighting": "softmax"}, {}, LAST),
    "soft mix": ({"num_tokens": 4, "formation": "soft_mix"}, {}, DEEP),
    "shared positions, routed": ({"num_tokens": 3, "positions": "shared"}, {"depth": 1, "alpha": 4}, DEEP),
    "routed twice in every layer": ({"num_tokens": 4}, {"depth": 2, "alpha": 5, "layers": "all"}, LAST),
}


def deep_program(case: str, target: Target) -> tuple[LatentReasoner, Program]:
    chosen, routed, layers = CASES[case]
    reasoner = tiny_reasoner(settings(chosen, routed))
    matrices = deepened(reasoner, layers)
    source = read_source(reasoner)
    source.dimensions = replace(source.dimensions, deep_layers=layers)
    dialect = dialect_of(source, target)
    tower = tower_of(dialect)

    def rows(g: Graph, given: Carried) -> ir.Value:
        tokens = tower(g, given)
        return g.op("Concat", tokens, *(g.op("MatMul", tokens, m.numpy()) for m in matrices.values()), axis=1)

    return reasoner, build_program(Stack(source, dialect, limits(reasoner.settings), GEOMETRY), (EOS,), rows)


USUAL = {"ort": ("one token", "soft mix", "routed twice in every layer"), "standard": ("shared positions, routed",)}
"""What the default tests try."""


@pytest.mark.parametrize(
    ("case", "dialect"),
    [
        pytest.param(case, dialect, marks=() if case in usual else pytest.mark.slow)
        for dialect, usual in USUAL.items()
        for case in CASES
    ],
)
def test_program_equals_torch(case: str, dialect: str) -> None:
    reasoner, program = deep_program(case, Target(dialect=dialect))  # pyright: ignore
    runner = Runner(program)
    for one in PROMPTS.values():
        assert_equal(reasoner, runner, one, fixed=True)
