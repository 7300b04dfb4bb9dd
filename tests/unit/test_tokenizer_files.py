"""Tokenizers in files: the latent token keeps its id in transformers, garbage is refused, control stays control."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrkit.errors import CheckpointError, DataError
from lrkit.runtime.encode.processor import Processor
from tests.published import LATENT_ID

TEXTS = (
    "How many squares are there?", "x<|latent|>y", "<|latent|><|latent|> <|latent|>\n", "  tabs\tand\r\n12345 ÄÖ 🙂",
    "请描述这张图片。<|im_end|>\n", "<|vision_start|><|image_pad|><|vision_end|>Why?", "it's WE'LL don't",
    "\u00a0\u200b", "e\u0301 ﬁ", "",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processor's files as a run writes them from a published folder."""
    folder = tmp_path_factory.mktemp("saved")
    Processor.from_folder(published).save(folder)
    return folder


def test_transformers_knows_the_latent_token_of_a_published_model(saved: Path) -> None:
    """It was lost: the base's own class builds its tokens from added_tokens_decoder, which did not list it."""
    ours, theirs = Processor.from_folder(saved), AutoTokenizer.from_pretrained(saved)
    assert ours.latent_id == LATENT_ID == theirs.convert_tokens_to_ids("<|latent|>")
    for text in TEXTS:
        ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|latent|>" not in theirs.decode([LATENT_ID], skip_special_tokens=True)
    assert theirs.chat_template is not None


def test_a_tokenizer_of_vocab_and_merges_is_the_same(published: Path, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "merges"))
    shutil.copy(published / "tokenizer_config.json", folder)
    model = json.loads((published / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()
    older, newer = Processor.from_folder(folder), Processor.from_folder(saved)
    assert older.latent_id == LATENT_ID
    assert [older.tokenizer.encode(text).ids for text in TEXTS] == [newer.tokenizer.encode(text).ids for text in TEXTS]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    from tests.unit.test_processor import word_processor

    word_processor().save(tmp_path)
    return tmp_path


GARBAGE: dict[str, str] = {
    "empty": "", "no JSON": "{", "null": "null", "a list": "[]", "deep": "[" * 100_000, "NUL": "\0" * 100,
    "another type": '{"version": 1}', "a model of no kind": '{"version": "1.0", "model": {"type": "Nope"}}',
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_one_sentence(small: Path, name: str) -> None:
    (small / "tokenizer.json").write_text(GARBAGE[name])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        Processor.from_folder(small)
    assert "\n" not in str(caught.value)


PLACES: list[tuple[str, Any]] = [
    ("model.vocab", {}), ("model.vocab", []), ("model.vocab", {"a": -1}), ("model.vocab", {"a": "b"}), ("model", None),
    ("added_tokens", [{"id": 3}]), ("added_tokens", [{"id": "x", "content": "y"}]), ("added_tokens", 5),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
    ("decoder", {"type": "Nope"}), ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    ("normalizer", 7), ("post_processor", {"type": "TemplateProcessing"}),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), PLACES)
def test_wrong_values_anywhere_are_refused_or_read_and_never_leak(small: Path, place: str, value: Any) -> None:
    """Some end in a panic of the tokenizers package, which is no Exception."""
    content = json.loads((small / "tokenizer.json").read_text())
    *parents, last = place.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    (small / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises((CheckpointError, DataError)) as caught:
        Processor.from_folder(small).encode_prompt([], "Take 4 hops.")
    assert "\n" not in str(caught.value)


def test_a_panic_while_loading_or_reading_becomes_one_sentence() -> None:
    from lrkit.runtime.encode.tokenizer_files import guarded

    class PanicException(BaseException):
        """As pyo3 names it; it is made by no call that is known to panic in every version."""

    with (
        pytest.raises(DataError, match=r"^text \(index out of bounds\); do this$"),
        guarded("text", DataError, "do this"),
    ):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), guarded("text", DataError, "do this"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "entry",
    [
        {"151657": {"content": ""}},
        {"x": {"content": "y"}},
        {"-1": {"content": "y"}},
        {"7": "y"},
        {"9" * 30: {"content": "y"}},
        [],
    ],
)
def test_added_tokens_of_another_type_are_one_sentence(small: Path, entry: Any) -> None:
    file = small / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "added_tokens_decoder": entry or [1]}))
    with pytest.raises(CheckpointError, match="added_tokens_decoder"):
        Processor.from_folder(small)


def test_two_tokens_of_one_id_are_found(small: Path) -> None:
    content = json.loads((small / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["Take"] = vocabulary["room"]
    (small / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="two tokens one id"):
        _ = Processor.from_folder(small).last_id


def flags_off(folder: Path) -> None:
    """A stranger's file, in which no token is special."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for token in config["added_tokens_decoder"].values():
        token["special"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_control_is_decided_by_what_lrkit_uses_not_by_a_flag(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "unflagged"))
    flags_off(folder)
    processor = Processor.from_folder(folder)
    for token in ("<|image_pad|>", "<|latent|>", "<|im_end|>", "<|im_start|>", "<|vision_end|>", "<|endoftext|>"):
        for question in (f"What is {token}?", token, f"a{token}{token}b"):
            with pytest.raises(DataError, match="which only the prompt format may use"):
                processor.encode_prompt([], question)
        with pytest.raises(DataError, match="the step holds"):
            processor.encode_speech([f"so {token}"], "7")


def test_control_that_the_tokenizer_makes_of_other_letters_is_refused(published: Path, tmp_path: Path) -> None:
    """A normalizer may turn harmless letters into a control token."""
    content = json.loads((published / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFKC"}
    for token in content["added_tokens"]:
        token["normalized"] = True
    shutil.copytree(published, tmp_path / "own", ignore=shutil.ignore_patterns("*.safetensors"))
    config = tmp_path / "own" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "added_tokens_decoder": {}}))
    (tmp_path / "own" / "tokenizer.json").write_text(json.dumps(content))
    processor = Processor.from_folder(tmp_path / "own")
    with pytest.raises(DataError, match="image_pad"):
        processor.encode_prompt([], "what is \uff1c|image_pad|\uff1e?")


def test_an_ordinary_word_is_no_control_whatever_its_flag(small: Path) -> None:
    content = json.loads((small / "tokenizer.json").read_text())
    index = content["model"]["vocab"]["room"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": index, "content": "room", **flags})
    content["added_tokens"].sort(key=lambda token: token["id"])
    (small / "tokenizer.json").write_text(json.dumps(content))
    assert Processor.from_folder(small).encode_prompt([], "Which room are you in ?").ids


def test_half_a_surrogate_is_one_sentence(saved: Path) -> None:
    with pytest.raises(DataError, match="cannot be split into tokens"):
        Processor.from_folder(saved).encode_prompt([], "a\ud800b")
