"""Quantized checkpoints in the layouts in which they are published, written from the formulas of those who publish
them: a folder of floats, whose language model is drawn as integers with scales.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

Array = np.ndarray
MATRICES: tuple[str, ...] = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip
ENDS = tuple(f"{name}.weight" for name in MATRICES)
REST = "rest.safetensors"


@dataclass
class Drawn:
    """A matrix (out, in) of integers from 0 up, (out, groups) of scales and zeros: value = (q - zero) scale + least."""

    unsigned: Array
    scales: Array
    zeros: Array
    bits: int
    least: Array | None = None

    @property
    def group(self) -> int:
        return self.unsigned.shape[1] // self.scales.shape[1]

    @property
    def values(self) -> Array:
        """In float64."""
        spread = [np.repeat(one.astype(np.float64), self.group, axis=1) for one in (self.scales, self.zeros)]
        values = (self.unsigned - spread[1]) * spread[0]
        return values if self.least is None else values + np.repeat(self.least.astype(np.float64), self.group, axis=1)


def drawn(shape: tuple[int, int], group: int, bits: int, symmetric: bool, seed: int) -> Drawn:
    """With scales that half precision holds."""
    rng = np.random.default_rng(seed)
    rows, width = shape
    groups = 1 if group == -1 else width // group
    scales = rng.uniform(0.5, 1.5, (rows, groups)).astype(np.float16) / np.float16(1 << (bits + 1))
    middle = 1 << (bits - 1)
    zeros = np.full((rows, groups), middle) if symmetric else rng.integers(1, 2 * middle, (rows, groups))
    return Drawn(rng.integers(0, 1 << bits, shape), scales, zeros, bits)


def words(unsigned: Array, bits: int, order: tuple[int, ...] | None = None) -> Array:
    """(..., n) -> int32 (..., n bits / 32): value order[i] of each word stands at bit i * bits."""
    count = 32 // bits
    padded = np.pad(unsigned, [(0, 0)] * (unsigned.ndim - 1) + [(0, -unsigned.shape[-1] % count)])
    groups = padded.reshape(*padded.shape[:-1], -1, count).astype(np.uint64)
    made = np.zeros(groups.shape[:-1], np.uint64)
    for i in range(count):
        made |= groups[..., i if order is None else order[i]] << np.uint64(i * bits)
    return made.astype(np.uint32).view(np.int32)


def gptq(one: Drawn, less: int = 1) -> dict[str, Array]:
    """GPTQ's four tensors; `less`: what is taken from the zeros that are stored."""
    width = one.unsigned.shape[1]
    return {
        "qweight": np.ascontiguousarray(words(one.unsigned, one.bits).T),
        "qzeros": words(one.zeros.T - less, one.bits), "scales": np.ascontiguousarray(one.scales.T),
        "g_idx": (np.arange(width) // one.group).astype(np.int32),
    }  # fmt: skip


def awq(one: Drawn) -> dict[str, Array]:
    """AWQ's, for GEMM."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(one.unsigned.T, 4, order), "qzeros": words(one.zeros.T, 4, order),
        "scales": np.ascontiguousarray(one.scales.T),
    }  # fmt: skip


def compressed(one: Drawn, symmetric: bool) -> dict[str, Array]:
    """compressed-tensors' pack-quantized."""
    made = {
        "weight_packed": words(one.unsigned, one.bits), "weight_scale": one.scales,
        "weight_shape": np.array(one.unsigned.shape, np.int64),
    }  # fmt: skip
    if not symmetric:
        made["weight_zero_point"] = np.ascontiguousarray(words(one.zeros.T, one.bits).T)
    return made


@dataclass
class Folder:
    """A quantized checkpoint, and what it stands for."""

    path: Path
    matrices: dict[str, Drawn] = field(default_factory=dict[str, Drawn])
    """By name in transformers, such as model.language_model.layers.0.mlp.up_proj.weight."""

    def change_config(self, **values: Any) -> None:
        """In quantization_config."""
        file = self.path / "config.json"
        config = json.loads(file.read_text())
        config["quantization_config"] |= values
        file.write_text(json.dumps(config))

    def change(self, change: Callable[[dict[str, Array]], None]) -> None:
        """Of the packed tensors."""
        file = self.path / "packed.safetensors"
        tensors = {name: tensor.numpy() for name, tensor in load_file(file).items()}
        change(tensors)
        _write_shards(self.path, tensors)


def in_transformers(name: str) -> str:
    return name.replace("model.layers.", "model.language_model.layers.") + ".weight"


def write_quantized(
    base: "Base", path: Path, config: Mapping[str, Any], pack: Callable[[Drawn], dict[str, Array]], group: int,
    bits: int = 4, symmetric: bool = True, newer: bool = False,
) -> Folder:  # fmt: skip
    """A folder whose layers are packed. `newer` says `model.language_model.` in the files' names."""
    folder, tensors = base.start(path, config), dict[str, Array]()
    for number, (name, shape) in enumerate(base.shapes.items()):
        one = drawn(shape, group, bits, symmetric, number)
        folder.matrices[in_transformers(name)] = one
        prefix = name.replace("model.layers.", "model.language_model.layers.") if newer else name
        tensors |= {f"{prefix}.{last}": array for last, array in pack(one).items()}
    _write_shards(path, tensors)
    return folder


@dataclass(frozen=True)
class Base:
    """A folder of floats, taken apart once for many quantized ones."""

    floats: Path
    rest: Path
    """A file with all tensors but the matrices of layers."""
    shapes: Mapping[str, tuple[int, int]]
    """Of those, by their names in published files, without `.weight`."""

    @staticmethod
    def of(floats: Path, place: Path) -> "Base":
        tensors = load_file(floats / "model.safetensors")
        layers = {name: tensor for name, tensor in tensors.items() if name.endswith(ENDS) and "visual" not in name}
        save_torch({name: tensor for name, tensor in tensors.items() if name not in layers}, place / REST)
        shapes = {name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1]) for name, tensor in layers.items()}
        names = {name: name.replace("model.language_model.", "model.") for name in shapes}
        return Base(floats, place / REST, {names[name]: shape for name, shape in sorted(shapes.items())})

    def start(self, path: Path, config: Mapping[str, Any]) -> Folder:
        """A folder with everything but the matrices of layers."""
        path.mkdir(parents=True)
        for file in self.floats.iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                (path / file.name).symlink_to(file)
        values = json.loads((self.floats / "config.json").read_text()) | {"quantization_config": dict(config)}
        (path / "config.json").write_text(json.dumps(values))
        (path / REST).symlink_to(self.rest)
        return Folder(path)


def _write_shards(path: Path, tensors: Mapping[str, Array]) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / "packed.safetensors")
    names = dict.fromkeys(tensors, "packed.safetensors") | dict.fromkeys(load_file(path / REST), REST)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def q4_0(one: Drawn) -> bytes:
    """GGUF's blocks of 32: scale, then the first 16 weights in the low halves of 16 bytes."""
    return _blocks([one.scales], _halves(one))


def q4_1(one: Drawn) -> bytes:
    """With the smallest value behind the scale."""
    assert one.least is not None
    return _blocks([one.scales, one.least], _halves(one))


def q8_0(one: Drawn) -> bytes:
    """Signed bytes."""
    return _blocks([one.scales], (one.unsigned - 128).astype(np.int8).view(np.uint8).reshape(*one.scales.shape, 32))


def _halves(one: Drawn) -> Array:
    blocks = one.unsigned.reshape(*one.scales.shape, 32).astype(np.uint8)
    return blocks[..., :16] | blocks[..., 16:] << 4


def _blocks(halves: list[Array], data: Array) -> bytes:
    heads = [half.astype("<f2")[..., None].view(np.uint8) for half in halves]
    return np.concatenate([*heads, data], axis=-1).tobytes()


GGUF_NAMES: dict[str, str] = dict(
    zip(MATRICES, ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), strict=True)
)
GGUF_TYPES: dict[str, tuple[int, Callable[[Drawn], bytes]]] = {"Q4_0": (2, q4_0), "Q4_1": (3, q4_1), "Q8_0": (8, q8_0)}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_header(architecture: str, infos: list[tuple[str, tuple[int, ...], int, int]]) -> bytes:
    """With some metadata of every kind; `infos`: (name, shape with rows first, type, first byte)."""
    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text(f"{architecture}.attention.head_count") + struct.pack("<II", 4, 4),
        text(f"{architecture}.attention.head_count_kv") + struct.pack("<II", 4, 2),
        text(f"{architecture}.rope.freq_base") + struct.pack("<If", 6, 1e4),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0, 1),
        text("general.quantized") + struct.pack("<IB", 7, 1),
    ]
    made = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries)
    for name, shape, kind, start in infos:
        made += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        made += struct.pack("<IQ", kind, start)
    return made + b"\0" * (-len(made) % 32)


def turned(rows: Array, heads: int) -> Array:
    """As llama.cpp's converter permutes the rows of queries and keys of a Llama."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    base: Base, path: Path, kind: str, architecture: str = "llama", embedding: str = "", heads: tuple[int, int] = (4, 2)
) -> Folder:  # fmt: skip
    """The language model's matrices in a GGUF file, and with `embedding`, of that type, the embedding too; the rest in
    safetensors."""
    folder = base.start(path, {"quant_method": "gguf", "file": "language.gguf"})
    datas: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for number, (name, shape) in enumerate(base.shapes.items()):
        one = folder.matrices[in_transformers(name)] = _drawn_block(kind, shape, number)
        _, _, layer, part = name.split(".", 3)
        count: int | None = {MATRICES[0]: heads[0], MATRICES[1]: heads[1]}.get(part)
        stored = one if count is None or architecture != "llama" else _turned(one, count)
        datas.append(
            (f"blk.{layer}.{GGUF_NAMES[part]}.weight", shape, GGUF_TYPES[kind][0], GGUF_TYPES[kind][1](stored))
        )
    tensors = load_file(path / REST)
    if embedding:
        name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        shape = tuple(tensors.pop(name).shape)
        one = folder.matrices["model.language_model.embed_tokens.weight"] = _drawn_block(embedding, shape, 99)
        datas.append(("token_embd.weight", shape, GGUF_TYPES[embedding][0], GGUF_TYPES[embedding][1](one)))
        (path / REST).unlink()
        save_torch(tensors, path / REST)
    (path / "model.safetensors").symlink_to(path / REST)
    infos, body = list[tuple[str, tuple[int, ...], int, int]](), b""
    for name, shape, number, data in datas:
        infos.append((name, shape, number, len(body)))
        body += data + b"\0" * (-len(data) % 32)
    (path / "language.gguf").write_bytes(gguf_header(architecture, infos) + body)
    return folder


def _drawn_block(kind: str, shape: tuple[int, ...], seed: int) -> Drawn:
    bits = 8 if kind == "Q8_0" else 4
    one = drawn((shape[0], shape[1]), 32, bits, symmetric=True, seed=seed)
    if kind == "Q4_1":
        one.zeros = np.zeros_like(one.zeros)
        one.least = np.random.default_rng(seed).normal(0, 0.3, one.scales.shape).astype(np.float16)
    return one


def _turned(one: Drawn, heads: int) -> Drawn:
    least = None if one.least is None else turned(one.least, heads)
    return Drawn(turned(one.unsigned, heads), turned(one.scales, heads), turned(one.zeros, heads), one.bits, least)
