"""GPTQ's layout, which AutoGPTQ, GPTQModel and AutoRound write: for a matrix (out, in)

    qweight  int32 (in * bits / 32, out)         integers of several inputs in a word, the first in the lowest bits
    qzeros   int32 (groups, out * bits / 32)     likewise of several outputs; one less than meant, but in gptq_v2
    scales   float (groups, out)
    g_idx    int32 (in,)                         group of each input; may be absent

value = (integer - zero) * scale, integers from 0 up. One less wraps nowhere: a stored 15 means 16.
"""

from functools import partial

import numpy as np

from lrkit.checkpoints.quantized.modules import Module, Stored, check_order, group_of, packed_modules
from lrkit.checkpoints.quantized.packed_weight import FLOAT_TYPES, PackedWeight, expect, grouped, nibbles
from lrkit.checkpoints.quantized.quantization import Quantization
from lrkit.checkpoints.tensors.stored import Weight
from lrkit.contract.quantized import Quantized
from lrkit.families.layout import Layout

LASTS = ("qweight", "qzeros", "scales", "g_idx")


def read_gptq(given: Quantization, stored: Stored, layout: Layout) -> dict[str, Weight]:
    """See the table (table.py)."""
    return packed_modules(stored, layout, LASTS, partial(_packed, given))


def _packed(given: Quantization, module: Module) -> PackedWeight:
    rows, width = module.shape
    qweight, qzeros, scales = (module.part(last) for last in LASTS[:3])
    bits = given.bits_of(module, 32 * qweight.shape[0] / width if len(qweight.shape) == 2 else 0)
    groups = scales.shape[0] if scales.shape else 0
    group = group_of(module, groups, given.group_size)
    expect(qweight, (width * bits // 32, rows), ("I32",))
    expect(qzeros, (groups, rows * bits // 32), ("I32",))
    expect(scales, (groups, rows), FLOAT_TYPES)
    check_order(module, "g_idx", group, given.reordered)

    def decode() -> Quantized:
        unsigned = nibbles(qweight.whole_numbers().T, bits)
        zeros = nibbles(qzeros.whole_numbers(), bits).T.astype(np.int16) + given.zeros_less_one
        return grouped(unsigned, scales.read().T, zeros, bits)

    return PackedWeight(qweight.file, module.stored_name, module.shape, decode, lambda: [scales.read()])
