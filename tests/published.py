"""Tiny Qwen2-VL checkpoints in the layouts in which the family is published, and drawn samples to train them on.

What is as published: names of files, keys of config.json, 151,936 rows of bfloat16 over a tokenizer of 151,657 tokens,
special tokens and their ids, class names, the chat template, the list of end tokens, the limits of pictures, shards
with an index. What is not: the sizes, the weights (random) and the merges (a few hundred, learnt from the text below;
the other entries of the vocabulary are fillers that no text is split into).
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lrkit.model.open_backbone import no_progress_bars
from tests.families.byte_level import Vocabulary, special, write_tokenizer_files

Layout = Literal["old", "new"]

VOCABULARY = 151_936
"""Rows of the embedding: more than the tokenizer has tokens, as published."""
BASE_ENTRIES = 151_643
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""In the order of their ids, from `BASE_ENTRIES`."""
IDS = {token: BASE_ENTRIES + index for index, token in enumerate(SPECIAL_TOKENS)}
LATENT_ID = BASE_ENTRIES + len(SPECIAL_TOKENS)
"""The id that <|latent|> gets: the first free one."""
MAX_PIXELS = 12_845_056
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content "
    "%}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
_PREPROCESSOR = {
    "min_pixels": 3136, "max_pixels": MAX_PIXELS, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
}  # fmt: skip
_GENERATION = {
    "bos_token_id": IDS["<|endoftext|>"], "pad_token_id": IDS["<|endoftext|>"], "do_sample": True,
    "eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]], "repetition_penalty": 1.0, "temperature": 0.01,
    "top_p": 0.001, "top_k": 1, "transformers_version": "4.37.0",
}  # fmt: skip


def write_published(
    folder: Path,
    layout: Layout = "old",
    tied: bool = True,
    shard: str = "1GB",
    layers: int = 2,
    width: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    embedding: float = 0.5,
) -> Path:
    """A checkpoint of random weights. `shard` is the largest file (as "8MB": several with an index); `width` a multiple
    of 64; `embedding` the deviation of the rows of tokens: where it is large, a tied model repeats one token.

    `old`: preprocessor_config.json, chat_template.json, flat config.json. `new`: processor_config.json,
    chat_template.jinja, config.json with text_config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(_config(tied, layers, width))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # larger than usual, so that choices are clear
                parameter.normal_(0.0, embedding if "embed_tokens" in name else 0.12)
    with no_progress_bars():
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    if layout == "old":
        _write_json(folder / "config.json", _flat_config(tied, layers, width, dtype))
    _write_json(folder / "generation_config.json", _GENERATION)
    write_tokenizer(folder, with_template=layout == "old")
    _write_image_files(folder, layout)
    return folder


def _config(tied: bool, layers: int, width: int) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _mrope(width)},
            "bos_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"],
        },
        vision_config=_vision_config(width),
        image_token_id=IDS["<|image_pad|>"], video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
        tie_word_embeddings=tied,
    )  # fmt: skip


def _flat_config(tied: bool, layers: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as transformers 4.41 wrote it."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0,
        "bos_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"],
        "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"],
        "vision_token_id": IDS["<|vision_pad|>"], "image_token_id": IDS["<|image_pad|>"],
        "video_token_id": IDS["<|video_pad|>"], "hidden_act": "silu", "hidden_size": width,
        "initializer_range": 0.02, "intermediate_size": 2 * width, "max_position_embeddings": 32768,
        "max_window_layers": layers, "model_type": "qwen2_vl", "num_attention_heads": 4, "num_hidden_layers": layers,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": tied, "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
        "vision_config": _vision_config(width), "rope_scaling": {"type": "mrope", "mrope_section": _mrope(width)},
        "vocab_size": VOCABULARY,
    }  # fmt: skip


def _mrope(width: int) -> list[int]:
    eighth = width // 64
    return [2 * eighth, 3 * eighth, 3 * eighth]  # of the half of a head, as 16, 24, 24 of 64


def _vision_config(width: int) -> dict[str, Any]:
    return {
        "depth": 2, "embed_dim": 32, "mlp_ratio": 4, "num_heads": 2, "in_chans": 3, "hidden_size": width,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    }  # fmt: skip


def write_tokenizer(folder: Path, with_template: bool = True) -> None:
    """tokenizer.json and tokenizer_config.json; `with_template` puts the chat template into the latter too."""
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in ("<|endoftext|>",)],
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 32768, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "padding_side": "left", "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    if with_template:
        config["chat_template"] = CHAT_TEMPLATE
        _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    else:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_tokenizer_files(folder, Vocabulary(BASE_ENTRIES, special(SPECIAL_TOKENS)), config)


def _write_image_files(folder: Path, layout: Layout) -> None:
    if layout == "old":
        _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
        return
    image = {key: value for key, value in _PREPROCESSOR.items() if not key.endswith(("_pixels", "_class"))}
    image["size"] = {"shortest_edge": 3136, "longest_edge": MAX_PIXELS}
    _write_json(
        folder / "processor_config.json",
        {"image_processor": image, "processor_class": _PREPROCESSOR["processor_class"]},
    )


def write_drawn_samples(folder: Path, count: int = 8, seed: int = 0, size: tuple[int, int] = (112, 84)) -> Path:
    """Pictures of coloured squares with questions, steps and answers, and the JSONL file that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    names = ("red", "green", "blue", "yellow")
    lines: list[str] = []
    for index in range(count):
        picture = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(picture)
        shown = [names[int(generator.integers(len(names)))] for _ in range(int(generator.integers(1, 4)))]
        for place, colour in enumerate(shown):
            draw.rectangle((8 + 34 * place, 20, 34 + 34 * place, 46), fill=colour)
        picture.save(folder / f"{index}.png")
        sample = {
            "image": f"{index}.png",
            "question": "How many squares are there?",
            "steps": [f"The {colour} one is a square." for colour in shown],
            "answer": str(len(shown)),
            "id": str(index),
        }
        lines.append(json.dumps(sample))
    file = folder / "samples.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
