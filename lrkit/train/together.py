"""What the processes of a run do together: ask all, gather what each has, and fail as one.

Place in the pipeline: the loop, the keeper and the validator call it; with one process nothing is sent.

An error that one process meets is told by that process alone. The others end too, without a word (`Elsewhere`).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from lrkit.errors import LrkitError, UserError, one_line

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "aborted")
"""How gloo, NCCL and the store between processes say that another one is gone."""


class Elsewhere(UserError):
    """Another process of the run failed, and says why; this one has nothing to add."""

    silent = True


class ProcessLost(UserError):
    """Another process of the run is gone."""


def any_of(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process says so, in every process."""
    if accelerator.num_processes == 1:
        return asked
    total = accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum")
    assert isinstance(total, torch.Tensor)
    return bool(total > 0)


def gathered(accelerator: Accelerator, own: Any) -> list[Any]:
    """What each process has, by rank, in every process."""
    return [own] if accelerator.num_processes == 1 else list(gather_object([own]))


@contextmanager
def as_one(accelerator: Accelerator, before_failing: Callable[[], object] = lambda: None) -> Generator[None]:
    """A context that ends well in all processes or in none: where one fails, the first that does says why.

    `before_failing` is called in all processes, which may do something together in it.

    Raises:
        UserError, OSError: this process's own.
        Elsewhere: another one's.
    """
    own: LrkitError | OSError | None = None
    try:
        yield
    except (LrkitError, OSError) as error:
        own = error
    if not any_of(accelerator, own is not None):
        return
    failed = gathered(accelerator, own is not None)
    before_failing()
    if own is not None and failed.index(True) == accelerator.process_index:
        raise own
    raise Elsewhere(f"process {failed.index(True)} of the run failed") from own


def is_lost(error: BaseException) -> bool:
    """Does an error of torch say that another process is gone?"""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST) and _several()


def lost(why: BaseException | str | None, then: str) -> ProcessLost:
    """The sentence of a process that cannot go on without another."""
    reason = f" ({one_line(why, 120)})" if why else ""
    return ProcessLost(f"another process of this run has ended{reason}, so this one stops; {then}")


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
