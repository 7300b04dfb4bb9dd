"""The fixed samples of an analysis, measured one by one, and the rows of a model as it stands.

    samples -> batches of one -> `measure` (sample_figures.py) -> groups, projections -> rows

Place in the pipeline: during.py asks while a model learns, after.py of checkpoints.

Nothing that training depends on changes: random states, the modes of the modules and `.grad` are as before.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import nn

from lrkit.analyze.rows import Row, finite
from lrkit.analyze.sample_figures import Autocast, SampleFigures, attention_matrices, measure_sample
from lrkit.contract.sample import Sample
from lrkit.data.collate import TrainBatch
from lrkit.model.reasoner import LatentReasoner
from lrkit.train.training_state import random_state, set_random_state

_MOST_FITTED = 400
"""Embeddings of one kind that the plane is fitted to, so that none outweighs the others by number alone."""


def measure(
    reasoner: LatentReasoner,
    batches: Sequence[TrainBatch],
    hops: Sequence[int],
    updates: int,
    stage: str,
    autocast: Autocast,
) -> list[Row]:
    """Rows of a model: `batches` hold one sample each, `hops` says how many steps each takes."""
    with undisturbed(reasoner):
        matrices = attention_matrices(reasoner)
        found = [measure_sample(reasoner, batch, matrices, autocast) for batch in batches]
    groups = split(hops, [one.loss for one in found])
    rows: list[Row] = []
    for number, (one, group) in enumerate(zip(found, groups, strict=True)):
        rows.append(Row(updates, stage, number, group, None, "model", "loss", finite(one.loss)))
        rows.append(Row(updates, stage, number, group, None, "model", "hops", float(hops[number])))
        rows += [Row(updates, stage, number, group, *figure[:3], finite(figure[3])) for figure in one.figures]
    return rows + _projected(found, groups, updates, stage)


@contextmanager
def undisturbed(reasoner: nn.Module) -> Generator[None]:
    """Within, dropout is off; behind it, random states and the modes of all modules are as before."""
    before, modes = random_state(), [(module, module.training) for module in reasoner.modules()]
    reasoner.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_random_state(before)


def hops_of(sample: Sample) -> int:
    """What the data says of how many steps a sample takes: its hops, or else its steps in words."""
    said = sample.info.get("hops")
    return said if isinstance(said, int) else len(sample.steps)


def split(hops: Sequence[int], losses: Sequence[float]) -> list[str]:
    """The half with fewer steps is easy, the other one hard; of samples with as many, less loss is easier."""
    order = sorted(range(len(hops)), key=lambda i: (hops[i], losses[i], i))
    easy = set(order[: len(order) // 2])
    return ["easy" if i in easy else "hard" for i in range(len(hops))]


def _projected(found: Sequence[SampleFigures], groups: Sequence[str], updates: int, stage: str) -> list[Row]:
    """The directions of all samples' embeddings on the two axes of their largest variance (PCA). Lengths are left out:
    the first layer's norm takes them away, and visual tokens are often so much longer that nothing else is seen."""
    own = [{kind: _directions(points) for kind, points in one.embeddings.items()} for one in found]
    kinds = sorted({kind for embeddings in own for kind in embeddings})
    every = {kind: np.concatenate([points[kind] for points in own if kind in points]) for kind in kinds}
    fitted = np.concatenate([points[:: max(1, -(-len(points) // _MOST_FITTED))] for points in every.values()])
    if len(fitted) < 3 or not np.isfinite(fitted).all() or not all(np.isfinite(p).all() for p in every.values()):
        return []
    centre = fitted.mean(0)
    _, sizes, axes = np.linalg.svd((fitted - centre).astype(np.float64), full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # which way an axis points is free
    share = sizes**2 / max(float((sizes**2).sum()), 1e-30)
    rows = [
        Row(updates, stage, None, "", 0, "model", f"pc{axis + 1}_share", finite(float(share[axis])))
        for axis in range(2)
    ]
    for number, (embeddings, group) in enumerate(zip(own, groups, strict=True)):
        for kind, points in embeddings.items():
            for token, place in enumerate((points - centre) @ axes[:2].T):
                rows += [
                    Row(updates, stage, number, group, 0, kind, f"pc{axis + 1}", finite(float(place[axis])), token)
                    for axis in range(2)
                ]
    return rows


def _directions(points: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
