"""The weights of a checkpoint, read from its files one matrix at a time, with the adapter merged in or kept apart. So
the export of a large backbone never holds all of it.

Place in the pipeline: subject.py opens a checkpoint, or a plain Hugging Face folder, by `stream_source`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lrkit.checkpoints.quantized.table import quantization_of
from lrkit.checkpoints.tensors.stored import StoredTensor, Weight, first_not_finite
from lrkit.checkpoints.whole_weights import CheckedWeights, check_weights
from lrkit.errors import CheckpointError
from lrkit.export.weights.low_rank import LowRank, nothing_added
from lrkit.export.weights.reader import reader_of
from lrkit.export.weights.source import Parts, Source, array, assemble
from lrkit.export.weights.stored_integers import StoredIntegers
from lrkit.model.open_backbone import config_of


@dataclass(frozen=True)
class StoredWeights:
    """A backbone's weights by their names in transformers."""

    tensors: Mapping[str, Weight]
    adapted: Mapping[str, tuple[StoredTensor, StoredTensor]]
    """Weight -> (A, B)."""
    scale: float
    """LoRA's: alpha / rank."""

    def merged(self, name: str) -> np.ndarray:
        """The weight with LoRA in it, float32."""
        weight = self.base(name)
        if name not in self.adapted:
            return weight
        down, up = (torch.from_numpy(stored.read()) for stored in self.adapted[name])
        return array(torch.from_numpy(weight) + (up @ down) * self.scale)

    def base(self, name: str) -> np.ndarray:
        """The weight without it, float32."""
        return self.tensors[name].read()

    def added(self, name: str) -> LowRank | None:
        """What LoRA adds to it."""
        if name not in self.adapted:
            return None
        down, up = (stored.read() for stored in self.adapted[name])
        return LowRank(down, up * np.float32(self.scale))


def stream_source(folder: Path, keep: bool = False) -> Source:
    """The source of a checkpoint that reads its files as it is asked. Its adapter is merged, unless `keep` is set.

    Raises:
        CheckpointError: something is missing, damaged, does not fit together or holds NaN or infinity.
        ExportError: no program can be built for this backbone.
    """
    checked = check_weights(folder)
    if problem := first_not_finite(checked.stored):
        raise CheckpointError(problem)
    layout, weights = checked.layout, _open(checked)
    extras = {name: stored.read() for name, stored in checked.extras.items()} or _plain_extras(checked)
    source = assemble(
        Parts(
            family=layout.family,
            config=config_of(layout),
            read=weights.base if keep else weights.merged,
            adapter=None if not checked.adapter else "keep" if keep else "merge",
            adapted=weights.added if keep else nothing_added,
            tied=layout.tied,
            settings=checked.settings,
            image_id=layout.image_id,
            latent_id=checked.latent_id,
            extras=extras,
        )
    )
    given = quantization_of(checked.base)
    if given is None:
        return source
    changed = frozenset[str]() if keep else frozenset(weights.adapted)
    stored = StoredIntegers(
        checked.backbone, changed, reader_of(layout.family), source.dimensions, layout.tied, checked.latent_id, extras
    )
    return replace(source, stored=stored, merged_into=stored.merged_into, stored_as=given.method)


def _open(checked: CheckedWeights) -> StoredWeights:
    lora, prefix = checked.settings.lora, "base_model.model."
    adapted: dict[str, tuple[StoredTensor, StoredTensor]] = {}
    for module in checked.layout.adapted if checked.adapter else ():
        sides = [checked.adapter[f"{prefix}{module}.lora_{side}.weight"] for side in "AB"]
        adapted[f"{module}.weight"] = (sides[0], sides[1])
    return StoredWeights(checked.backbone, adapted, lora.alpha / lora.rank)


def _plain_extras(checked: CheckedWeights) -> dict[str, np.ndarray]:
    """Of a model without latents: the rows of its own matrices; no step ever needs the norm."""
    reader = reader_of(checked.layout.family)
    embedding = checked.backbone[reader.embedding]
    rows = {"head": checked.backbone.get(reader.head, embedding), "embedding": embedding}
    found = {f"latent.{name}_row_D": stored.read_row(checked.latent_id) for name, stored in rows.items()}
    return found | {"latent.norm": np.ones((), np.float32)}
