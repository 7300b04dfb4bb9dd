"""A base for ledgers of a few thousand weights: a byte-level tokenizer with a token for each word, as SmolLM2 has it,
the prompt of `lrkit fetch-base smollm2-135m`, and Qwen2-VL's class with random weights."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lrkit.data.ledger.ledger_questions import LENGTHS
from lrkit.data.ledger.ledger_samples import sample_ledger
from lrkit.data.ledger.ledger_words import LABELS
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.table import fresh_models
from lrkit.runtime.encode.processor import Processor
from lrkit.train.known_bases import SMOLLM2_135M

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *SMOLLM2_135M.picture_tokens, "<jupyter_start>")


def ledger_tokenizer() -> Tokenizer:
    """Digits one by one, a token for each word of ledgers."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex("[0-9]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    rng = np.random.default_rng(0)
    texts = [" ".join(sample_ledger("main", "train", "words", length, rng).steps) for length in LENGTHS]
    words = [f"a{word}" for word in LABELS] * 50  # so often that each becomes one token
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*texts, *words], trainer)
    return tokenizer


def write_ledger_base(folder: Path, width: int = 32) -> Path:
    """Two layers, tied head, tower of one block; as a published folder."""
    fresh = fresh_models("qwen2_vl")
    geometry = fresh.geometry(8, 2, 256, 512 * 512, plain=True)
    processor = Processor(ledger_tokenizer(), geometry, SMOLLM2_135M.format)
    image, end, start, unused = (processor.tokenizer.token_to_id(name) for name in SMOLLM2_135M.picture_tokens)
    sizes = ModelSizes(
        hidden_size=width, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=64,
        vocabulary=processor.tokenizer.get_vocab_size(), tied_embeddings=True, vision_depth=1, vision_width=16,
        vision_heads=2, vision_mlp_ratio=2, rope_theta=1e5, max_positions=1024,
    )  # fmt: skip
    tokens = ModelTokens(image, processor.eos_id, processor.pad_id, unused, start, end)
    torch.manual_seed(0)
    model = fresh.model(fresh.config(sizes, geometry, tokens))
    model.save_pretrained(folder)
    processor.save(folder)
    return folder
