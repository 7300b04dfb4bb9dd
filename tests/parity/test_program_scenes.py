"""A look and an ask by one program against the whole prompt in one call: every number and every choice."""

import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.export.targets.target import Target
from tests.parity.test_program import REPLAYS, ROUTINGS, settings
from tests.programs import Runner, build
from tests.scenes import assert_parts_equal_whole
from tests.tiny import prompt, tiny_reasoner

PROMPTS = {"one image": prompt(1), "two images": prompt(3, grids=((1, 4, 4), (1, 2, 6)))}
QUICK = {("soft mix", "ort"), ("shared positions", "standard"), ("R 2, threshold", "standard"), ("rearranged", "ort")}


def cases(names: dict) -> list:
    """(name, dialect), the quick ones in the default run."""
    pairs = [(name, dialect) for name in names for dialect in ("ort", "standard")]
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long) for pair in pairs]


def check(made: ReasonerSettings, dialect: str) -> None:
    runner = Runner(build(tiny_reasoner(made), Target(dialect=dialect)))
    for one in PROMPTS.values():
        assert_parts_equal_whole(runner, one, fixed=True)


@pytest.mark.parametrize(("name", "dialect"), cases(REPLAYS))
def test_replay(name, dialect):
    check(settings(REPLAYS[name], {}), dialect)


@pytest.mark.parametrize(("name", "dialect"), cases(ROUTINGS))
def test_routing(name, dialect):
    check(settings({"num_tokens": 4}, ROUTINGS[name]), dialect)
