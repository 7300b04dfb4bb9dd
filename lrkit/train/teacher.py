"""The teacher of the pointing loss: a checkpoint that sees more, such as the same model with its pictures in full.

Place in the pipeline: collate.py encodes the samples for it too -> `PointingTeacher.point`, before each update ->
targets of lrkit/model/pointing.py. It thinks as many latent steps as the model that learns, over its own pictures and
its own replay, without gradient.
"""

from dataclasses import replace
from pathlib import Path

import torch

from lrkit.data.collate import TrainBatch
from lrkit.model.checkpoint import load_checkpoint
from lrkit.model.pointing import as_target
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor


class PointingTeacher:
    """Says where it looks."""

    def __init__(self, name: str, device: torch.device, sharpness: float = 1.0) -> None:
        """`name` is a checkpoint's name or folder; `sharpness` as in `as_target`.

        Raises:
            CheckpointError: it is not there or damaged.
        """
        folder: Path = resolve_checkpoint(name)
        self.sharpness = sharpness
        self.reasoner = load_checkpoint(folder).reasoner
        self.reasoner.merge_adapter()
        self.reasoner.to(device).eval()
        self.processor = Processor.from_folder(folder).see_for(self.reasoner.settings.replay)

    @torch.no_grad()
    def point(self, batch: TrainBatch) -> TrainBatch:
        """The batch with targets for each latent step, (B, T, V)."""
        if batch.taught is None or batch.overlap is None:
            return batch
        state = self.reasoner.prefill(batch.taught, attend=True)
        targets: list[torch.Tensor] = []
        for step in range(int(batch.num_latents.max())):
            assert state.saliency_BV is not None  # there are pictures
            targets.append(as_target(state.saliency_BV, batch.overlap, self.sharpness))
            self.reasoner.think(state, batch.num_latents > step)
        if not targets:
            return batch
        return replace(batch, looks=torch.stack(targets, 1))
