"""A tiny checkpoint of the fake family, as its makers would publish it, and data to train it on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lrkit.contract.prompt import PromptFormat
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.runtime.encode.processor import Processor
from tests.fake_family.geometry import RowwiseGeometry
from tests.fake_family.model import RowwiseConfig, RowwiseModel

WORDS = ("Which", "colour", "?", "It", "is", "red", "green", "blue", "First", "look", "then", "say")
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def rowwise_processor() -> Processor:
    """Words, the marker, the picture's text without anything around it."""
    geometry = RowwiseGeometry()
    tokenizer = build_word_tokenizer(WORDS, markers=geometry.markers)
    return Processor(tokenizer, geometry, PromptFormat(image="<|image_pad|>"))


def rowwise_model(
    processor: Processor, seed: int = 0, deep: Sequence[int] = (), head_dim: int | None = None
) -> RowwiseModel:
    """Random weights, large enough that choices are clear; `deep` and `head_dim` as in RowwiseConfig."""
    text: dict[str, Any] = {
        "vocab_size": processor.tokenizer.get_vocab_size(), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": None, "eos_token_id": processor.eos_id, "pad_token_id": processor.pad_id,
        "tie_word_embeddings": False,
    }  # fmt: skip
    eye: dict[str, Any] = {"width": 24, "depth": 2, "patch_size": 8} | ({"deep": list(deep)} if deep else {})
    if head_dim is not None:
        text["head_dim"] = head_dim
    torch.manual_seed(seed)
    model = RowwiseModel(RowwiseConfig(text, eye, processor.image_id)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed_tokens" in name else 0.15)
            elif "self_attn" in name:  # norms of queries and keys
                parameter.normal_(1.0, 0.3)
    return model


def write_base(folder: Path) -> Path:
    """The published folder."""
    processor = rowwise_processor()
    rowwise_model(processor).save_pretrained(folder)
    processor.save(folder)
    return folder


def write_data(folder: Path, count: int = 8) -> Path:
    """Coloured pictures of several sizes with two reasoning steps, some questions with two pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % 3]
        pixels = np.full((24 + 8 * (number % 2), 40 + 8 * (number % 3), 3), colour, np.uint8)
        pixels[:8, :8] = 255 - pixels[:8, :8]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images: Any = f"{number}.png" if number % 4 else [f"{number}.png", "0.png"]
        sample = {"image": images, "question": "Which colour ?", "steps": ["First look", "then say"], "answer": name}
        lines.append(json.dumps(sample))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "data.jsonl"
