"""The words that stand for pictures: config.json's `vocabulary_map` names each code of the vector quantizer.
Torch-free.

The published map holds the whole vocabulary, 65,536 names with their ids. What is read of it is the image token and the
names `IMGIMG...Z` of the codes, whose letters A to J are digits: IMGIMGBFZ is code 15.
"""

import re
from collections.abc import Mapping
from typing import Any

from lrkit.errors import CheckpointError, one_line

IMAGE = "<image>"
"""Stands for one visual token in a prompt."""
_PREFIX = "IMGIMG"
_CODE = re.compile(r"IMGIMG([A-J]{1,8})[A-Z]")
_DIGITS, _LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789"), str.maketrans("0123456789", "ABCDEFGHIJ")


def code_name(code: int) -> str:
    """The name of a code in a `vocabulary_map`."""
    return f"{_PREFIX}{str(code).translate(_LETTERS)}Z"


def _code(name: str) -> int:
    return int(name[len(_PREFIX) : -1].translate(_DIGITS))


def names_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a `vocabulary_map` that have to do with pictures, as they stand there."""
    return {name: index for name, index in values.items() if name == IMAGE or name.startswith(_PREFIX)}


def visual_words(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Token id of each code, code 0 first, by a `vocabulary_map` that `read_map` accepts."""
    by_code = {_code(name): index for name, index in values.items() if name != IMAGE}
    return tuple(by_code[code] for code in range(len(by_code)))


def read_map(values: Any, codes: int, vocabulary: int, label: str) -> dict[str, int]:
    """The part of config.json's `vocabulary_map` that has to do with pictures. `label` names it in messages.

    Raises:
        CheckpointError: it is no mapping, a name or id in it cannot be used, or it does not name the image token and
            each of the `codes` codes of the quantizer once.
    """
    again = "copy the file again, or give another model"
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{label} is {type(values).__name__} where a mapping belongs; {again}")
    found = names_read(values)
    for name, index in found.items():
        if name != IMAGE and _CODE.fullmatch(name) is None:
            raise CheckpointError(f"{label}: {one_line(name, 40)} names no code of a picture; {again}")
        if type(index) is not int or not 0 <= index < vocabulary:
            shown = one_line(str(index), 40)
            raise CheckpointError(f"{label}: {name} is {shown}, which is no row of the vocabulary; {again}")
    if IMAGE not in found:
        raise CheckpointError(f"{label} has no {IMAGE}, which stands for a visual token in a prompt; {again}")
    numbers = sorted(_code(name) for name in found if name != IMAGE)
    if numbers != list(range(codes)):
        raise CheckpointError(
            f"{label} names {len(numbers)} codes of pictures where the quantizer has {codes}, numbered from 0; {again}"
        )
    if len(set(found.values())) != len(found):
        raise CheckpointError(f"{label} gives two names one id; {again}")
    return found
