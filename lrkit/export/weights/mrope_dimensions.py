"""`WeightReader.dimensions` of decoders whose rotary embedding turns by three positions, a section of its frequencies
each: for several families.
"""

from typing import Any

from lrkit.errors import ExportError
from lrkit.export.weights.layer_recipe import Dimensions, LayerRecipe, Norm, known


def mrope_dimensions(text: Any, rotary: Any) -> Dimensions:
    """From transformers' config of the text and its rotary module.

    Raises:
        ExportError: the backbone does something that a program does not know.
    """
    if getattr(text, "use_sliding_window", False) and "sliding_attention" in text.layer_types:
        raise ExportError("the backbone uses sliding-window attention; a program attends to all tokens: export another")
    known("activation", text.hidden_act, ["silu"])
    kind = text.rope_parameters["rope_type"]
    known("rotary type", kind if rotary.attention_scaling == 1.0 else f"{kind}, scaled", ["default"])
    counts = text.rope_parameters["mrope_section"]
    return Dimensions(
        width=text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_key_heads=text.num_key_value_heads,
        head_width=text.hidden_size // text.num_attention_heads,
        inner=text.intermediate_size,
        vocabulary=text.vocab_size,
        inverse_frequencies=tuple(float(f) for f in rotary.inv_freq),
        rotary_axes=tuple(axis % 3 for axis, count in enumerate(counts) for _ in range(count)),
        recipe=LayerRecipe(norm=Norm("rms", text.rms_norm_eps), biases=frozenset({"qkv"})),
    )
