"""What a program leaves of a look at pictures, and how it goes into later questions. Torch-free.

Place in the pipeline: `ProgramEngine.look` -> `ProgramLooked` -> `EncodedPrompt.looked` -> feed.py; its arrays go into
scene files. io_spec.py names them: a look's outputs new_keys and so on are the inputs past_keys and so on of an ask.

Legend: L tokens of the picture part, V visual tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import LEFT, PAST, IoSpec
from lrkit.errors import DataError

PASSES = "passes"
"""Name, among the arrays of a look, of the extra passes of its tokens."""
_AGAIN = "look at the pictures again"


@dataclass(frozen=True)
class ProgramLooked:
    """A look of one program. Its arrays are never written to: a program on a CPU reads them where they lie."""

    past: Mapping[str, np.ndarray]
    """By the names of a program's inputs."""
    passes: np.ndarray
    """Extra passes of each token by routed layer, int64 (layers, L); (0, L) where nothing routes."""

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.passes.shape[1]

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """keys, ids, visual, refined, refined_seen as io_spec.py has them, those that the program reads; passes."""
        return {name.removeprefix(PAST): array for name, array in self.past.items()} | {PASSES: self.passes}


def outputs_left(spec: IoSpec) -> list[str]:
    """Outputs of a program that a look reads; empty for a program without scenes."""
    left = [one.name for one in spec.outputs if one.name.startswith(LEFT)]
    routed = [one.name for one in spec.outputs if one.name == "routed_prompt"]
    return left + routed if left else []


def looked_from(spec: IoSpec, ids: Sequence[int], found: Mapping[str, Any]) -> ProgramLooked:
    """A look at a picture part of these `ids`, from the outputs `found` of the program."""
    past = {PAST + name.removeprefix(LEFT): np.asarray(one) for name, one in found.items() if name.startswith(LEFT)}
    if any(one.name == f"{PAST}ids" for one in spec.inputs):
        past[f"{PAST}ids"] = np.asarray(ids, np.int64)
    passes = np.asarray(found.get("routed_prompt", np.zeros((0, len(ids)), np.int64)))
    return ProgramLooked(past, passes)


def read_looked(
    arrays: Mapping[str, np.ndarray], spec: IoSpec, ids: Sequence[int], num_visual: int, layers: int, depth: int
) -> ProgramLooked:
    """A look at a picture part of these `ids`, `num_visual` of them visual tokens, from arrays that may be a
    stranger's; `layers` of the program route, up to `depth` times.

    Raises:
        DataError: an array is missing or too many, or is none that the program leaves.
    """
    wanted = dict(looked_kinds(spec, len(ids), num_visual))
    wanted[PASSES] = "int64", (layers, len(ids))
    if missing := sorted(wanted.keys() - arrays.keys()):
        raise DataError(f"there is no array {missing[0]}, which the program leaves; {_AGAIN}")
    if more := sorted(arrays.keys() - wanted.keys()):
        raise DataError(f"there is an array {more[0][:60]!r}, which the program does not leave; {_AGAIN}")
    for name, (dtype, shape) in wanted.items():
        array = arrays[name]
        if array.shape != shape or str(array.dtype) != dtype:
            raise DataError(
                f"{name} is {array.dtype} {list(array.shape)} where the program leaves {dtype} {list(shape)}; {_AGAIN}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{name} holds NaN or infinite numbers; {_AGAIN}")
    if "ids" in arrays and arrays["ids"].tolist() != list(ids):
        raise DataError(f"ids are not those of these pictures; {_AGAIN}")
    passes = arrays[PASSES]
    if passes.size and not (passes.min() >= 0 and passes.max() <= depth):
        raise DataError(f"{PASSES} holds numbers that no routing leaves; {_AGAIN}")
    return ProgramLooked({PAST + name: array for name, array in arrays.items() if name != PASSES}, passes)


def looked_kinds(spec: IoSpec, num_tokens: int, num_visual: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """(name, (type, shape)) of what a look at so many tokens leaves."""
    sizes = {"L": num_tokens, "V0": num_visual}
    for one in spec.inputs:
        if one.name.startswith(PAST):
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in one.shape)
            yield one.name.removeprefix(PAST), (one.dtype, shape)


def whole_reports(out: Mapping[str, np.ndarray], look: ProgramLooked) -> dict[str, np.ndarray]:
    """The outputs of an ask, with what they report of routing as the whole prompt has it."""
    if "routed_prompt" not in out:
        return dict(out)
    depths = out["routed_depths"].copy()
    depths[0] += look.passes.sum(1)
    return {
        **out,
        "routed_prompt": np.concatenate([look.passes, out["routed_prompt"]], axis=1),
        "routed_depths": depths,
    }
