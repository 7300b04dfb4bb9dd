"""The layout `pack-quantized` of compressed-tensors, which llm-compressor writes: for a matrix (out, in)

    weight_packed      int32 (out, in * bits / 32)        several inputs in a word, the first in the lowest bits
    weight_scale       float (out, groups)
    weight_zero_point  int32 (out * bits / 32, groups)    several outputs in a word; int8 (out, groups) in older files;
                                                          absent where all are 0
    weight_shape       int (2,)                           (out, in)

value = (integer - zero) * scale; integers and zeros are stored from 0 up, the middle of their range stands for 0.
"""

from functools import partial

import numpy as np

from lrkit.checkpoints.quantized.modules import Module, Stored, check_order, group_of, packed_modules
from lrkit.checkpoints.quantized.packed_weight import AGAIN, FLOAT_TYPES, PackedWeight, expect, grouped, nibbles
from lrkit.checkpoints.quantized.quantization import Quantization
from lrkit.checkpoints.tensors.stored import StoredTensor, Weight
from lrkit.contract.quantized import Quantized
from lrkit.errors import CheckpointError, clean
from lrkit.families.layout import Layout

LASTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


def read_compressed_tensors(given: Quantization, stored: Stored, layout: Layout) -> dict[str, Weight]:
    """See the table (table.py)."""
    return packed_modules(stored, layout, LASTS, partial(_packed, given))


def _packed(given: Quantization, module: Module) -> PackedWeight:
    rows, width = module.shape
    packed, scale = module.part("weight_packed"), module.part("weight_scale")
    zero = module.parts.get("weight_zero_point")
    bits = given.bits_of(module, 32 * packed.shape[1] / width if len(packed.shape) == 2 else 0)
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    group = group_of(module, groups, given.group_size)
    expect(packed, (rows, width * bits // 32), ("I32",))
    expect(scale, (rows, groups), FLOAT_TYPES)
    _check_shape(module)
    check_order(module, "weight_g_idx", group, given.reordered)
    if zero is not None:
        whole = zero.dtype == "I8"
        expect(zero, (rows, groups) if whole else (-(-rows * bits // 32), groups), ("I8", "I32"))

    def decode() -> Quantized:
        unsigned = nibbles(packed.whole_numbers(), bits)
        zeros = None if zero is None else _zeros(zero, rows, bits)
        return grouped(unsigned, scale.read(), zeros, bits)

    return PackedWeight(packed.file, module.stored_name, module.shape, decode, lambda: [scale.read()])


def _zeros(zero: StoredTensor, rows: int, bits: int) -> np.ndarray:
    """(out, groups), from 0 up."""
    values = zero.whole_numbers()
    if zero.dtype == "I8":
        return values.astype(np.int16) + (1 << (bits - 1))
    return nibbles(np.ascontiguousarray(values.T), bits).T[:rows]


def _check_shape(module: Module) -> None:
    stored = module.parts.get("weight_shape")
    if stored is None:
        return
    expect(stored, (2,), ("I32", "I64"))
    if tuple(int(one) for one in stored.whole_numbers()) != module.shape:
        raise CheckpointError(
            f"{stored.file}: {clean(stored.name)[:160]} says {stored.whole_numbers().tolist()}, config.json needs "
            f"{list(module.shape)}; {AGAIN}"
        )
