"""Looks of the torch engine as arrays, and back: what is read from a file is held against what the model would leave.

Place in the pipeline: `TorchEngine.look` -> `TorchLooked` -> `TorchEngine.generate`; its arrays go into scene files.

Legend: L layers, H key heads, N tokens of the picture part, W head width, V visual tokens, E width of a visual token's
    row, C routed tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrkit.errors import DataError
from lrkit.model.keys import GrowingKeys
from lrkit.model.read import Look
from lrkit.model.reasoner import LatentReasoner

_AGAIN = "look at the pictures again"


@dataclass(frozen=True)
class TorchLooked:
    """A look of this engine."""

    look: Look

    @property
    def bytes(self) -> int:
        tensors = [*(one for pair in self.look.keys for one in pair), self.look.rows_VE]
        tensors += [one for found in self.look.refined.values() for one in found]
        tensors += [*self.look.num_routed.values(), *self.look.passes.values()]
        return sum(one.numel() * one.element_size() for one in tensors)

    def arrays(self) -> dict[str, np.ndarray]:
        """keys (L, 2, H, N, W), visual (V, E); of routed layers passes.LAYER (N,), refined.LAYER.DEPTH (2, H, C, W) and
        valid.LAYER.DEPTH (C,), and where routed positions are rearranged routed.LAYER (1,)."""
        look = self.look
        found = {"keys": torch.stack([torch.stack(pair) for pair in look.keys]), "visual": look.rows_VE}
        found |= {f"passes.{layer}": passes for layer, passes in look.passes.items()}
        found |= {f"routed.{layer}": count for layer, count in look.num_routed.items()}
        for (layer, depth), (keys, values, valid) in look.refined.items():
            found |= {f"refined.{layer}.{depth}": torch.stack([keys, values]), f"valid.{layer}.{depth}": valid}
        return {name: _array(one) for name, one in found.items()}


def read_looked(
    arrays: Mapping[str, np.ndarray], reasoner: LatentReasoner, num_tokens: int, num_visual: int
) -> TorchLooked:
    """A look of `num_tokens` tokens, `num_visual` of them visual, on the reasoner's device.

    Raises:
        DataError: names, shapes or types are not those that the reasoner leaves.
    """
    taken = _Arrays(arrays, reasoner.backbone.embedding_rows())
    backbone, routing = reasoner.backbone, reasoner.settings.routing
    heads, width = _key_shape(reasoner)
    keys = taken.of_model("keys", (backbone.num_layers, 2, heads, num_tokens, width))
    rows = taken.of_model("visual", (num_visual, backbone.hidden_size * (1 + len(backbone.deep_layers))))
    refined: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    passes: dict[int, Tensor] = {}
    num_routed: dict[int, Tensor] = {}
    for layer, router in reasoner.routing.items():
        passes[layer] = taken.plain(f"passes.{layer}", (num_tokens,), torch.int64)
        if not bool(((passes[layer] >= 0) & (passes[layer] <= routing.depth)).all()):
            raise DataError(f"passes.{layer} holds numbers that no routing leaves; {_AGAIN}")
        if routing.positions == "rearrange":
            num_routed[layer] = taken.plain(f"routed.{layer}", (1,), torch.int64).clamp(0, num_tokens)
        count = min(router.alpha, num_tokens)
        for depth in range(routing.depth):
            if routing.threshold > 0 and f"refined.{layer}.{depth}" not in arrays:
                break  # all its tokens had stopped before
            pair = taken.of_model(f"refined.{layer}.{depth}", (2, heads, count, width))
            valid = taken.plain(f"valid.{layer}.{depth}", (count,), torch.bool)
            refined[layer, depth] = pair[0], pair[1], valid
    taken.finish()
    return TorchLooked(Look(tuple((pair[0], pair[1]) for pair in keys), rows, refined, num_routed, passes))


class _Arrays:
    """Takes arrays by name, in the shape and type that they must have."""

    def __init__(self, arrays: Mapping[str, np.ndarray], like: Tensor) -> None:
        self._left = dict(arrays)
        self._like = like

    def of_model(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An array in the model's number type."""
        kind = self._like.dtype
        bits = torch.int16 if kind == torch.bfloat16 else kind
        return self._take(name, shape, bits).view(kind).to(self._like.device)

    def plain(self, name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        return self._take(name, shape, kind).to(self._like.device)

    def finish(self) -> None:
        """All arrays were taken."""
        if self._left:
            raise DataError(f"there is an array {min(self._left)[:60]!r}, which the model does not leave; {_AGAIN}")

    def _take(self, name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        found = self._left.pop(name, None)
        if found is None:
            raise DataError(f"there is no array {name}, which the model leaves; {_AGAIN}")
        wanted = str(kind).removeprefix("torch.")
        if found.shape != shape or str(found.dtype) != wanted:
            got = f"{found.dtype} {list(found.shape)}"
            raise DataError(f"{name} is {got} where the model leaves {wanted} {list(shape)}; {_AGAIN}")
        # Copied: what comes from a file is read-only memory.
        return torch.from_numpy(np.array(found))


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@torch.inference_mode()
def _key_shape(reasoner: LatentReasoner) -> tuple[int, int]:
    """H and W, found by reading one token with the first layer."""
    backbone, keys = reasoner.backbone, GrowingKeys()
    hidden = backbone.embed_tokens(torch.zeros(1, 1, dtype=torch.long, device=backbone.embedding_rows().device))
    valid = torch.ones(1, 1, dtype=torch.bool, device=hidden.device)
    positions = torch.zeros(backbone.axes, 1, 1, dtype=torch.long, device=hidden.device)
    mask = keys.extend(valid)
    backbone.run_layer(0, hidden, mask, backbone.rotary(positions, hidden), keys.cache)
    found = keys.of_layer(0)[0]
    return found.shape[1], found.shape[3]
