"""AWQ's layout for GEMM, which AutoAWQ and AutoRound write: for a matrix (out, in)

    qweight  int32 (in, out / 8)        eight outputs in a word, of which the lowest bits hold 0 2 4 6 1 3 5 7
    qzeros   int32 (groups, out / 8)    likewise; absent where nothing has one
    scales   float (groups, out)

value = (integer - zero) * scale, integers of 4 bits from 0 up (https://github.com/casper-hansen/AutoAWQ).
"""

from functools import partial

from lrkit.checkpoints.quantized.modules import Module, Stored, group_of, packed_modules
from lrkit.checkpoints.quantized.packed_weight import FLOAT_TYPES, PackedWeight, expect, grouped, nibbles
from lrkit.checkpoints.quantized.quantization import Quantization
from lrkit.checkpoints.tensors.stored import Weight
from lrkit.contract.quantized import Quantized
from lrkit.families.layout import Layout

LASTS = ("qweight", "qzeros", "scales")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output of a word that each four bits hold, the lowest first."""


def read_awq(given: Quantization, stored: Stored, layout: Layout) -> dict[str, Weight]:
    """See the table (table.py)."""
    return packed_modules(stored, layout, LASTS, partial(_packed, given))


def _packed(given: Quantization, module: Module) -> PackedWeight:
    rows, width = module.shape
    qweight, scales = module.part("qweight"), module.part("scales")
    qzeros = module.parts.get("qzeros")
    bits = given.bits_of(module, 32 * qweight.shape[1] / rows if len(qweight.shape) == 2 else 0, (4,))
    groups = scales.shape[0] if scales.shape else 0
    group_of(module, groups, given.group_size)
    expect(qweight, (width, rows * bits // 32), ("I32",))
    expect(scales, (groups, rows), FLOAT_TYPES)
    if qzeros is not None:
        expect(qzeros, (groups, rows * bits // 32), ("I32",))

    def decode() -> Quantized:
        unsigned = nibbles(qweight.whole_numbers(), bits, ORDER).T
        zeros = None if qzeros is None else nibbles(qzeros.whole_numbers(), bits, ORDER).T
        return grouped(unsigned, scales.read().T, zeros, bits)

    return PackedWeight(qweight.file, module.stored_name, module.shape, decode, lambda: [scales.read()])
