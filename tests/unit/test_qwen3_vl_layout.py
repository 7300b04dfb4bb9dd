"""What lrkit reads of Qwen3-VL's config.json: both forms of it, and what it refuses."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3VLConfig

from lrkit.data.shapes import load_shape
from lrkit.errors import CheckpointError
from lrkit.families.layout import Layout
from lrkit.families.table import read_layout


def published(name: str = "qwen3-vl-4b") -> dict[str, Any]:
    return copy.deepcopy(load_shape(name).config)


def layout_of(values: dict[str, Any], folder: Path) -> Layout:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return read_layout(folder)


@pytest.mark.parametrize("name", ["qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b"])
def test_the_form_of_transformers_5_is_read_as_the_published_one(name: str, tmp_path: Path) -> None:
    before = layout_of(published(name), tmp_path)
    written = Qwen3VLConfig(**published(name)).to_dict()
    assert "rope_parameters" in written["text_config"] and "rope_scaling" not in written["text_config"]
    after = layout_of(written, tmp_path)
    assert (after.tensors, after.adapted, after.tied, after.cut) == (
        before.tensors, before.adapted, before.tied, before.cut,
    )  # fmt: skip
    assert before.tied is (name != "qwen3-vl-8b")
    handed = Qwen3VLConfig(**copy.deepcopy(dict(before.config))).to_dict()
    again = Qwen3VLConfig(**copy.deepcopy(dict(after.config))).to_dict()
    for part in ("text_config", "vision_config"):
        assert handed[part] == again[part]
        assert {**written[part], "dtype": None, "tie_word_embeddings": None} == {
            **handed[part], "dtype": None, "tie_word_embeddings": None
        }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("text_config", "head_dim", 64, r"mrope_section \[24, 20, 20\] does not add up to half the width of a head"),
        ("text_config", "num_key_value_heads", 7, "7 key heads do not divide"),
        ("text_config", "attention_bias", True, "attention_bias"),
        ("text_config", "rope_scaling", None, "there are no rotary sections"),
        ("text_config", "num_hidden_layers", 2, "features for 3 layers, and the language model has 2"),
        ("vision_config", "deepstack_visual_indexes", [5, 17, 11], r"\[5, 17, 11\] are not layers of a tower of 24"),
        ("vision_config", "deepstack_visual_indexes", [5, 24], r"\[5, 24\] are not layers"),
        ("vision_config", "deepstack_visual_indexes", [-1, 5], r"\[-1, 5\] are not layers"),
        ("vision_config", "deepstack_visual_indexes", [5, 5], r"\[5, 5\] are not layers"),
        ("vision_config", "out_hidden_size", 2048, "tokens of width 2048, the language model takes 2560"),
        ("vision_config", "num_heads", 48, "1024 and its 48 heads do not divide"),
        ("vision_config", "num_position_embeddings", 0, "num_position_embeddings"),
        ("vision_config", "hidden_act", "silu", "hidden_act"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    part: str, key: str, value: Any, said: str, tmp_path: Path
) -> None:  # fmt: skip
    values = published()
    values[part][key] = value
    with pytest.raises(CheckpointError, match=said) as caught:
        layout_of(values, tmp_path)
    assert "\n" not in str(caught.value)


def test_axes_that_do_not_interleave_are_refused_because_transformers_would_interleave_them(tmp_path: Path) -> None:
    values = published()
    values["text_config"]["rope_scaling"]["mrope_interleaved"] = False
    with pytest.raises(CheckpointError, match="mrope_interleaved"):
        layout_of(values, tmp_path)


def test_a_model_with_experts_is_named_with_the_families_that_there_are(tmp_path: Path) -> None:
    values = {**published(), "model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"]}
    with pytest.raises(CheckpointError, match="qwen3_vl_moe") as caught:
        layout_of(values, tmp_path)
    assert " qwen3_vl" in str(caught.value) and "\n" not in str(caught.value)
