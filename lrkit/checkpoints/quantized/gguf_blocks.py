"""Blocks of GGUF's types: bytes -> integers with scales, as llama.cpp's ggml-quants.c has them.

    Q4_0   32 weights: scale f16; 16 bytes, low halves the first 16 weights; (q - 8) d
    Q4_1   32 weights: scale f16, smallest f16; bytes likewise; q d + m
    Q8_0   32 weights: scale f16; 32 signed bytes; q d
    Q4_K   256 weights: scale and step of the smallest f16; 8 parts of 32 with 6 bits for each of both; q d s - e m
    Q6_K   256 weights: 6 bits each, in two places; 16 scales of a signed byte; scale f16; (q - 32) d s

Each scale that a weight is multiplied with is exact in float32.

Legend of shapes: R rows, B blocks of a row.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lrkit.contract.quantized import Quantized

Bytes = np.ndarray
"""uint8 (R, B, bytes of a block)."""


def _half(raw: Bytes, start: int) -> np.ndarray:
    """float32 (R, B) of the half-precision numbers that begin at a byte of each block."""
    return np.ascontiguousarray(raw[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)


def _halves(raw: Bytes) -> np.ndarray:
    """int8 (..., 2 n), -8..7, of n bytes: first all low halves."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1).astype(np.int8) - np.int8(8)


def _q4_0(raw: Bytes) -> Quantized:
    return Quantized(_halves(raw[..., 2:]), _half(raw, 0), 4)


def _q4_1(raw: Bytes) -> Quantized:
    scales = _half(raw, 0)
    return Quantized(_halves(raw[..., 4:]), scales, 4, constants=_half(raw, 2) + 8 * scales)


def _q8_0(raw: Bytes) -> Quantized:
    return Quantized(np.ascontiguousarray(raw[..., 2:]).view(np.int8), _half(raw, 0), 8)


def _q4_k(raw: Bytes) -> Quantized:
    rows, blocks = raw.shape[:2]
    packed = raw[..., 4:16]
    low, high, more = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([low & 63, (more & 15) | (low >> 6) << 4], axis=-1)
    least = np.concatenate([high & 63, (more >> 4) | (high >> 6) << 4], axis=-1)
    scales = (_half(raw, 0)[..., None] * scale).reshape(rows, -1)
    constants = (8 * scales) - (_half(raw, 2)[..., None] * least).reshape(rows, -1)
    integers = _halves(raw[..., 16:].reshape(rows, blocks * 4, 32))
    return Quantized(integers.reshape(rows, -1, 32), scales, 4, constants=constants)


def _q6_k(raw: Bytes) -> Quantized:
    rows, blocks = raw.shape[:2]
    low = raw[..., :128].reshape(rows, blocks, 2, 64)
    high = raw[..., 128:192].reshape(rows, blocks, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    low = np.concatenate([low & 15, low >> 4], axis=-1).reshape(rows, blocks, 2, 4, 32)
    integers = (low | high << 4).astype(np.int8) - np.int8(32)
    parts = np.ascontiguousarray(raw[..., 192:208]).view(np.int8).astype(np.float32)
    scales = _half(raw, 208)[..., None] * parts
    return Quantized(integers.reshape(rows, -1, 16), scales.reshape(rows, -1), 8)


DECODE: Mapping[str, Callable[[Bytes], Quantized]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k
}  # fmt: skip
"""Type -> what unpacks it."""
