"""Experiment trackers beside TensorBoard, which a recipe asks for by name (`trackers`), through those of accelerate.

    metrics.jsonl's records -> `Tracker` -> the tracker's own service or folder

TensorBoard is written by lrkit itself (lrkit/train/metrics.py), because a full disk must be noticed where it happens.
Nothing is sent anywhere unless the recipe names a tracker, and what the tracker is told decides where it writes:
WANDB_MODE=offline keeps its files in the run's folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from lrkit.errors import UserError, one_line, require

TrackerName = Literal["wandb"]


class Tracker(Protocol):
    """What the metrics writer asks of a tracker."""

    def log(self, values: Mapping[str, float], update: int) -> None:
        """Numbers by name, after so many updates."""
        ...

    def finish(self) -> None:
        """Nothing more will come."""
        ...


class WandbTracker:
    """Weights & Biases. A resumed run goes on in the same one by its id, and has its own count of updates: W&B's steps
    only grow, so it would drop what a killed run does a second time."""

    def __init__(self, folder: Path, project: str, run_id: str, values: Mapping[str, Any]) -> None:
        """`values` are the recipe's.

        Raises:
            MissingExtraError: wandb is not installed.
            UserError: it cannot start: no key, no network.
        """
        require("wandb", "wandb")
        from accelerate.tracking import WandBTracker

        try:
            self._inner = WandBTracker(
                project, id=run_id, name=folder.name, dir=str(folder.absolute()), resume="allow", config=dict(values)
            )
            self._inner.start()
            self._inner.tracker.define_metric("update")
            self._inner.tracker.define_metric("*", step_metric="update")
        except Exception as error:
            raise UserError(
                f"trackers: wandb cannot start ({one_line(error)}); set WANDB_MODE=offline, log in (`wandb login`), or "
                "leave trackers out"
            ) from error

    def log(self, values: Mapping[str, float], update: int) -> None:
        """As `Tracker.log`."""
        self._inner.log({**values, "update": update})

    def finish(self) -> None:
        """As `Tracker.finish`."""
        self._inner.finish()


def open_trackers(
    names: tuple[TrackerName, ...], folder: Path, project: str, run_id: str, values: Mapping[str, Any]
) -> list[Tracker]:
    """One of each kind. Raises as `WandbTracker`."""
    return [WandbTracker(folder, project, run_id, values) for _ in dict.fromkeys(names)]
