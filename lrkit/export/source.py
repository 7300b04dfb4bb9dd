"""What an export reads out of a reasoner: dimensions, merged weights by role, and the extras. One table row per
backbone family.

Place in the pipeline: checkpoint -> `Source` -> decoder.py, routing.py, program.py. After this file nothing asks for
the family.

Legend: D width, H heads, G key heads, W vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkit.errors import ExportError, did_you_mean
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.settings import ReasonerSettings


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the language model."""

    width: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_width: int
    inner: int
    """Width of the feed-forward part."""
    vocabulary: int
    epsilon: float
    """Of the root-mean-square norms."""
    inverse_frequencies: tuple[float, ...]
    """Of the rotary embedding, head_width / 2 of them."""
    rotary_sections: tuple[int, ...]
    """Per frequency: the section (0 temporal, 1 row, 2 column) whose position turns it in the prompt."""


@dataclass
class Source:
    """Everything a program is made from. Matrices are (out, in); they are fetched when asked for, as float32."""

    dimensions: Dimensions
    settings: ReasonerSettings
    image_id: int
    latent_id: int
    patch_values: int
    merge_size: int
    tower: nn.Module
    """The vision tower, for tracing."""
    fetch: Callable[[str], np.ndarray]
    """Weight by role: embedding, head, norm, and per layer N.qkv, N.qkv.bias, N.out, N.gate_up, N.down, N.norm1,
    N.norm2."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """Routers and step encodings by the names of lrkit.safetensors."""
    latent_norm: float = 1.0
    """Mean norm of the token embeddings, to which latents are rescaled."""
    latent_scale: float | None = None
    """The learned scale, where there is one."""
    tied: bool = False
    """The head is the embedding matrix (but for the latent token's row, which is never fed)."""

    def weight(self, role: str) -> np.ndarray:
        """Any weight: an extra by its name, or one of the backbone by role."""
        return self.extras[role] if role in self.extras else self.fetch(role)


def array(tensor: Tensor) -> np.ndarray:
    """float32 copy in numpy."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def read_source(reasoner: LatentReasoner) -> Source:
    """The reasoner as an export sees it. Merges an adapter into the backbone's weights for good.

    Raises:
        ExportError: no export is written for this family of backbones.
    """
    reasoner.merge_adapter()
    model = reasoner.backbone.model
    family = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ExportError(
            f"no program can be built for a backbone of type {family!r}; known: {known}{did_you_mean(family, FAMILIES)}"
        )
    source = FAMILIES[family](reasoner)
    state = reasoner.state_dict()
    source.extras = {name: array(t) for name, t in state.items() if name.startswith("routers.")}
    source.latent_norm = float(reasoner.latent.norm)
    if reasoner.settings.think.latent_scale == "learned":
        source.latent_scale = float(reasoner.latent.scale)
    return source


def _qwen2_vl(reasoner: LatentReasoner) -> Source:
    model: Any = reasoner.backbone.model
    vision, language, latent = model.config.vision_config, model.model.language_model, reasoner.latent
    dimensions = _qwen2_dimensions(model.config.text_config, language.rotary_emb)

    def fetch(role: str) -> np.ndarray:
        if role == "norm":
            return array(language.norm.weight)
        if role in ("embedding", "head"):
            # The trained rows replace the backbone's. In a tied pair both are one, and one matrix serves both ends.
            rows = array(language.embed_tokens.weight if role == "embedding" else model.lm_head.weight).copy()
            rows[latent.token_id] = array(latent.embedding_row_D if role == "embedding" else latent.head_row_D)
            return rows
        number, _, part = role.partition(".")
        return _layer_weight(language.layers[int(number)], part, dimensions.head_width)

    return Source(
        dimensions=dimensions,
        settings=reasoner.settings,
        image_id=model.config.image_token_id,
        latent_id=latent.token_id,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge_size=vision.spatial_merge_size,
        tower=model.model.visual,
        fetch=fetch,
        tied=reasoner.backbone.tied_embeddings,
    )


def _qwen2_dimensions(text: Any, rotary: Any) -> Dimensions:
    """Sizes from a Qwen2-VL text config and its rotary embedding.

    Raises:
        ExportError: the backbone does something that a program does not know.
    """
    if getattr(text, "use_sliding_window", False) and "sliding_attention" in text.layer_types:
        raise ExportError("the backbone uses sliding-window attention; a program attends to all tokens: export another")
    if text.hidden_act != "silu":
        raise ExportError(f"the backbone's activation is {text.hidden_act!r}; a program knows 'silu' only")
    kind = text.rope_parameters["rope_type"]
    if rotary.attention_scaling != 1.0 or kind != "default":
        raise ExportError(f"the backbone's rotary type is {kind!r}; a program knows 'default' only")
    counts = text.rope_parameters["mrope_section"]
    return Dimensions(
        width=text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_key_heads=text.num_key_value_heads,
        head_width=text.hidden_size // text.num_attention_heads,
        inner=text.intermediate_size,
        vocabulary=text.vocab_size,
        epsilon=text.rms_norm_eps,
        inverse_frequencies=tuple(float(f) for f in rotary.inv_freq),
        rotary_sections=tuple(axis % 3 for axis, count in enumerate(counts) for _ in range(count)),
    )


def _layer_weight(layer: Any, part: str, head_width: int) -> np.ndarray:
    """One weight of a Qwen2 layer; 1 / sqrt(head width) is folded into the query rows, so that no node has to apply
    it."""
    attention, mlp = layer.self_attn, layer.mlp
    scale = head_width**-0.5
    if part in ("qkv", "qkv.bias"):
        kind = "weight" if part == "qkv" else "bias"
        query, key, value = (
            array(getattr(module, kind)) for module in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return np.concatenate([query * np.float32(scale), key, value])
    if part == "gate_up":
        return np.concatenate([array(mlp.gate_proj.weight), array(mlp.up_proj.weight)])
    simple = {
        "out": attention.o_proj,
        "down": mlp.down_proj,
        "norm1": layer.input_layernorm,
        "norm2": layer.post_attention_layernorm,
    }
    return array(simple[part].weight)


FAMILIES: dict[str, Callable[[LatentReasoner], Source]] = {"qwen2_vl": _qwen2_vl}
"""model_type -> reader."""
