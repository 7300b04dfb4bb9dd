"""What config.json says of integers in the files: its `quantization_config`, read strictly.

    gptq, auto-round     bits 4 or 8, group_size, desc_act, checkpoint_format or packing_format
    awq                  bits 4, group_size, version gemm
    compressed-tensors   format pack-quantized, one group of layers, integers of 4 or 8 bits
    gguf                 file: the name of a GGUF file in the folder, lrkit's own way of naming one

Place in the pipeline: table.py asks for it, and gives it to the reader of the format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from lrkit.checkpoints.tensors.stored import is_plain_name
from lrkit.errors import CheckpointError, clean, did_you_mean, shown
from lrkit.families.common.config_values import Values, read_values_of

if TYPE_CHECKING:
    from lrkit.checkpoints.quantized.modules import Module

KEY = "quantization_config"
_FLOATS = "give the model as it was before (bf16 or float)"


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's integers lie in its files."""

    label: str
    """config.json's file, for messages."""
    layout: Literal["gptq", "awq", "compressed-tensors", "gguf"]
    """Whose reader takes them."""
    method: str
    """`quant_method` as the file has it."""
    bits: int | None = None
    """Of all matrices; None: each matrix may have its own."""
    group_size: int | None = None
    """Weights per scale; -1: a row; None: as the matrices have it."""
    zeros_less_one: bool = False
    """Whether zeros are stored as one less than they are."""
    reordered: bool = False
    """Whether inputs may be grouped in another order than they stand in."""
    file: str = ""
    """Of GGUF."""

    def bits_of(self, module: "Module", found: float, allowed: Sequence[int] = (4, 8)) -> int:
        """Bits of a matrix whose tensors have the size of `found` bits.

        Raises:
            CheckpointError: others than `allowed`, or than config.json says.
        """
        wanted = allowed if self.bits is None else (self.bits,)
        if found not in wanted:
            file = next(iter(module.parts.values())).file
            raise CheckpointError(
                f"{file}: {clean(module.name)[:160]} takes {found:g} bits for each weight, where "
                f"{' or '.join(map(str, wanted))} belong by config.json; copy the checkpoint again, or {_FLOATS}"
            )
        return int(found)


class _Grouped(Values):
    group_size: int = Field(ge=-1, le=1 << 20)


class _Gptq(_Grouped):
    bits: Literal[4, 8]
    desc_act: bool = False
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None


class _AutoRound(_Grouped):
    bits: Literal[4, 8]
    data_type: Literal["int"] | None = None
    packing_format: Literal[
        "auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:auto_awq", "auto_gptq", "auto_awq"
    ] = "auto_round:auto_gptq"


class _Awq(_Grouped):
    bits: Literal[4]
    version: str = "gemm"


class _Gguf(Values):
    file: str = Field(min_length=1, max_length=255)


class _Weights(Values):
    num_bits: Literal[4, 8]
    type: Literal["int"] = "int"
    strategy: Literal["group", "channel"]
    group_size: int | None = Field(default=None, ge=-1, le=1 << 20)
    actorder: str | bool | None = None


def read_quantization(values: Mapping[str, Any], label: str) -> Quantization | None:
    """What config.json's `values` say; None where the weights are floats. `label` names the file in messages.

    Raises:
        CheckpointError: a method, packing or number of bits that is not read here.
    """
    given = values.get(KEY)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{label}: {KEY} is {shown(given)} where a mapping belongs; copy the file again")
    section = cast(Mapping[str, Any], given)
    method, place = section.get("quant_method"), f"{label}: {KEY}"
    if not isinstance(method, str) or method not in METHODS:
        names = ", ".join(METHODS)
        raise CheckpointError(
            f"{place}.quant_method is {shown(method)}{did_you_mean(str(method)[:40], METHODS)}; lrkit reads {names}, "
            f"so {_FLOATS}"
        )
    return METHODS[method](section, place)


def _gptq(section: Mapping[str, Any], place: str) -> Quantization:
    read = read_values_of(_Gptq, section, place)
    kind = read.checkpoint_format or "gptq"
    return Quantization(
        place, "gptq", "gptq", None if section.get("dynamic") else read.bits,
        None if section.get("dynamic") else _size(read.group_size, place), kind == "gptq", read.desc_act,
    )  # fmt: skip


def _auto_round(section: Mapping[str, Any], place: str) -> Quantization:
    read = read_values_of(_AutoRound, section, place)
    awq = read.packing_format.endswith("awq")
    own = bool(section.get("extra_config"))  # bits of some matrices by themselves
    return Quantization(
        place, "awq" if awq else "gptq", "auto-round", None if own else read.bits,
        None if own else _size(read.group_size, place), read.packing_format.endswith("auto_gptq"),
    )  # fmt: skip


def _awq(section: Mapping[str, Any], place: str) -> Quantization:
    named = {"bits": section.get("w_bit"), "group_size": section.get("q_group_size")}  # of older files
    known = {name: value for name, value in named.items() if value is not None} | dict(section)
    read = read_values_of(_Awq, known, place)
    if read.version.lower() != "gemm":
        raise CheckpointError(
            f"{place}.version is {shown(read.version)}, and lrkit reads AWQ packed for gemm; pack it so, or {_FLOATS}"
        )
    return Quantization(place, "awq", "awq", read.bits, _size(read.group_size, place))


def _compressed_tensors(section: Mapping[str, Any], place: str) -> Quantization:
    if section.get("format") != "pack-quantized":
        raise CheckpointError(
            f"{place}.format is {shown(section.get('format'))}, and lrkit reads pack-quantized; {_FLOATS}"
        )
    groups = section.get("config_groups")
    schemes = list(cast(Mapping[str, Any], groups).values()) if isinstance(groups, Mapping) else []
    if not schemes or not all(isinstance(one, Mapping) for one in schemes):
        raise CheckpointError(f"{place}.config_groups says of no layer how it is held; copy the file again")
    for one in schemes:
        if one.get("input_activations") is not None or one.get("output_activations") is not None:
            raise CheckpointError(
                f"{place}.config_groups rounds activations too, which neither torch nor a program would do here; give "
                "a checkpoint whose weights alone are integers"
            )
    read = [read_values_of(_Weights, one.get("weights"), f"{place}.config_groups.weights") for one in schemes]
    first, alone = read[0], len(read) == 1
    size = -1 if first.strategy == "channel" else first.group_size
    return Quantization(
        place, "compressed-tensors", "compressed-tensors", first.num_bits if alone else None,
        _size(-1 if size is None else size, place) if alone else None, reordered=first.actorder in ("group", True),
    )  # fmt: skip


def _gguf(section: Mapping[str, Any], place: str) -> Quantization:
    file = read_values_of(_Gguf, section, place).file
    if not is_plain_name(file) or not file.endswith(".gguf"):
        raise CheckpointError(f"{place}.file is {shown(file)}; name a .gguf file in the folder itself")
    return Quantization(place, "gguf", "gguf", file=file)


def _size(group_size: int, place: str) -> int:
    if group_size == 0:
        raise CheckpointError(f"{place}.group_size is 0; copy the file again")
    return group_size


METHODS = {
    "gptq": _gptq, "auto-round": _auto_round, "intel/auto-round": _auto_round, "awq": _awq,
    "compressed-tensors": _compressed_tensors, "gguf": _gguf,
}  # fmt: skip
"""quant_method -> what reads the rest."""
