"""What `--resume` goes on from: one file with weights, optimizers, random states and the place in the curriculum."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkit.errors import ConfigError, one_line, os_sentence
from lrkit.files import replacing
from lrkit.gpus import torch_can_use
from lrkit.resources import STATE_FILE
from lrkit.train.failures import StateError
from lrkit.train.origin import Origin
from lrkit.train.recipe import Recipe, as_written, differences
from lrkit.train.replicas import Held
from lrkit.train.seal import is_broken, seal

_FORMAT = 2


@dataclass
class Place:
    """Where a run stands."""

    stage: int = 0
    """Index of the stage."""
    update: int = 0
    """Updates done in it."""
    total_updates: int = 0
    """Updates done in the run."""
    seconds: float = 0.0
    """Time spent, over all parts of an interrupted run."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl."""
    finished: list[dict[str, Any]] = field(default_factory=list)
    """Per finished stage: name, checkpoint, updates, accuracy."""
    best: list[dict[str, Any]] = field(default_factory=list)
    """Of the stage's best validations, best first: updates, accuracy, checkpoint (keep_best of the recipe)."""
    tracked_as: str = ""
    """Id under which trackers know the run; empty where none was asked for."""
    notes: list[str] = field(default_factory=list)
    """What became other than in a run without a break, and after which update."""


@dataclass
class Saved:
    """The content of the state file."""

    place: Place
    weights: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    meter: dict[str, Tensor]
    processes: list[dict[str, Any]]
    """Per process: random states and the draws' state."""
    origin: Origin
    """What the run depended on beside its recipe when this was written."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights that training changes, and all buffers."""
    state = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return state | {name: buffer.detach() for name, buffer in model.named_buffers()}


def save_state(
    folder: Path,
    recipe: Recipe,
    place: Place,
    model: nn.Module,
    optimizers: list[dict[str, Any]],
    meter: Mapping[str, Tensor],
    processes: list[dict[str, Any]],
    origin: Origin,
) -> None:
    """Writes the state file whole, then puts it in the place of the older one.

    Raises:
        FileError: it cannot be written; the older one is as it was.
    """
    content = {
        "format": _FORMAT,
        "recipe": as_written(recipe),
        "place": asdict(place),
        "weights": trained_state(model),
        "optimizers": optimizers,
        "meter": dict(meter),
        "processes": processes,
        "origin": origin.to_dict(),
    }
    with replacing(folder / STATE_FILE) as writing:
        torch.save(content, writing)
        seal(writing)


def load_state(folder: Path, recipe: Recipe) -> Saved:
    """Reads the state file.

    Raises:
        StateError: it is damaged, changed, or written by another version.
        ConfigError: it belongs to another recipe; the differences are named.
        MemoryError: there is too little memory for it.
    """
    file = folder / STATE_FILE
    content = _read(file)
    if content.get("format") != _FORMAT:
        raise StateError(
            f"{file} has format {content.get('format')!r}, this lrkit reads {_FORMAT}; resume with the lrkit of that "
            "run"
        )
    try:
        place, origin = Place(**content["place"]), Origin(**content["origin"])
        parts = [content[name] for name in ("weights", "optimizers", "meter", "processes")]
        changed = list(differences(_decides(content["recipe"]), _decides(as_written(recipe))))
    except (KeyError, TypeError) as error:
        raise _not_whole(file, one_line(error)) from error
    if strange := next(_strange(content, place, origin), None):
        raise _not_whole(file, strange)
    if changed:
        raise ConfigError(
            f"{folder} was started with another recipe; undo these changes, or start a new run in another folder:\n"
            + "\n".join(changed)
        )
    if place.stage > len(recipe.stages) or (place.stage == len(recipe.stages) and not place.finished):
        raise _not_whole(file, f"it stands at stage {place.stage} of {len(recipe.stages)}")
    return Saved(place, *parts, origin=origin)


def _decides(recipe: Any) -> Any:
    """What decides on the weights; how batches are made, what is computed twice, which checkpoints stay and who is told
    does not."""
    beside = ("loader", "gradient_checkpointing", "shard", "keep_last", "keep_best", "trackers")
    return {name: recipe[name] for name in recipe if name not in beside} if isinstance(recipe, dict) else recipe


def _not_whole(file: Path, why: str) -> StateError:
    return StateError(f"{file} is not whole ({why}); start the run again in a new folder")


def _strange(content: Mapping[str, Any], place: Place, origin: Origin) -> Iterator[str]:
    """What is not as `save_state` writes it, one level deep: somebody may have changed the file."""
    kinds = {"recipe": dict, "weights": dict, "optimizers": list, "meter": dict, "processes": list}
    yield from (f"its {name} is no {kind.__name__}" for name, kind in kinds.items() if type(content[name]) is not kind)
    for name in ("stage", "update", "total_updates", "metrics_bytes"):
        value = getattr(place, name)
        if type(value) is not int or value < 0:
            yield f"place.{name} is {value!r}"
    if type(place.seconds) not in (int, float) or not math.isfinite(place.seconds):
        yield f"place.seconds is {place.seconds!r}"
    if any(type(part) is not list for part in (place.notes, place.finished, place.best)):
        yield "place.notes, place.finished or place.best is no list"
    elif not all(_is_best(entry) for entry in [*place.best, *_bests(place.finished)]):
        yield "place.best names no checkpoint"
    elif not all(type(stage) is dict and type(stage.get("checkpoint")) is str for stage in place.finished):
        yield "place.finished names no checkpoint"
    if not all(type(value) is dict for value in (origin.data, origin.init, origin.environment)):
        yield "its origin is not as it was written"
    if not all(isinstance(value, Tensor) for name in ("weights", "meter") for value in content[name].values()):
        yield "a weight or a sum is no tensor"


def _bests(finished: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What finished stages say of their best; anything else than a list of entries is one that is none."""
    found: list[Any] = []
    for stage in finished:
        part: Any = stage.get("best", []) if type(stage) is dict else []
        found.extend(part if type(part) is list else [part])
    return found


def _is_best(entry: Any) -> bool:
    kinds = {"updates": int, "accuracy": float, "checkpoint": str}
    return type(entry) is dict and all(type(entry.get(name)) is kind for name, kind in kinds.items())


def _read(file: Path) -> dict[str, Any]:
    try:
        if is_broken(file):
            raise StateError(
                f"{file} is damaged: it has other bytes than were written (sha256); copy it back from where it is "
                "whole, or start the run again in a new folder"
            )
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StateError(os_sentence(error, file)) from error
    except (MemoryError, StateError):
        raise
    except Exception as error:  # torch raises whatever its archive or unpickler does
        raise StateError(f"{file} cannot be read; start the run again in a new folder") from error
    if not isinstance(content, dict):
        raise StateError(f"{file} is no run's state; start the run again in a new folder")
    return content


def restore(model: nn.Module, held: Held, saved: Saved) -> None:
    """Puts weights and optimizer states back (none at the start of a stage).

    Raises:
        StateError: they are those of another model.
    """
    own = trained_state(model)
    if set(own) != set(saved.weights):
        first = sorted(set(own) ^ set(saved.weights))[0]
        raise StateError(f"the saved state does not fit the model (first difference: {first}); start a new run")
    if saved.optimizers and len(saved.optimizers) != len(held.optimizers):
        raise StateError(
            f"the saved state has {len(saved.optimizers)} optimizers, the recipe {len(held.optimizers)}; start a new "
            "run"
        )
    try:
        for name, tensor in own.items():
            before = saved.weights[name]
            if before.shape != tensor.shape or before.dtype != tensor.dtype:  # copy_ would spread or round it
                raise ValueError(f"{name} is {before.dtype} of {tuple(before.shape)}")
            tensor.copy_(before)
        if saved.optimizers:
            held.load_optimizer_states(saved.optimizers)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StateError(f"the saved state does not fit the model ({one_line(error)}); start a new run") from error


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": list(random.getstate()),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch_can_use():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of `random_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch_can_use():
        torch.cuda.set_rng_state(state["cuda"])
