"""tiny/closer, which reads a small picture and looks closer: what ships answers, in torch and as an int4 program, and
only with the windows that it chooses."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lrkit import Reasoner
from lrkit.data.trail import trail_set
from lrkit.errors import UserError
from lrkit.pictures.load import load_image
from lrkit.probe.looking_closer import LookingCloser, show_looking_closer
from tests.commands import lrkit

pytest.importorskip("sklearn")
BOARDS = 24


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner.from_checkpoint("tiny/closer")


@pytest.fixture(scope="module")
def shown(reasoner: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> LookingCloser:
    return show_looking_closer(reasoner, tmp_path_factory.mktemp("shown"), BOARDS)


def test_it_is_right_with_its_windows_and_lost_with_others(shown: LookingCloser) -> None:
    assert sum(shown.right) >= BOARDS - 2 and sum(shown.right_at_random) <= BOARDS / 2
    assert (shown.visual_tokens, shown.window_tokens) == (10, 4)
    assert shown.example.answer == shown.expected and shown.example.latent_steps == 4
    assert shown.example.read_sizes == ((80, 32),) and shown.example.replayed_tokens == 16
    with Image.open(shown.picture) as picture, Image.open(shown.trace) as trace:
        assert picture.size == (160, 64) and trace.width > picture.width


def test_a_model_that_does_not_look_closer_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give one with replay\.source fine"):
        show_looking_closer(Reasoner.from_checkpoint("tiny"), tmp_path, 1)


def test_verbs_take_its_name(tmp_path: Path, shown: LookingCloser) -> None:
    asked = ["--image", str(shown.picture), "--json", str(tmp_path / "a.json")]
    assert lrkit("ask", "tiny/closer", shown.example.question, *asked) == 0
    assert json.loads((tmp_path / "a.json").read_text())["answer"] == shown.expected
    few = ["--data", "trail:woven", "--samples", "8", "--modes", "latent", "--latency-samples", "0"]
    assert lrkit("eval", "tiny/closer", *few, "--json", str(tmp_path / "e.json")) == 0
    assert json.loads((tmp_path / "e.json").read_text())["modes"]["latent"]["accuracy"] >= 0.8


@pytest.mark.long
def test_its_int4_program_answers_as_torch_does(reasoner: Reasoner, shown: LookingCloser, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    few = ["--data", "trail:woven", "--samples", "8", "--allow-unproven"]
    assert lrkit("export", "tiny/closer", "--int4", "--form", "step", *few, "-o", str(tmp_path / "closer")) == 0
    program = Reasoner.load(tmp_path / "closer", threads=1)
    found = show_looking_closer(program, tmp_path, BOARDS)
    assert sum(found.right) >= BOARDS - 2 and sum(found.right_at_random) <= BOARDS / 2
    assert (found.example.text, found.example.regions) == (shown.example.text, shown.example.regions)
    for sample in trail_set("woven", "test", 4, seed=7):
        picture = load_image(sample.images[0])
        one, other = (each.ask(picture, sample.question) for each in (program, reasoner))
        assert (one.answer, one.latent_steps) == (other.answer, other.latent_steps)
