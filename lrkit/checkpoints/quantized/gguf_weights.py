"""The language model in a GGUF file, by transformers' names.

llama.cpp's files of the architecture llama hold the rows of queries and keys in another order, in which neighbours turn
together. They are put back here, integers and all.

Place in the pipeline: table.py gives the tensors of the safetensors files, which hold the tower and whatever else the
GGUF file lacks; whole_weights.py holds both against config.json.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lrkit.checkpoints.quantized.gguf_blocks import DECODE
from lrkit.checkpoints.quantized.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from lrkit.checkpoints.quantized.modules import Stored
from lrkit.checkpoints.quantized.packed_weight import PackedWeight
from lrkit.checkpoints.tensors.stored import FLOATS, StoredTensor, Weight
from lrkit.contract.quantized import Quantized
from lrkit.errors import CheckpointError, clean, os_sentence, shown
from lrkit.families.layout import Layout

PERMUTED = ("llama",)
"""Architectures whose queries and keys lie in another order."""
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_FIRST = ".layers.0.self_attn.q_proj"
_NAME = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class TurnedFloats:
    """A float tensor whose rows come back in another order; a `Weight`."""

    stored: StoredTensor
    order: np.ndarray

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def name(self) -> str:
        """As the file has it."""
        return self.stored.name

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def read(self) -> np.ndarray:
        """See `Weight`."""
        return self.stored.read()[self.order]

    def read_row(self, index: int) -> np.ndarray:
        """See `Weight`."""
        return self.stored.read_row(int(self.order[index]))

    def odd_value(self) -> str:
        """See `Weight`."""
        return self.stored.odd_value()


def read_gguf(path: Path, stored: Stored, layout: Layout) -> dict[str, Weight]:
    """All weights by their names in transformers: those in `stored`, and those of the GGUF file.

    Raises:
        CheckpointError: the file is damaged, of another architecture or other sizes than config.json, or holds
            tensors that have no place or are of a type that nobody here reads.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is not there, and config.json names it; put it there by hand")
    header = read_gguf_header(path)
    found: dict[str, Weight] = dict(stored)
    for name, weight in language_model(header, layout).items():
        if name in found:
            raise CheckpointError(
                f"{path}: {clean(name)[:160]} is in it and in {found[name].file.name} too; take it out of the latter"
            )
        found[name] = weight
    return found


def language_model(header: GgufHeader, layout: Layout) -> dict[str, Weight]:
    """The tensors of a GGUF file by their names in transformers. Raises as `read_gguf`."""
    _hold_against(header, layout)
    text = _text_config(layout)
    prefix = next((one.removesuffix(_FIRST) for one in layout.adapted if one.endswith(_FIRST)), None)
    if prefix is None:
        raise CheckpointError(
            f"{header.file}: the family {layout.family} has no decoder with the names of Llama's, so no GGUF file fits "
            "it; give its weights as safetensors"
        )
    permuted = header.values.get("general.architecture") in PERMUTED
    heads = {part: int(text[name]) for part, name in (("q", "num_attention_heads"), ("k", "num_key_value_heads"))}
    found: dict[str, Weight] = {}
    for tensor in header.tensors.values():
        name = _name(tensor.name, prefix)
        if name is None:
            raise CheckpointError(
                f"{header.file}: config.json has no place for {clean(tensor.name)[:80]}; give the file of this model"
            )
        turned = next((heads[part] for part in heads if f".{part}_proj." in name), None) if permuted else None
        found[name] = _weight(tensor, turned)
    return found


def _name(name: str, prefix: str) -> str | None:
    """In transformers."""
    outer = {
        "token_embd.weight": f"{prefix}.embed_tokens.weight", "output_norm.weight": f"{prefix}.norm.weight",
        "output.weight": "lm_head.weight",
    }  # fmt: skip
    if name in outer:
        return outer[name]
    found = _NAME.fullmatch(name)
    if found is None or found[2] not in _LAYER:
        return None
    return f"{prefix}.layers.{int(found[1])}.{_LAYER[found[2]]}.{found[3]}"


def _text_config(layout: Layout) -> Mapping[str, Any]:
    inner = layout.config.get("text_config", layout.config)
    return cast(Mapping[str, Any], inner)


def _hold_against(header: GgufHeader, layout: Layout) -> None:
    """Raises `CheckpointError` where the file describes another model than config.json: what no shape tells."""
    name, text = header.values.get("general.architecture"), _text_config(layout)
    if name not in layout.gguf:
        known = ", ".join(layout.gguf) or "none"
        raise CheckpointError(
            f"{header.file}: its architecture is {shown(name)}, and the language model of {layout.family} may be "
            f"{known}; give the file of this model"
        )
    turning = cast(Mapping[str, Any], text.get("rope_parameters") or {})
    pairs = {
        "attention.head_count": text.get("num_attention_heads"),
        "attention.head_count_kv": text.get("num_key_value_heads"),
        "rope.freq_base": turning.get("rope_theta"),
        "attention.layer_norm_rms_epsilon": text.get("rms_norm_eps"),
    }
    for key, wanted in pairs.items():
        seen = header.values.get(f"{name}.{key}")
        if seen is None or wanted is None:
            continue
        if not isinstance(seen, int | float) or not math.isclose(seen, wanted, rel_tol=1e-4):
            raise CheckpointError(
                f"{header.file}: its {name}.{key} is {shown(seen)}, config.json's {shown(wanted)}; give the file of "
                "this model, or correct config.json"
            )


def _weight(tensor: GgufTensor, turned: int | None) -> Weight:
    """`turned`: heads whose rows are put back in order."""
    kind, shape = tensor.kind.name, tensor.shape
    order = None if turned is None or shape[0] % (2 * turned) else _order(shape[0], turned)
    if kind in FLOATS:
        stored = StoredTensor(tensor.file, tensor.name, kind, shape, tensor.start, tensor.num_bytes)
        return stored if order is None else TurnedFloats(stored, order)
    if kind not in DECODE or len(shape) != 2:
        known = ", ".join([*DECODE, "F32", "F16", "BF16"])
        raise CheckpointError(
            f"{tensor.file}: {clean(tensor.name)[:80]} is of type {kind}, and lrkit reads {known}; quantize the model "
            "as Q4_0, Q4_1 or Q8_0"
        )
    return _packed(tensor, order)


def _packed(tensor: GgufTensor, order: np.ndarray | None) -> PackedWeight:
    def decode() -> Quantized:
        made = DECODE[tensor.kind.name](_raw(tensor, 0, tensor.shape[0]))
        return made if order is None else _in_order(made, order)

    def row(index: int) -> Quantized:
        place = index if order is None else int(order[index])
        return DECODE[tensor.kind.name](_raw(tensor, place, 1))

    def floats() -> list[np.ndarray]:
        made = DECODE[tensor.kind.name](_raw(tensor, 0, tensor.shape[0]))
        return [made.scales] if made.constants is None else [made.scales, made.constants]

    shape = tensor.shape[0], tensor.shape[1]
    return PackedWeight(tensor.file, tensor.name, shape, decode, floats, row)


def _in_order(made: Quantized, order: np.ndarray) -> Quantized:
    constants = None if made.constants is None else made.constants[order]
    return Quantized(made.integers[order], made.scales[order], made.bits, None, constants)


def _order(rows: int, heads: int) -> np.ndarray:
    """Row of the file that each row is: neighbours of a head -> i and i + W / 2."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _raw(tensor: GgufTensor, first: int, rows: int) -> np.ndarray:
    """uint8 (rows, blocks, bytes) of some rows."""
    blocks = tensor.shape[1] // tensor.kind.values
    step = blocks * tensor.kind.num_bytes
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.start + first * step)
            raw = np.fromfile(file, np.uint8, rows * step)
    except OSError as error:
        raise CheckpointError(os_sentence(error, tensor.file)) from error
    if len(raw) != rows * step:
        raise CheckpointError(f"{tensor.file}: ends within {clean(tensor.name)[:80]}; copy it again")
    return raw.reshape(rows, blocks, tensor.kind.num_bytes)
