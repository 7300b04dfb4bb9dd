"""What an export reads out of a reasoner: dimensions, weights by role, what an adapter adds to them, and the extras.

Place in the pipeline: a reasoner in memory (`read_source`), the files of a checkpoint (streaming.py) or random weights
(lrkit/export/shape.py) -> `assemble` -> `Source` -> the writers of export/graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkit.contract.bundle.manifest import AdapterKind
from lrkit.contract.quantized import Quantized
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.export.weights.low_rank import Adapted, LowRank, branch_of, nothing_added
from lrkit.export.weights.packing import packed
from lrkit.export.weights.reader import Read, reader_of
from lrkit.export.weights.rescaled import Factors, rescaled, rescaled_branch
from lrkit.model.build import extra_state
from lrkit.model.reasoner import LatentReasoner

HEAD_ROW = "latent.head_row_D"
"""Among a source's extras: the latent token's row of the head."""


def none_stored(role: str) -> None:
    """All weights are floats."""


def none_merged(role: str) -> bool:
    """No adapter has changed integers."""
    return False


@dataclass
class Source:
    """Everything a program is made from. Matrices are (out, in); they are fetched when asked for, as float32."""

    family: str
    """The backbone's."""
    dimensions: Dimensions
    settings: ReasonerSettings
    image_id: int
    latent_id: int
    make_tower: Callable[[], nn.Module]
    """The vision tower with its weights: `WeightReader.new_tower`. Made where it is asked for: a calibration never
    does, and at 2B it is 2.6 GB."""
    fetch: Callable[[str], np.ndarray]
    """Weight by role: embedding, head, norm, and per layer N.qkv, N.out, N.gate_up or N.gate and N.up, N.down, N.norm1,
    N.norm2, N.after1, N.after2, N.head_norm; biases with `.bias` behind."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """Routers, step encodings and constants of latent steps by the names of lrkit.safetensors."""
    latent_norm: float = 1.0
    """Mean norm of the token embeddings, to which latents are rescaled."""
    latent_scale: float | None = None
    """The learned scale, where there is one."""
    tied: bool = False
    """The head is the embedding matrix (but for the latent token's row, which is never fed)."""
    adapter: AdapterKind | None = None
    """What became of the adapter; None: there is none."""
    swapped: bool = False
    """Whether adapters are to be switched at run time, so that the program keeps apart all that is the adapter's."""
    low_rank: Adapted = nothing_added
    """By role, N.qkv, N.out, N.gate, N.up or N.down: what an adapter that is kept apart adds to that matrix."""
    stored: Callable[[str], Quantized | None] = none_stored
    """Integers of a matrix by role, where the checkpoint holds it so, and nothing has changed it."""
    merged_into: Callable[[str], bool] = none_merged
    """By role: whether the checkpoint holds integers of a matrix, and an adapter is merged into them."""
    stored_as: str = ""
    """The format of those integers."""

    @cached_property
    def tower(self) -> nn.Module:
        """What `make_tower` makes, once."""
        return self.make_tower()

    def weight(self, role: str) -> np.ndarray:
        """Any weight: an extra by its name, or one of the backbone by role."""
        return self.extras[role] if role in self.extras else self.fetch(role)

    def rescaled(self, factors: Factors) -> "Source":
        """The same model with other weights: rescaled.py."""
        if not factors:
            return self
        return replace(
            self,
            fetch=lambda role: rescaled(role, self.fetch(role), factors),
            low_rank=lambda role: rescaled_branch(role, self.low_rank(role), factors),
        )


@dataclass(frozen=True)
class Parts:
    """A reasoner taken apart, wherever it lies."""

    family: str
    """The backbone's."""
    config: Any
    """The backbone's config, as transformers has it."""
    read: Read
    tied: bool
    """The head is the embedding matrix."""
    settings: ReasonerSettings
    image_id: int
    latent_id: int
    extras: Mapping[str, np.ndarray]
    """Routers and latent rows by the names of lrkit.safetensors."""
    adapter: AdapterKind | None = None
    """What `read` does with an adapter; None: there is none."""
    adapted: Adapted = nothing_added
    """By name in transformers: what an adapter adds that `read` leaves out."""


def array(tensor: Tensor) -> np.ndarray:
    """float32 in numpy; shares the memory of a tensor that is float32 on the CPU."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def read_source(reasoner: LatentReasoner, keep: bool = False) -> Source:
    """The reasoner as an export sees it. Merges an adapter into the backbone's weights for good, unless `keep` is set.

    Raises:
        ExportError: no program can be built for this backbone.
    """
    adapter: AdapterKind | None = None if reasoner.adapter is None else "keep" if keep else "merge"
    if not keep:
        reasoner.merge_adapter()
    model: Any = reasoner.backbone.model
    return assemble(
        Parts(
            family=str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)),
            config=model.config,
            read=lambda name: array(model.get_parameter(name)).copy(),
            tied=reasoner.backbone.tied_embeddings,
            settings=reasoner.settings,
            image_id=reasoner.backbone.image_token_id,
            latent_id=reasoner.latent.token_id,
            extras={name: array(tensor) for name, tensor in extra_state(reasoner).items()},
            adapter=adapter,
            adapted=partial(_sides, reasoner),
        )
    )


def _sides(reasoner: LatentReasoner, name: str) -> LowRank | None:
    """What the adapter adds to a weight, where it has not been merged."""
    sides = None if reasoner.adapter is None else reasoner.adapter.sides(name.removesuffix(".weight"))
    return None if sides is None else LowRank(array(sides.down), array(sides.up * sides.scale))


def assemble(parts: Parts) -> Source:
    """A source that reads weights when they are asked for; only the vision tower is made whole.

    Raises:
        ExportError: no program can be built for this backbone.
    """
    extras = parts.extras
    learned = parts.settings.think.latent_scale == "learned"
    dimensions = reader_of(parts.family).dimensions(parts.config)
    return Source(
        family=parts.family,
        dimensions=dimensions,
        settings=parts.settings,
        image_id=parts.image_id,
        latent_id=parts.latent_id,
        make_tower=partial(_tower, parts),
        fetch=_fetcher(parts, dimensions),
        extras={
            name: value for name, value in extras.items() if name.startswith(("routers.", "latent.constant", HEAD_ROW))
        },
        latent_norm=float(extras["latent.norm"]),
        latent_scale=float(extras["latent.scale"]) if learned else None,
        tied=parts.tied,
        adapter=parts.adapter,
        low_rank=lambda role: branch_of(reader_of(parts.family), parts.adapted, role, dimensions),
    )


def _tower(parts: Parts) -> nn.Module:
    from accelerate import init_empty_weights

    reader = reader_of(parts.family)
    with init_empty_weights(include_buffers=False):
        tower = reader.new_tower(parts.config)
    state = {name: torch.from_numpy(parts.read(f"{reader.tower}.{name}")) for name in tower.state_dict()}
    tower.load_state_dict(state, assign=True)
    return tower.eval()


def _fetcher(parts: Parts, dimensions: Dimensions) -> Callable[[str], np.ndarray]:
    reader, read = reader_of(parts.family), parts.read

    def fetch(role: str) -> np.ndarray:
        first, _, rest = role.partition(".")
        if first == "norm":
            return reader.final_norm(read, rest or "weight")
        if first in ("embedding", "head"):
            # The trained rows replace the backbone's. In a tied pair both are one, and one matrix serves both ends.
            head = first == "head" and not parts.tied
            rows = read(reader.head if head else reader.embedding)
            trained = "embedding" if first == "embedding" and not parts.tied else "head"
            rows[parts.latent_id] = parts.extras[f"latent.{trained}_row_D"]
            return rows
        return packed(lambda part, kind: reader.layer(read, int(first), part, kind), rest, dimensions)

    return fetch
