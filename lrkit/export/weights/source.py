"""What an export reads out of a reasoner: dimensions, merged weights by role, and the extras. One table row per
backbone family.

Place in the pipeline: a reasoner in memory (`read_source`) or the files of a checkpoint (streaming.py) -> `Parts` ->
`Source` -> the writers of export/graph. After this file nothing asks for the family.

Legend: D width, H heads, G key heads, W vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError, did_you_mean
from lrkit.model.build import extra_state
from lrkit.model.reasoner import LatentReasoner


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
    patch_bytes: int
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


@dataclass(frozen=True)
class Parts:
    """A reasoner taken apart, whether it lies in memory or in files."""

    config: Any
    """The backbone's config, as transformers has it."""
    read: Callable[[str], np.ndarray]
    """Merged weight of the backbone by the name it has in transformers: a float32 array that nobody else holds."""
    tower: nn.Module
    """The vision tower with its weights."""
    tied: bool
    """The head is the embedding matrix."""
    settings: ReasonerSettings
    latent_id: int
    extras: Mapping[str, np.ndarray]
    """Routers and latent rows by the names of lrkit.safetensors."""


@dataclass(frozen=True)
class Family:
    """How one family of backbones is read."""

    source: Callable[[Parts], Source]
    tower: str
    """Name of the vision tower's module."""
    new_tower: Callable[[Any], nn.Module]
    """A tower from the backbone's config, its weights yet to come."""


def array(tensor: Tensor) -> np.ndarray:
    """float32 in numpy; shares the memory of a tensor that is float32 on the CPU."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def read_source(reasoner: LatentReasoner) -> Source:
    """The reasoner as an export sees it. Merges an adapter into the backbone's weights for good.

    Raises:
        ExportError: no export is written for this family of backbones.
    """
    reasoner.merge_adapter()
    model: Any = reasoner.backbone.model
    family = family_of(str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)))
    return family.source(
        Parts(
            config=model.config,
            read=lambda name: array(model.get_parameter(name)).copy(),
            tower=model.get_submodule(family.tower),
            tied=reasoner.backbone.tied_embeddings,
            settings=reasoner.settings,
            latent_id=reasoner.latent.token_id,
            extras={name: array(tensor) for name, tensor in extra_state(reasoner).items()},
        )
    )


def family_of(model_type: str) -> Family:
    """The row of FAMILIES.

    Raises:
        ExportError: there is none.
    """
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ExportError(
            f"no program can be built for a backbone of type {model_type!r}; known: {known}"
            f"{did_you_mean(model_type, FAMILIES)}"
        )
    return FAMILIES[model_type]


def _qwen2_vl(parts: Parts) -> Source:
    vision, extras, text = parts.config.vision_config, parts.extras, "model.language_model"
    dimensions = _qwen2_dimensions(parts.config.text_config)

    def fetch(role: str) -> np.ndarray:
        if role == "norm":
            return parts.read(f"{text}.norm.weight")
        if role in ("embedding", "head"):
            # The trained rows replace the backbone's. In a tied pair both are one, and one matrix serves both ends.
            head = role == "head" and not parts.tied
            rows = parts.read("lm_head.weight" if head else f"{text}.embed_tokens.weight")
            trained = "embedding" if role == "embedding" and not parts.tied else "head"
            rows[parts.latent_id] = extras[f"latent.{trained}_row_D"]
            return rows
        number, _, part = role.partition(".")
        return _layer_weight(lambda name: parts.read(f"{text}.layers.{number}.{name}"), part, dimensions.head_width)

    learned = parts.settings.think.latent_scale == "learned"
    return Source(
        dimensions=dimensions,
        settings=parts.settings,
        image_id=parts.config.image_token_id,
        latent_id=parts.latent_id,
        patch_bytes=vision.in_channels * vision.patch_size**2,
        merge_size=vision.spatial_merge_size,
        tower=parts.tower,
        fetch=fetch,
        extras={name: value for name, value in extras.items() if name.startswith("routers.")},
        latent_norm=float(extras["latent.norm"]),
        latent_scale=float(extras["latent.scale"]) if learned else None,
        tied=parts.tied,
    )


def _qwen2_dimensions(text: Any) -> Dimensions:
    """Sizes from a Qwen2-VL text config.

    Raises:
        ExportError: the backbone does something that a program does not know.
    """
    if getattr(text, "use_sliding_window", False) and "sliding_attention" in text.layer_types:
        raise ExportError("the backbone uses sliding-window attention; a program attends to all tokens: export another")
    if text.hidden_act != "silu":
        raise ExportError(f"the backbone's activation is {text.hidden_act!r}; a program knows 'silu' only")
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

    rotary, kind = Qwen2VLRotaryEmbedding(text), text.rope_parameters["rope_type"]
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


def _layer_weight(read: Callable[[str], np.ndarray], part: str, head_width: int) -> np.ndarray:
    """One weight of a Qwen2 layer; 1 / sqrt(head width) is folded into the query rows, so that no node has to apply
    it. Of qkv the rows lie by key head: the queries that share it, the key, the value."""
    scale = np.float32(head_width**-0.5)
    if part in ("qkv", "qkv.bias"):
        kind = "weight" if part == "qkv" else "bias"
        query, key, value = (read(f"self_attn.{name}_proj.{kind}") for name in "qkv")
        groups = len(key) // head_width
        by_group = [rows.reshape(groups, -1, *rows.shape[1:]) for rows in (query * scale, key, value)]
        return np.concatenate(by_group, axis=1).reshape(-1, *query.shape[1:])
    if part == "gate_up":
        return np.concatenate([read("mlp.gate_proj.weight"), read("mlp.up_proj.weight")])
    simple = {
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "out": "self_attn.o_proj",
        "down": "mlp.down_proj",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
    }
    return read(f"{simple[part]}.weight")


def _new_qwen2_vl_tower(config: Any) -> nn.Module:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    return Qwen2VisionTransformerPretrainedModel._from_config(config.vision_config)  # pyright: ignore


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(_qwen2_vl, "model.visual", _new_qwen2_vl_tower),
}
"""model_type -> how it is read."""
