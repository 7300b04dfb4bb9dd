"""Idefics3's vision tower and connector in a program, for an export. Implements `TowerWriter`.

The tower's own modules run, but for attention. Patches come in the order of the squares that become visual tokens, so
that the connector's pixel shuffle is a reshape; attention does not mind the order. A program reads pictures as bytes:
their normalisation is folded into the first matrix.

Legend: I views, M patches of a view, N = I M, C bytes of a patch, E width of the tower, H heads, W head width, V visual
tokens, D width of the language model.
"""

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.export.graph.nodes import CONTRIB
from lrkit.export.graph.tower_pieces import folded, grafted, in_number_type
from lrkit.export.graph.tower_writer import Tower, TowerSizes
from lrkit.export.graph.tracing import traced
from lrkit.export.graph.writer import Writer
from lrkit.families.idefics3.geometry import SplitPictures


class TraceableTower(nn.Module):
    """Tower and connector over any number of views."""

    def __init__(self, seeing: Any, first: tuple[Tensor, Tensor], places_ME: Tensor, fused: bool) -> None:
        """`first` is what `folded` gave, `places_ME` what tells the patches of a view apart; `fused` writes ONNX
        Runtime's own attention: such a tower can be traced, not run."""
        super().__init__()
        self.mix = _mix_fused if fused else _mix
        self.encoder: Any = seeing.vision_model.encoder
        self.norm: Any = seeing.vision_model.post_layernorm
        self.proj: Any = seeing.connector.modality_projection.proj
        self.squared: int = seeing.connector.scale_factor**2
        self.kernel_EC, self.bias_E = first
        self.places_ME = places_ME

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, C) from `Writer.pixels` -> (V, D)."""
        # Matrices read rows of two axes, so that they may become integers.
        hidden_NE = functional.linear(pixel_values, self.kernel_EC, self.bias_E)
        count, width = self.places_ME.shape
        hidden_NE = (hidden_NE.reshape(-1, count, width) + self.places_ME).reshape(-1, width)
        for layer in self.encoder.layers:
            hidden_NE = hidden_NE + self._attend(layer.self_attn, layer.layer_norm1(hidden_NE))
            hidden_NE = hidden_NE + layer.mlp(layer.layer_norm2(hidden_NE))
        squares_VE = self.norm(hidden_NE).reshape(-1, self.squared * width)
        weight = self.proj.weight
        # The connector has no bias; zeros keep the product one that may become integers.
        return functional.linear(squares_VE, weight, weight.new_zeros(len(weight)))

    def _attend(self, attn: Any, hidden_NE: Tensor) -> Tensor:
        """Each view by itself."""
        count, width = self.places_ME.shape
        query, key, value = (
            proj(hidden_NE).reshape(-1, count, width) for proj in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        return attn.out_proj(self.mix(query, key, value, attn.num_heads, attn.scale).reshape(-1, width))


def _mix(query_IME: Tensor, key_IME: Tensor, value_IME: Tensor, heads: int, scale: float) -> Tensor:
    """Attention of all pairs of a view: (I, M, E)."""
    query_IHMW, key_IHMW, value_IHMW = (
        x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (query_IME, key_IME, value_IME)
    )
    score_IHMM = (query_IHMW @ key_IHMW.transpose(2, 3)).to(torch.float32) * scale
    mixed_IHMW = score_IHMM.softmax(-1).to(value_IHMW.dtype) @ value_IHMW
    return mixed_IHMW.transpose(1, 2).reshape(query_IME.shape)


def _mix_fused(query_IME: Tensor, key_IME: Tensor, value_IME: Tensor, heads: int, scale: float) -> Tensor:
    """The same in one node, which never holds all scores: with 17 views of 1,024 patches those of a layer take 0.8
    GB."""
    return torch.onnx.ops.symbolic(
        f"{CONTRIB}::MultiHeadAttention", (query_IME, key_IME, value_IME), {"num_heads": heads, "scale": scale},
        dtype=query_IME.dtype, shape=query_IME.shape, version=1,
    )  # fmt: skip


def places_of(seeing: Any, geometry: SplitPictures) -> Tensor:
    """Learned positions (M, E) of the patches of a view, in the order of `SplitPictures.cut`; the tower's own rule says
    which each has."""
    embeddings, side, scale = seeing.vision_model.embeddings, geometry.side, geometry.scale_factor
    seen: list[Tensor] = []
    handle = embeddings.position_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    weight = embeddings.patch_embedding.weight
    try:
        with torch.no_grad():
            embeddings(weight.new_zeros(1, 3, geometry.tile, geometry.tile), torch.ones(1, side, side).bool())
    finally:
        handle.remove()
    squares = seen[0].view(side // scale, scale, side // scale, scale).permute(0, 2, 1, 3).reshape(-1)
    return embeddings.position_embedding.weight.detach()[squares]


def traced_tower(seeing: nn.Module, geometry: SplitPictures, fp16: bool, fused: bool = False) -> ir.Graph:
    """The tower as torch.onnx sees it, for any number of views that `geometry` describes; `fused` as in
    `TraceableTower`. Raises as `traced`."""
    dtype = torch.float16 if fp16 else torch.float32
    kernel_EC, bias_E = folded(seeing.get_submodule("vision_model.embeddings.patch_embedding"), geometry)
    first = (kernel_EC.to(dtype), bias_E.to(dtype))
    places_ME = places_of(seeing, geometry).to(dtype)
    module = TraceableTower(in_number_type(seeing, fp16), first, places_ME, fused)
    count = geometry.side**2
    example = {"pixel_values": torch.zeros(2 * count, geometry.patch_bytes, dtype=dtype)}
    return traced(module, example, {0: count * torch.export.Dim("views", min=1)})


class Idefics3Tower:
    """See export/graph/tower_writer.py."""

    def write(self, tower: nn.Module, geometry: SplitPictures, dialect: Writer) -> Tower:
        """Traces the tower once; the result writes it into a graph."""
        fp16 = dialect.target.computes_fp16
        # ONNX Runtime has the fused attention in fp16 on GPUs alone, and every program must run on a CPU.
        return grafted(traced_tower(tower, geometry, fp16, dialect.fused and not fp16), dialect)

    def sizes(self, tower: nn.Module) -> TowerSizes:
        """The connector reads merged squares, all else patches; positions are no product."""
        seeing: Any = tower
        merger = seeing.connector.modality_projection.proj.weight.numel()
        matrices = [value.numel() for value in seeing.vision_model.parameters() if value.dim() > 1]
        products = sum(matrices) - seeing.vision_model.embeddings.position_embedding.weight.numel()
        vision = seeing.config.vision_config
        windows = ((vision.num_hidden_layers, (vision.image_size // vision.patch_size) ** 2),)
        return TowerSizes(vision.hidden_size, 0, products, merger, windows)


PART = Idefics3Tower()
