"""benchmarks/perplexity.py: torch and the program agree on the same tokens, and transformers says the same of them."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import perplexity
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.trail import trail_set
from lrkit.errors import UserError
from lrkit.export.bundle import export_bundle
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from tests.bundles import QUESTION, TARGET, processor
from tests.tiny import tiny_reasoner

TEXT = f"{QUESTION}\n" * 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent reasoner that routes nothing."""
    settings = ReasonerSettings.model_validate({"think": {"max_latent_steps": 2, "halting": "fixed"}})
    folder = tmp_path_factory.mktemp("perplexity") / "model"
    save_checkpoint(folder, tiny_reasoner(settings), processor(), base=None, info={"stage": "latent"})
    return folder


def test_a_checkpoint_and_its_program_have_the_perplexity_that_transformers_gives(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", TARGET, trail_set("main", "test", 2), baselines=False
    ).folder
    (tmp_path / "text.txt").write_text(TEXT)
    files = ("--text", tmp_path / "text.txt", "--json", tmp_path / "found.json")
    argv = ("perplexity.py", checkpoint, bundle, *files, "--tokens", 40, "--window", 16)
    monkeypatch.setattr(sys, "argv", [str(one) for one in argv])
    perplexity.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"model", "bundle"} and found["bundle"] == pytest.approx(found["model"], rel=1e-5)
    assert found["model"] == pytest.approx(_by_transformers(checkpoint, 40, 16), rel=1e-5)


def _by_transformers(folder: Path, tokens: int, window: int) -> float:
    """From the losses of the model itself, which shifts the labels."""
    ids = processor().tokenizer.encode(TEXT).ids[:tokens]
    reasoner = load_checkpoint(folder, dtype=torch.float32).reasoner
    model: Any = reasoner.backbone.model
    lost, count = 0.0, 0
    for start in range(0, tokens, window):
        part = torch.tensor([ids[start : start + window]])
        with torch.inference_mode():
            lost += float(model(input_ids=part, labels=part).loss) * (part.shape[1] - 1)
        count += part.shape[1] - 1
    return math.exp(lost / count)


def test_what_has_no_single_perplexity_and_a_short_text_are_one_sentence(bundle: Path) -> None:
    with pytest.raises(UserError, match="routes or prunes depends on how many tokens are read at once"):
        perplexity.of_program(bundle, None)
    with pytest.raises(UserError, match=r"the text has .* tokens, and 6144 were asked for; give fewer"):
        perplexity.windows_of(processor(), TEXT, 6144, 512)


def test_a_wrong_path_is_one_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    for model, text in (("nowhere", "text.txt"), ("tiny", "none.txt")):
        monkeypatch.setattr(sys, "argv", ["perplexity.py", model, "--text", str(tmp_path / text)])
        with pytest.raises(SystemExit, match="2"):
            perplexity.main()
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("perplexity.py: error: ") and "; " in said
