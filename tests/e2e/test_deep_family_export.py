"""A family whose image tokens add features behind the first layers, whose queries and keys have norms, and whose heads
are together wider than the hidden state: exported, and asked without torch. The fake family with its options.

An export compares logits, states and every spoken token with torch.
"""

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from lrkit import Reasoner
from lrkit.cli.main import main
from lrkit.contract.settings import ReasonerSettings
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import save_checkpoint
from tests.fake_family import installed
from tests.fake_family.backbone import RowwiseBackbone
from tests.fake_family.folder import rowwise_model, rowwise_processor, write_data

SETTINGS = ReasonerSettings.model_validate(
    {
        "think": {"max_latent_steps": 2, "halting": "fixed"},
        "replay": {"num_tokens": 4, "weighting": "softmax"},
        "routing": {"depth": 1, "alpha": 4},
        "distill": {"weight": 1.0},
    }
)
CASES = {
    "fp32": ("--target", "cpu-fp32"),
    "steps": ("--target", "cpu-fp32", "--form", "step", "--dialect", "standard"),
    "fp16": ("--target", "cpu-fp32", "precision=fp16"),
}
INT4 = {
    "int4": ("--int4", "int4.block=32", "int4.accuracy_level=0"),
    "int4-steps": ("--int4", "--dialect", "standard", "--form", "step", "int4.block=32"),
}


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A working folder with a checkpoint of random weights and data."""
    home = tmp_path_factory.mktemp("deep")
    with installed(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        processor = rowwise_processor()
        backbone = RowwiseBackbone(rowwise_model(processor, seed=5, deep=(1, 0), head_dim=16))
        assert backbone.attention.query_width == 64 and backbone.hidden_size == 32
        reasoner = build_reasoner(backbone, SETTINGS, processor.latent_id).eval()
        save_checkpoint(home / "trained", reasoner, processor, base=None, info={})
        write_data(home / "data")
        yield home


def export(name: str, *options: str) -> None:
    small = ("limits.max_images=2", "limits.max_new_tokens=6", "--data", "data/data.jsonl", "--samples", "5")
    with pytest.raises(SystemExit) as left:
        main(["export", "trained", *options, *small, "-o", name, "--allow-unproven", "--json", f"{name}.json"])
    assert not left.value.code


@pytest.mark.parametrize(
    "case", ["fp32", pytest.param("steps", marks=pytest.mark.slow), pytest.param("fp16", marks=pytest.mark.slow)]
)
def test_its_program_is_torchs_model_token_by_token(home: Path, case: str) -> None:
    export(case, *CASES[case])
    measured = json.loads(Path(f"{case}.json").read_text())["manifest"]["validation"]["latent"]["measured"]
    assert max(measured["prefill_logits"], measured["latent_states"]) < (2e-2 if case == "fp16" else 1e-5)
    assert set(measured["agreement"].values()) == {1.0} and "replayed tokens" in measured["agreement"]
    counted, on_torch = Reasoner.load(case).engine.counts(), Reasoner.from_checkpoint("trained").engine.counts()
    assert counted.weights["merger"] == on_torch.weights["merger"] == 3 * 24 * 32
    assert counted.weights["layers"] == on_torch.weights["layers"]


@pytest.mark.slow
def test_the_same_integers_give_the_same_answers_in_every_dialect_and_form(home: Path) -> None:
    answers = []
    for name, options in INT4.items():
        export(name, *options)
        reasoner = Reasoner.load(name)
        answers.append([reasoner.ask(f"data/{number}.png", "Which colour ?").text for number in range(8)])
    assert answers[0] == answers[1] and len(set(answers[0])) > 1
