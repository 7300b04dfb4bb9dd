"""Qwen2.5-VL's case: tiny checkpoints in the layouts in which the family is published.

What is as published: names of files and of weights, keys of config.json, 151,936 rows of bfloat16, tokens and their
ids, class names, the chat template, the list of end tokens, the limits of pictures. What is not: the sizes, the weights
(random), the merges of the tokenizer, and in the cheap variant the windows, which have two visual tokens a side instead
of four, so that small pictures have several.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from lrkit.families.qwen2_5_vl.geometry import WindowedPatches
from lrkit.model.open_backbone import no_progress_bars
from tests.families.byte_level import Added, Vocabulary, special, write_tokenizer_files
from tests.families.cases import FamilyCase, Peer
from tests.published import BASE_ENTRIES, SPECIAL_TOKENS, VOCABULARY

Layout = Literal["old", "new"]

_WORDS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
"""Added behind the special tokens; they are none."""
_TOKENS = Vocabulary(BASE_ENTRIES, (*special(SPECIAL_TOKENS), *(Added(word, special=False) for word in _WORDS)))
IDS = _TOKENS.ids
_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] "
    "== 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}"
    "Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content "
    "%}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
_PICTURES: dict[str, Any] = {
    "min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip
_GENERATION = {
    "bos_token_id": IDS["<|endoftext|>"], "pad_token_id": IDS["<|endoftext|>"], "do_sample": True,
    "eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]], "repetition_penalty": 1.05, "temperature": 0.000001,
    "transformers_version": "4.49.0",
}  # fmt: skip


def write_published(
    folder: Path,
    layout: Layout = "old",
    tied: bool = True,
    shard: str = "1GB",
    window: int = 56,
    width: int = 64,
    seed: int = 0,
) -> Path:
    """A checkpoint of random weights. `shard` is the largest file; `window` the side of a window in pixels; `width` a
    multiple of 64.

    `old`: names of weights, flat config.json and files as published. `new`: as transformers 5 writes a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**nested_config(tied, width, window)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # larger than usual, so that choices are clear
                parameter.normal_(0.0, 0.5 if "embed_tokens" in name else 0.12)
    with no_progress_bars():
        model.bfloat16().save_pretrained(folder, max_shard_size=shard)
    if layout == "old":
        _write_json(folder / "config.json", flat_config(tied, width, window))
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_tokenizer(folder, layout)
    _write_picture_files(folder, layout)
    return folder


def nested_config(tied: bool, width: int, window: int) -> dict[str, Any]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id", "tie_word_embeddings")
    flat = flat_config(tied, width, window)
    outer = {"vision_config", "rope_scaling", "rope_theta", "architectures", "model_type", "torch_dtype", *names}
    inner = {key: value for key, value in flat.items() if key not in outer}
    inner["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _mrope(width)}
    vision = {
        key: value for key, value in flat["vision_config"].items() if key not in ("in_chans", "spatial_patch_size")
    }
    return {"text_config": inner, "vision_config": vision, **{name: flat[name] for name in names}}


def flat_config(tied: bool, width: int, window: int) -> dict[str, Any]:
    """config.json as transformers 4.41 wrote it."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0,
        "bos_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"],
        "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"],
        "vision_token_id": IDS["<|vision_pad|>"], "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"], "hidden_act": "silu", "hidden_size": width,
        "initializer_range": 0.02, "intermediate_size": 2 * width, "max_position_embeddings": 128000,
        "max_window_layers": 70, "model_type": "qwen2_5_vl", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 3, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 84, "num_heads": 2,
            "in_chans": 3, "out_hidden_size": width, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "window_size": window, "fullatt_block_indexes": [1], "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": _mrope(width)}, "vocab_size": VOCABULARY,
    }  # fmt: skip


def _mrope(width: int) -> list[int]:
    eighth = width // 64
    return [2 * eighth, 3 * eighth, 3 * eighth]  # of the half of a head, as 16, 24, 24 of 64


def _write_tokenizer(folder: Path, layout: Layout) -> None:
    config: dict[str, Any] = {
        "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    if layout == "old":
        config["chat_template"] = _CHAT_TEMPLATE
        _write_json(folder / "chat_template.json", {"chat_template": _CHAT_TEMPLATE})
    else:
        (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    write_tokenizer_files(folder, _TOKENS, config)


def _write_picture_files(folder: Path, layout: Layout) -> None:
    if layout == "old":
        _write_json(folder / "preprocessor_config.json", _PICTURES)
        return
    image = {key: value for key, value in _PICTURES.items() if not key.endswith(("_pixels", "_class"))}
    image["size"] = {"shortest_edge": _PICTURES["min_pixels"], "longest_edge": _PICTURES["max_pixels"]}
    values = {"image_processor": image, "processor_class": _PICTURES["processor_class"]}
    _write_json(folder / "processor_config.json", values)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


CASE = FamilyCase(
    name="qwen2_5_vl",
    variants={
        "old files": lambda folder: write_published(folder),
        "new files, untied, in shards, published windows": lambda folder: write_published(
            folder, "new", tied=False, shard="8MB", window=112, seed=1
        ),
    },
    peer=Peer(model="Qwen2_5_VLForConditionalGeneration", processor="Qwen2_5_VLProcessor"),
    geometries={
        "published": WindowedPatches(),
        "small windows": WindowedPatches(patch_size=4, min_pixels=64, max_pixels=4096, window_size=17),
        "not merged": WindowedPatches(patch_size=8, merge_size=1, min_pixels=64, max_pixels=9000, window_size=24),
    },
    sizes=((28, 28), (56, 56), (3600, 3570), (1, 200), (113, 225)),
    refused=((1, 201), (5000, 20)),
)
