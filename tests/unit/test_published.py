"""The tiny published checkpoints are what they say: transformers opens them, ids and prompts are Qwen2-VL's."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoTokenizer

from lrkit.data.jsonl import check_jsonl
from lrkit.runtime.encode.processor import Processor
from tests.published import IDS, LATENT_ID, VOCABULARY, write_drawn_samples


@pytest.fixture(params=["published", "published_new"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_transformers_opens_the_weights_whole(folder: Path):
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY
    assert str(model.dtype) == "torch.bfloat16"
    assert (folder / "model.safetensors.index.json").is_file() is ("new" in folder.name)


def test_ids_are_qwens_in_both_libraries(folder: Path):
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [ours.token_to_id(token) for token in IDS] == list(IDS.values()) == list(range(151_643, 151_657))
    for text in ("How many squares are there?", "  tabs\tand\r\nlines 12345", "请描述 ÄÖ🙂", "<|im_start|>user\n"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert len(ours.encode("How many squares are there?").ids) < 10


def test_prompt_is_qwens(folder: Path):
    processor = Processor.from_folder(folder)
    assert processor.latent_id == LATENT_ID
    assert processor.format.template.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>"
    )
    assert processor.geometry.max_pixels == 12_845_056
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [151_645, 151_643]


def test_drawn_samples_are_whole(published: Path, tmp_path: Path):
    scan = check_jsonl(write_drawn_samples(tmp_path / "data", 5), Processor.from_folder(published))
    assert len(scan.samples) == 5 and not scan.num_bad_lines
