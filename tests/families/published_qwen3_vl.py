"""Qwen3-VL's case, with tiny checkpoints in the layouts in which the family is published.

What is as published: names of files, keys of config.json, 151,936 rows of bfloat16 over a tokenizer of 151,669 tokens,
special tokens and their ids, class names, the rules of the chat template, the list of end tokens, the limits of
pictures (of one variant), shards with an index. What is not: the sizes, the weights (random) and the merges.
"""

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from lrkit.families.qwen3_vl.geometry import Qwen3VLPatches
from lrkit.model.open_backbone import no_progress_bars
from tests.families.byte_level import Added, Vocabulary, special, write_tokenizer_files
from tests.families.cases import FamilyCase, Peer

Files = Literal["published", "new"]

ROWS = 151_936
"""Of the embedding: more than the tokenizer has tokens."""
_PLAIN = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Added tokens that a decoder does not leave out."""
VOCABULARY = Vocabulary(
    entries=151_643,
    added=(
        *special((
            "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
            "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
            "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
        )),
        *(Added(name, special=False) for name in _PLAIN),
    ),
)  # fmt: skip
IDS = VOCABULARY.ids
LIMITS = {"longest_edge": 16_777_216, "shortest_edge": 65_536}
"""Pixels, as published."""
SMALL_LIMITS = {"longest_edge": 64 * 1024, "shortest_edge": 1024}
"""One to 64 visual tokens."""
CHAT_TEMPLATE = """\
{%- macro said(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + said(messages[0].content) + '<|im_end|>\\n' }}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif 'text' in part %}
                    {{- part.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + said(message.content) + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""No system prompt but the one that is given."""
_PREPROCESSOR = {
    "size": LIMITS, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}  # fmt: skip
_GENERATION = {
    "bos_token_id": IDS["<|endoftext|>"], "pad_token_id": IDS["<|endoftext|>"], "do_sample": True,
    "eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]], "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.0,
    "temperature": 0.7, "transformers_version": "4.56.0",
}  # fmt: skip


def write_published(
    folder: Path, files: Files = "published", tied: bool = True, shard: str = "1GB", seed: int = 0,
    limits: dict[str, int] = SMALL_LIMITS, layers: int = 3, deep: tuple[int, ...] = (0, 1), table: int = 49,
) -> Path:  # fmt: skip
    """A checkpoint of random weights. `published`: config.json as transformers 4.57 wrote it, preprocessor_config.json,
    chat_template.json; `new`: config.json, processor_config.json and chat_template.jinja as transformers 5 writes them.
    `shard` is the largest file; `deep` the tower's layers that give features, of three; `table` its learnt positions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(tied, layers, deep, table)
    with no_progress_bars():
        random_model(config, seed).bfloat16().save_pretrained(folder, max_shard_size=shard)
    if files == "published":
        _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _GENERATION)
    write_tokenizer_files(folder, VOCABULARY, _tokenizer_config())
    image = {**_PREPROCESSOR, "size": limits}
    if files == "published":
        _write_json(folder / "preprocessor_config.json", image)
        _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        name = image.pop("processor_class")
        _write_json(folder / "processor_config.json", {"image_processor": image, "processor_class": name})
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def random_model(config: dict[str, Any], seed: int) -> Qwen3VLForConditionalGeneration:
    """Random weights, larger than usual, so that choices are clear, and norms that are not all alike."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**copy.deepcopy(config))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed" in name and "patch" not in name else 0.12)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _config(tied: bool, layers: int, deep: tuple[int, ...], table: int) -> dict[str, Any]:
    """config.json as published. All heads together are wider than the hidden state, as in the model of 4B."""
    text = {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": IDS["<|endoftext|>"], "dtype": "bfloat16",
        "eos_token_id": IDS["<|im_end|>"], "head_dim": 32, "hidden_act": "silu", "hidden_size": 64,
        "initializer_range": 0.02, "intermediate_size": 128, "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text", "num_attention_heads": 4, "num_hidden_layers": layers, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": tied, "use_cache": True, "vocab_size": ROWS,
    }  # fmt: skip
    vision = {
        "deepstack_visual_indexes": list(deep), "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 72, "model_type": "qwen3_vl", "num_heads": 2,
        "num_position_embeddings": table, "out_hidden_size": 64, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }  # fmt: skip
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": IDS["<|image_pad|>"],
        "model_type": "qwen3_vl", "text_config": text, "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0", "video_token_id": IDS["<|video_pad|>"], "vision_config": vision,
        "vision_end_token_id": IDS["<|vision_end|>"], "vision_start_token_id": IDS["<|vision_start|>"],
    }  # fmt: skip


def _tokenizer_config() -> dict[str, Any]:
    names = [token.content for token in VOCABULARY.added if token.special and token.content != "<|endoftext|>"]
    return {
        "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": names, "bos_token": None,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "errors": "replace", "model_max_length": 262144, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


CASE = FamilyCase(
    name="qwen3_vl",
    variants={
        "published files": lambda folder: write_published(folder, seed=5),
        "new files, untied, in shards": lambda folder: write_published(
            folder, "new", tied=False, shard="8MB", seed=1, limits=LIMITS, layers=4, deep=(0, 1, 2), table=2304
        ),
    },
    peer=Peer(model="Qwen3VLForConditionalGeneration", processor="Qwen3VLProcessor"),
    geometries={
        "published": Qwen3VLPatches(
            patch_size=16,
            min_pixels=65_536,
            max_pixels=16_777_216,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
        ),
        "small": Qwen3VLPatches(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096),
    },
    sizes=((32, 32), (256, 256), (255, 257), (4100, 4090), (1, 200)),
    refused=((1, 201), (5000, 20)),
)
