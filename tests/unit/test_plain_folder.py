"""A plain Hugging Face folder is a checkpoint without latents: asked, validated, evaluated, exported, profiled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import Qwen2VLForConditionalGeneration
from typer.testing import CliRunner

from lrkit import Reasoner
from lrkit.checkpoints.whole_weights import extra_shapes
from lrkit.cli.main import app
from lrkit.errors import UserError
from lrkit.export.subject import CheckpointSubject
from lrkit.export.weights.source import read_source
from lrkit.export.weights.streaming import stream_source
from lrkit.families.table import read_layout
from lrkit.model.build import extra_state
from lrkit.model.checkpoint import copy_checkpoint, load_checkpoint, save_checkpoint
from lrkit.model.open_backbone import config_of
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint
from tests.lab import rich_reasoner, settings
from tests.published import IDS, write_drawn_samples
from tests.unit.test_checkpoint import Files

QUESTION = "How many squares are there?"


@pytest.fixture(scope="module")
def reasoner(published: Path) -> Reasoner:
    return Reasoner.from_checkpoint(published)


def test_it_is_found_where_checkpoints_are_and_is_whole(published: Path, published_new: Path) -> None:
    for folder in (published, published_new):
        assert resolve_checkpoint(folder) == folder
        report = check_checkpoint(folder)
        assert report.problems == [] and report.plain


def test_it_answers_as_transformers_does(published: Path, reasoner: Reasoner, tmp_path: Path) -> None:
    """In bfloat16 as published, in the mode cot, with a picture."""
    picture = write_drawn_samples(tmp_path, 1).parent / "0.png"
    answer = reasoner.ask(picture, QUESTION, "cot", max_new_tokens=6)
    assert reasoner.engine.dtype == "bfloat16"
    model = Qwen2VLForConditionalGeneration.from_pretrained(published, dtype=torch.bfloat16).eval()
    prompt = reasoner.processor.encode_prompt([picture], QUESTION)
    ids = torch.tensor([prompt.ids])
    assert prompt.pixel_values is not None
    with torch.no_grad():
        theirs = model.generate(
            input_ids=ids,
            pixel_values=torch.from_numpy(prompt.pixel_values),
            image_grid_thw=torch.tensor(prompt.grids),
            mm_token_type_ids=(ids == IDS["<|image_pad|>"]).int(),
            max_new_tokens=6,
            do_sample=False,
        )
    assert answer.text == reasoner.processor.decode(theirs[0, len(prompt.ids) :].tolist())
    assert answer.latent_steps == 0


def test_latents_are_refused_in_a_sentence_that_says_how_to_get_them(reasoner: Reasoner) -> None:
    for ask in (lambda: reasoner.ask(None, QUESTION), lambda: reasoner.baseline("latent")):
        with pytest.raises(UserError, match=r"no latents.*cot or direct.*lrkit train"):
            ask()


def test_an_answer_ends_at_any_of_the_end_tokens(reasoner: Reasoner) -> None:
    """Qwen2-VL's list of end tokens has two; the second was spoken on."""
    said = reasoner.ask(None, QUESTION, "cot", max_new_tokens=4)
    first = reasoner.engine.generate([reasoner.processor.encode_prompt([], QUESTION)], _options(max_new_tokens=1))[
        0
    ].token_ids[0]
    own = reasoner.processor.end_ids
    assert own == (IDS["<|im_end|>"], IDS["<|endoftext|>"]) and said.spoken_tokens == 4
    reasoner.processor.end_ids = (own[0], first)
    try:
        assert reasoner.ask(None, QUESTION, "cot", max_new_tokens=4).spoken_tokens == 0
    finally:
        reasoner.processor.end_ids = own


def _options(**values: Any) -> Any:
    from lrkit.runtime.engines.common.protocol import AskOptions

    return AskOptions("cot", **values)


def test_verbs_take_it(published: Path, tmp_path: Path) -> None:
    data = str(write_drawn_samples(tmp_path, 2))
    run: Callable[[list[str]], Any] = lambda words: CliRunner().invoke(app, words)  # noqa: E731
    counted = run(["validate", data, "--checkpoint", str(published), "--json", str(tmp_path / "v.json")])
    assert counted.exit_code == 0, counted.output
    assert "prompt tokens" in json.dumps(json.loads((tmp_path / "v.json").read_text())["lengths"]).replace("_", " ")
    few = ["--data", data, "--max-new-tokens", "2", "--latency-samples", "0", "--json", str(tmp_path / "e.json")]
    evaluated = run(["eval", str(published), *few])
    assert evaluated.exit_code == 0, evaluated.output
    assert list(json.loads((tmp_path / "e.json").read_text())["modes"]) == ["cot", "direct"]


def test_its_export_has_the_roles_cot_and_direct_of_one_origin(published: Path, published_new: Path) -> None:
    origins = CheckpointSubject(published).origins(True)
    assert list(origins) == ["cot", "direct"] and origins["cot"] == origins["direct"]
    for folder in (published, published_new):
        streamed, loaded = stream_source(folder), read_source(load_checkpoint(folder, dtype=torch.float32).reasoner)
        for role in ("embedding", "head", "0.qkv", "1.down"):
            assert (streamed.weight(role) == loaded.weight(role)).all(), role


def test_a_copy_of_it_is_it(published: Path, tmp_path: Path) -> None:
    copy_checkpoint(published, tmp_path / "copy")
    names = {file.name for file in published.iterdir()}
    assert {file.name for file in (tmp_path / "copy").iterdir()} == names


def test_weights_by_config_are_those_of_the_real_model(published: Path, published_new: Path) -> None:
    """The torch-free list of names and shapes, against transformers' own model."""
    for folder in (published, published_new, resolve_checkpoint("tiny/base")):
        layout = read_layout(folder)
        with init_empty_weights():
            model = Qwen2VLForConditionalGeneration(config_of(layout))
        real = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if layout.tied:
            real.pop("lm_head.weight")
        assert real == dict(layout.tensors)


SETTINGS: list[dict[str, Any]] = [
    {}, {"think": {"latent_scale": "learned"}}, {"routing": {"depth": 2, "alpha": 4}},
    {"routing": {"depth": 1, "router": "mlp", "layers": "all"}},
    {"distill": {"weight": 1.0}, "replay": {"num_tokens": 3}},
    {"distill": {"weight": 0.5, "head": "mlp"}, "replay": {"num_tokens": 3}, "routing": {"depth": 1, "layers": [0, 3]}},
]  # fmt: skip


@pytest.mark.parametrize("chosen", SETTINGS)
@pytest.mark.parametrize("tied", [True, False])
def test_extras_by_settings_are_those_of_the_real_reasoner(chosen: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    real = rich_reasoner(settings(**chosen), tied=tied, trainable="full")
    save_checkpoint(tmp_path / "c", real, Files(), None, {})
    expected = dict(extra_shapes(real.settings, read_layout(tmp_path / "c")))
    assert {name: tuple(tensor.shape) for name, tensor in extra_state(real).items()} == expected


def test_a_model_whose_tokenizer_fills_the_embedding_is_asked_and_cannot_be_trained(tmp_path: Path) -> None:
    """There is no row for a latent token, and none is needed to ask."""
    base = Path(shutil.copytree(resolve_checkpoint("tiny/base"), tmp_path / "full"))
    for name in ("reasoner.json", "lrkit.safetensors"):
        (base / name).unlink()
    prompt = json.loads((base / "prompt.json").read_text())
    prompt["tokens"]["latent"] = "<|another|>"
    (base / "prompt.json").write_text(json.dumps(prompt))
    opened = Reasoner.from_checkpoint(base)
    assert opened.processor.latent_id == read_layout(base).vocabulary
    assert opened.ask(None, "Take 4 hops.", "direct", max_new_tokens=2).spoken_tokens == 2
