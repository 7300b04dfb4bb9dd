"""The layouts of a program's caches: a dialect takes one by its row, and the same writer answers alike with either.

Once booleans said which layout was meant, in fourteen places of one file.
"""

import re
from pathlib import Path
from typing import get_args

import pytest

from lrkit.contract.bundle.manifest import Dialect
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph import dialects
from lrkit.export.graph.dialects import DIALECTS, DialectParts
from lrkit.export.graph.ort_writer import OrtWriter
from lrkit.export.graph.separate_caches import SeparateCaches
from lrkit.export.targets.target import Target
from tests.programs import Runner, assert_equal, build
from tests.tiny import prompt, tiny_reasoner

PROMPTS = (prompt(3, grids=((1, 4, 4), (1, 2, 6))), prompt(6, grids=((1, 2, 2),), length=2), prompt(5, grids=()))
"""Seven visual tokens, one, and none."""
SETTINGS = {
    "no steps": {"think": {"max_latent_steps": 0}},
    "one token": {"replay": {"num_tokens": 1}},
    "many tokens, routed": {"replay": {"num_tokens": 5}, "routing": {"depth": 2, "alpha": 4}},
    "shared positions": {"replay": {"num_tokens": 3, "positions": "shared"}, "routing": {"depth": 1, "alpha": 3}},
}


def test_every_dialect_has_a_row():
    assert set(DIALECTS) == set(get_args(get_args(Dialect)[0]))


def test_no_file_of_the_graph_asks_which_dialect_it_is():
    asked = re.compile(r"dialect\s*(==|!=|in\b)|[\"'](ort|standard)[\"']")
    files = Path(dialects.__file__).parent.glob("*.py")
    code = {file.name: re.sub(r'""".*?"""', "", file.read_text(encoding="utf-8"), flags=re.S) for file in files}
    assert [name for name, text in code.items() if asked.search(text)] == ["dialects.py"]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_fused_writer_answers_alike_with_separate_caches(name, monkeypatch):
    settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}} | SETTINGS[name])
    reasoner = tiny_reasoner(settings)
    joined = Runner(build(reasoner, Target(dialect="ort")))
    monkeypatch.setitem(DIALECTS, "ort", DialectParts(OrtWriter, SeparateCaches))
    separate = Runner(build(reasoner, Target(dialect="ort")))
    nodes = [len(list(runner.program.model.graph.all_nodes())) for runner in (joined, separate)]
    assert nodes[0] < nodes[1], "joined caches are there to spare nodes"
    for one in PROMPTS:
        for runner in (joined, separate):
            assert_equal(reasoner, runner, one, fixed=settings.think.max_latent_steps > 0)
