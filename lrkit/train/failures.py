"""Says in one sentence what went wrong while a run trained, and how to go on."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lrkit.errors import CheckpointError, FileError, LrkitError, UserError, is_write_failure, one_line, os_sentence
from lrkit.train.together import Elsewhere, is_lost, lost

GO_ON = "the same command with --resume goes on from the last saved update"

# How torch's allocator for CPUs says it; that for GPUs has a class of its own.
_NO_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "std::bad_alloc")


class StateError(CheckpointError):
    """The state file is not one that this run can go on from."""


class Diverged(UserError):
    """The loss or a weight is no number any more, so there is nothing to go on from."""

    def __init__(self, what: str, stage: str, value: str, update: int) -> None:
        """`what` became `value`, by the update of that number in that stage."""
        super().__init__(
            f"{what} of stage {stage} became {value} at update {update}; lower optimizer.lr or set optimizer.clip, and "
            "start again"
        )


def check_finite(weights: Mapping[str, Tensor], stage: str, update: int) -> None:
    """Before weights are saved or asked: a gradient that overflows in the last update shows in no loss.

    Raises:
        Diverged: one of them is NaN or infinite.
    """
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()])
    if not bool(finite.all()):
        first = list(weights)[int(finite.int().argmin())]
        raise Diverged(f"the weight {first}", stage, "NaN or infinite", update)


@contextmanager
def told(then: str = "") -> Generator[None]:
    """A context in which a full disk, a limit on files, too little memory or another process that is gone becomes one
    sentence that ends with `then`.

    Raises:
        UserError: in place of what torch, safetensors and the system raise. Mistakes of the program pass through.
    """
    behind = f"; {then}" if then else ""
    try:
        yield
    except (Diverged, StateError, Elsewhere):
        raise
    except LrkitError as error:
        if not behind or not isinstance(error, UserError):
            raise
        raise type(error)(f"{error}{behind}") from error
    except Exception as error:
        if is_lost(error):
            raise lost(error, then or GO_ON) from error
        if is_out_of_memory(error):
            raise UserError(
                f"memory ran out ({one_line(error, 120)}); free some, or start a new run with a smaller batch_size and "
                f"a larger accumulate, or with max_pixels{behind}"
            ) from error
        if not is_write_failure(error):
            raise
        raise FileError(f"{os_sentence(error)}{behind}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Did the system or the device refuse memory, whoever reports it?"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
