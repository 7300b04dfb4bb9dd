"""Keyword arguments of transformers' config for models with random weights whose decoder turns by three positions: for
the part `fresh` of several families.
"""

from typing import Any

from lrkit.families.protocols import ModelSizes, ModelTokens

PLAIN: dict[str, Any] = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
"""Normalisation to -1..1."""


def around_the_tower(sizes: ModelSizes, tokens: ModelTokens) -> dict[str, Any]:
    """All but `vision_config`."""
    around = {"vision_start_token_id": tokens.picture_start, "vision_end_token_id": tokens.picture_end}
    return {
        "text_config": _text(sizes, tokens),
        "image_token_id": tokens.image,
        "video_token_id": tokens.unused,  # no video ever enters
        "tie_word_embeddings": sizes.tied_embeddings,
        **{key: index for key, index in around.items() if index is not None},
    }


def _text(sizes: ModelSizes, tokens: ModelTokens) -> dict[str, Any]:
    half_head = sizes.hidden_size // sizes.num_heads // 2
    # The published proportions: a quarter of the rotary pairs for time, the rest shared by height and width.
    time = half_head // 4
    height = (half_head - time) // 2
    sections = [time, height, half_head - time - height]
    given = {} if sizes.max_positions is None else {"max_position_embeddings": sizes.max_positions}
    return {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.hidden_size, "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers, "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads, "tie_word_embeddings": sizes.tied_embeddings, "bos_token_id": None,
        "eos_token_id": tokens.eos, "pad_token_id": tokens.pad,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta, "mrope_section": sections},
        **given,
    }  # fmt: skip
