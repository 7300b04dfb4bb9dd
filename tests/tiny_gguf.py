"""A Llama of a few thousand weights as a GGUF file, written by the package gguf as llama.cpp's converter writes it."""

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

from tests.ledger_base import ledger_tokenizer

WIDTH, HEADS, KEY_HEADS, INSIDE, LAYERS = 64, 2, 1, 96, 2


def write_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Q4_1 matrices, a tied head in Q8_0, the tokenizer of tests/ledger_base.py."""
    rng = np.random.default_rng(seed)
    tokenizer = ledger_tokenizer()
    size = tokenizer.get_vocab_size()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INSIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_vocab_size(size)
    _add_tokenizer(writer, tokenizer.to_str(), size)
    kinds = gguf.GGMLQuantizationType
    for name, rows, columns in _matrices(size):
        kind = kinds.Q8_0 if name == "token_embd" else kinds.Q4_1
        values = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", (1 + 0.1 * rng.standard_normal(WIDTH)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _matrices(size: int) -> list[tuple[str, int, int]]:
    head = WIDTH // HEADS
    found = [("token_embd", size, WIDTH)]
    for layer in range(LAYERS):
        found += [
            (f"blk.{layer}.{name}", rows, columns)
            for name, rows, columns in (
                ("attn_q", WIDTH, WIDTH), ("attn_k", KEY_HEADS * head, WIDTH), ("attn_v", KEY_HEADS * head, WIDTH),
                ("attn_output", WIDTH, WIDTH), ("ffn_gate", INSIDE, WIDTH), ("ffn_up", INSIDE, WIDTH),
                ("ffn_down", WIDTH, INSIDE),
            )
        ]  # fmt: skip
    return found


def _add_tokenizer(writer: gguf.GGUFWriter, text: str, size: int) -> None:
    import json

    model = json.loads(text)
    tokens = [""] * size
    for token, index in model["model"]["vocab"].items():
        tokens[index] = token
    special = {entry["id"] for entry in model["added_tokens"]}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index in special else 1 for index in range(size)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
