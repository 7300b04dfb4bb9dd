"""Fine replay in programs: a latent step reads the windows that it looks at, by the tower, inside the loop."""

import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.export.targets.target import Target
from tests.programs import Runner, assert_equal, build
from tests.tiny import prompt, tiny_reasoner, with_windows

PROMPTS = {
    "one image": prompt(1),
    "no image": prompt(2, grids=()),
    "two images": prompt(3, grids=((1, 4, 4), (1, 2, 6))),
}
REPLAYS = {
    "one window of 4": {"num_tokens": 1},
    "3 windows of 4, the last run out": {"num_tokens": 3},
    "2 windows of 9": {"num_tokens": 2, "zoom": 3, "weighting": "softmax"},
    "soft mix": {"num_tokens": 2, "formation": "soft_mix"},
    "shared positions": {"num_tokens": 2, "positions": "shared"},
}
ROUTING = {"depth": 2, "alpha": 6, "threshold": 0.45, "layers": "all"}


def settings(replay: dict, routing: dict | None = None, **think) -> ReasonerSettings:
    return ReasonerSettings(
        think={"max_latent_steps": 3, **think}, replay={"source": "fine", **replay}, routing=routing or {},
        distill={"weight": 0.0},
    )  # fmt: skip


def asked(chosen: ReasonerSettings) -> dict:
    return {name: with_windows(one, chosen.replay.zoom) for name, one in PROMPTS.items()}


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("name", REPLAYS)
def test_replay(name, dialect):
    chosen = settings(REPLAYS[name])
    reasoner = tiny_reasoner(chosen)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in asked(chosen).values():
        assert_equal(reasoner, runner, one, fixed=True)


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_routing(dialect):
    chosen = settings({"num_tokens": 2}, ROUTING)
    reasoner = tiny_reasoner(chosen)
    runner = Runner(build(reasoner, Target(dialect=dialect)))
    for one in asked(chosen).values():
        assert_equal(reasoner, runner, one, fixed=True)
