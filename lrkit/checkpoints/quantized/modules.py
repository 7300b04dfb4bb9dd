"""Tensors of a quantized checkpoint, put together by the module that they belong to: what gptq_words.py,
awq_words.py and compressed_tensors.py have in common.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from lrkit.checkpoints.quantized.packed_weight import AGAIN, PackedWeight, expect
from lrkit.checkpoints.tensors.stored import StoredTensor, Weight
from lrkit.errors import CheckpointError, clean
from lrkit.families.layout import Layout

Stored = Mapping[str, StoredTensor]
"""By name in transformers, but for the last part of the names, which is the format's."""


@dataclass(frozen=True)
class Module:
    """One matrix that is packed: its name in transformers, (out, in), and its tensors by the last part of their
    names."""

    name: str
    shape: tuple[int, int]
    parts: Mapping[str, StoredTensor]

    def part(self, last: str) -> StoredTensor:
        """Raises `CheckpointError` where it is missing."""
        if last not in self.parts:
            file = next(iter(self.parts.values())).file
            raise CheckpointError(f"{file}: {clean(self.name)[:160]} lacks {last}; {AGAIN}")
        return self.parts[last]

    @property
    def stored_name(self) -> str:
        """Of its weight, by the file's own names."""
        return next(iter(self.parts.values())).name.rpartition(".")[0] + ".weight"


def packed_modules(
    stored: Stored, layout: Layout, lasts: Collection[str], pack: Callable[[Module], PackedWeight]
) -> dict[str, Weight]:
    """All weights by their names in transformers: those whose tensors end in one of `lasts` packed, the others as they
    are.

    Raises:
        CheckpointError: a packed matrix that config.json does not have, or as `pack`.
    """
    found: dict[str, Weight] = {}
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        module, _, last = name.rpartition(".")
        if last in lasts:
            parts.setdefault(module, {})[last] = tensor
        else:
            found[name] = tensor
    for module, tensors in parts.items():
        weight = f"{module}.weight"
        shape = layout.tensors.get(weight, ())
        first = next(iter(tensors.values()))
        if len(shape) != 2:
            raise CheckpointError(f"{first.file}: config.json has no matrix for {clean(first.name)[:160]}; {AGAIN}")
        if weight in found:
            raise CheckpointError(f"{first.file}: holds {clean(weight)[:160]} twice, packed and not; {AGAIN}")
        found[weight] = pack(Module(module, (shape[0], shape[1]), tensors))
    return found


def group_of(module: Module, groups: int, asked: int | None) -> int:
    """Weights per scale of a matrix with so many scales per row. `asked` is what config.json says, -1 for a row; None:
    nothing.

    Raises:
        CheckpointError: they do not divide its width, or config.json says otherwise.
    """
    width = module.shape[1]
    file = next(iter(module.parts.values())).file
    wanted = None if asked is None else (width if asked == -1 else asked)
    if groups < 1 or width % groups or (wanted is not None and width != groups * wanted):
        says = "" if wanted is None else f", and config.json says {wanted} weights per scale"
        raise CheckpointError(
            f"{file}: {clean(module.name)[:160]} has {groups} groups of scales for {width} inputs{says}, which does "
            f"not divide; {AGAIN}"
        )
    return width // groups


def check_order(module: Module, last: str, group: int, reordered: bool) -> None:
    """Raises `CheckpointError` where inputs are not grouped as they stand. The tensor `last`, the group of each input,
    says it; where there is none, config.json: `reordered`."""
    order, width = module.parts.get(last), module.shape[1]
    if order is not None:
        expect(order, (width,), ("I32", "I64"))
        reordered = not np.array_equal(order.whole_numbers(), np.arange(width) // group)
    if reordered:
        file = next(iter(module.parts.values())).file
        raise CheckpointError(
            f"{file}: the inputs of {clean(module.name)[:160]} are grouped in another order (desc_act, actorder), "
            "which no program holds; quantize without it, or give the model as it was before"
        )
