"""Qwen3-VL's config.json as lrkit reads it, and the weights that follow from it. Torch-free."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from lrkit.families.common import mrope_layout
from lrkit.families.common.config_values import LAYERS, ROWS, SIZE
from lrkit.families.common.mrope_layout import TOWER
from lrkit.families.layout import Layout, Shape


class _Rotary(mrope_layout.Rotary):
    """transformers interleaves the axes whatever `mrope_interleaved` says."""

    mrope_interleaved: Literal[True] = True


class _Text(mrope_layout.Text):
    """The language model. All heads together may be wider than the hidden state."""

    qkv_bias: ClassVar[bool] = False
    head_norms: ClassVar[bool] = True
    default_theta: ClassVar[float] = 500_000.0

    head_dim: int = Field(default=128, ge=1, le=1 << 20)
    rms_norm_eps: float = Field(default=1e-6, gt=0.0, le=1.0)
    max_position_embeddings: int = Field(default=128_000, ge=1, le=1 << 32)
    attention_bias: Literal[False] = False
    rope_parameters: _Rotary | None = None  # pyright: ignore[reportIncompatibleVariableOverride] (values are frozen)
    rope_scaling: _Rotary | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def head_width(self) -> int:
        """As the file names it."""
        return self.head_dim

    def for_transformers(self) -> dict[str, Any]:
        """This config class has no windows in the language model."""
        inner = super().for_transformers()
        del inner["use_sliding_window"]
        return inner


class _Vision(mrope_layout.Tower):
    """The vision tower."""

    depth: int = LAYERS
    hidden_size: int = SIZE
    intermediate_size: int = SIZE
    out_hidden_size: int = SIZE
    num_heads: int = SIZE
    num_position_embeddings: int = ROWS
    deepstack_visual_indexes: tuple[int, ...] = Field(max_length=1024)
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"


def read_qwen3_vl(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe, as published or as transformers 5 writes it. `label` names the
    file in messages.

    Raises:
        CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the backbone
            does something that lrkit does not know.
    """
    read = mrope_layout.read_parts(values, _Vision, label, _Text)
    vision = read.vision
    mrope_layout.refuse(mrope_layout.contradictions(read.text, read.outer), label)
    sizes = vision.hidden_size, vision.num_heads, vision.out_hidden_size
    mrope_layout.refuse(mrope_layout.tower_contradictions(*sizes, read.text), label)
    mrope_layout.refuse(_deep_contradictions(read.text, vision), label)
    return read.layout(
        "qwen3_vl",
        gguf=("qwen3", "qwen3vl"),
        tower=dict(_tower(vision)),
        config=read.for_transformers("Qwen3VLForConditionalGeneration", vision.model_dump(mode="json")),
    )


def _deep_contradictions(text: _Text, vision: _Vision) -> Iterator[str]:
    deep = list(vision.deepstack_visual_indexes)
    if deep != sorted(set(deep)) or any(not 0 <= layer < vision.depth for layer in deep):
        yield f"deepstack_visual_indexes {deep} are not layers of a tower of {vision.depth} in ascending order"
    if len(deep) > text.num_hidden_layers:
        yield f"the tower gives features for {len(deep)} layers, and the language model has {text.num_hidden_layers}"


def _tower(vision: _Vision) -> Iterator[tuple[str, Shape]]:
    width, inner, side = vision.hidden_size, vision.intermediate_size, vision.patch_size
    yield from _with_bias(f"{TOWER}.patch_embed.proj", (width, 3, vision.temporal_patch_size, side, side))
    yield f"{TOWER}.pos_embed.weight", (vision.num_position_embeddings, width)
    parts: dict[str, Shape] = {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.linear_fc1": (inner, width),
        "mlp.linear_fc2": (width, inner), "norm1": (width,), "norm2": (width,),
    }  # fmt: skip
    for layer in range(vision.depth):
        for name, shape in parts.items():
            yield from _with_bias(f"{TOWER}.blocks.{layer}.{name}", shape)
    merged = width * vision.spatial_merge_size**2
    yield from _merger(f"{TOWER}.merger", merged, vision.out_hidden_size, width)
    for number in range(len(vision.deepstack_visual_indexes)):
        yield from _merger(f"{TOWER}.deepstack_merger_list.{number}", merged, vision.out_hidden_size, merged)


def _merger(name: str, merged: int, out: int, normed: int) -> Iterator[tuple[str, Shape]]:
    """`normed` is the width that its norm reads: of a patch, or of a merged square."""
    yield from _with_bias(f"{name}.norm", (normed,))
    yield from _with_bias(f"{name}.linear_fc1", (merged, merged))
    yield from _with_bias(f"{name}.linear_fc2", (out, merged))


def _with_bias(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


PART = read_qwen3_vl
