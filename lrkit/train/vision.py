"""The objective `vision`: classify every visual token by linear read-outs, before the language model learns anything.

A tower with random weights says nothing about a picture. A language model that must train it through its answers alone
takes very long (the prototype: nothing in 1,000 updates; with this objective first, under a minute).

Legend: V visual tokens of the whole batch, D width, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.contract.sample import Sample
from lrkit.errors import ConfigError
from lrkit.model.precision import exact, wide
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import join_grids, join_pixels
from lrkit.train.stage import Readout


@dataclass
class VisionBatch:
    """Pictures with a label per visual token."""

    pixel_values: Tensor
    """(N, C) float32 patches."""
    grids: Tensor
    """(I, G) int64: how each picture was cut."""
    labels: dict[str, Tensor]
    """Read-out name -> (V,) int64, negative where there is nothing to say."""

    def to(self, device: torch.device | str) -> "VisionBatch":
        """The same batch on `device`."""
        labels = {name: values.to(device) for name, values in self.labels.items()}
        return replace(
            self,
            pixel_values=self.pixel_values.to(device),
            grids=self.grids.to(device),
            labels=labels,
        )


@dataclass(frozen=True)
class VisionLoss:
    """Losses of one batch; the fields that the loop reads of a `ReasonerLoss` have the same names."""

    total: Tensor
    right_tokens: Tensor
    num_tokens: Tensor
    right_by_label: dict[str, tuple[Tensor, Tensor]]
    """Read-out -> (right, labelled) counts."""


def collate_vision(processor: Processor, samples: Sequence[Sample], names: Sequence[str]) -> VisionBatch:
    """Pictures and labels of samples.

    Raises:
        ConfigError: a sample has no such label, or one for other visual tokens than the model's.
    """
    for name in names:
        if name not in samples[0].info:
            known = ", ".join(key for key, value in samples[0].info.items() if isinstance(value, np.ndarray))
            raise ConfigError(f"readouts: samples have no label {name!r}; known: {known or 'none'}")
    encoded = [processor.encode_prompt(sample.images, sample.question) for sample in samples]
    for sample, prompt in zip(samples, encoded, strict=True):
        seen = prompt.ids.count(processor.image_id)
        if wrong := next((name for name in names if len(sample.info[name]) != seen), None):
            raise ConfigError(
                f"readouts: {wrong} labels {len(sample.info[wrong])} visual tokens of a sample, and the model makes "
                f"{seen} of its pictures, as it cuts them in another way; leave out the stage whose objective is vision"
            )
    pixels, grids = join_pixels(encoded), join_grids(encoded)
    assert pixels is not None and grids is not None, "samples with labels of visual tokens have pictures"
    return VisionBatch(
        pixel_values=pixels,
        grids=grids,
        labels={name: torch.from_numpy(np.concatenate([s.info[name] for s in samples])) for name in names},
    )


class VisionObjective(nn.Module):
    """A reasoner's tower under linear read-outs."""

    def __init__(
        self,
        reasoner: LatentReasoner,
        processor: Processor,
        readouts: Mapping[str, Readout],
        seed: int,
        words: Callable[[str], Sequence[str] | None],
    ) -> None:
        """`seed` decides the tables' starting values, whatever was drawn before: a resumed run makes the same. `words`:
        label -> what its classes are called.

        Raises:
            ConfigError: a tied class is no single token of the model.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.reasoner = reasoner
        self._readouts = dict(readouts)
        width, device = reasoner.backbone.hidden_size, reasoner.backbone.embedding_rows().device
        self.readout_tables = nn.ParameterDict()
        self._rows: dict[str, list[int]] = {}
        for name, readout in readouts.items():
            if readout.tied:
                self._rows[name] = _word_ids(processor, name, (words(name) or ())[: readout.classes])
            else:
                table = torch.randn(readout.classes, width, generator=generator) * 0.02
                self.readout_tables[name] = nn.Parameter(table.to(device))

    def loss_counts(self, batch: VisionBatch) -> Tensor:
        """What the read-outs' losses are means over: labelled tokens of each, (read-outs,) float32."""
        return torch.stack([(batch.labels[name] >= 0).sum() for name in self._readouts]).float()

    def forward(self, batch: VisionBatch, counts: Tensor | None = None) -> VisionLoss:
        """Sum over read-outs of the mean cross entropy over labelled tokens.

        `counts` is the mean of `loss_counts` over the batches of an update; None: this batch stands alone.
        """
        backbone = self.reasoner.backbone
        tokens_VD = backbone.encode_images(batch.pixel_values, batch.grids)[:, : backbone.hidden_size]
        counts = (self.loss_counts(batch) if counts is None else counts).clamp_min(torch.finfo(torch.float32).tiny)
        losses: list[Tensor] = []
        right: dict[str, tuple[Tensor, Tensor]] = {}
        for name, count in zip(self._readouts, counts, strict=True):
            table_CD = self.readout_tables[name] if name not in self._rows else self._embedding_rows(name)
            with exact(tokens_VD):
                logits_VC = wide(tokens_VD) @ table_CD.T
            labels_V = batch.labels[name]
            known_V = labels_V >= 0
            target_V = labels_V.masked_fill(~known_V, -100)
            losses.append(functional.cross_entropy(logits_VC, target_V, reduction="sum") / count)
            if pull := self._readouts[name].pull:
                losses.append(pull * _distance(wide(tokens_VD[known_V]), table_CD[labels_V[known_V]]) / count)
            right[name] = (((logits_VC.detach().argmax(-1) == labels_V) & known_V).sum(), known_V.sum())
        total = torch.stack(losses).sum()
        counts = torch.stack([torch.stack(pair) for pair in right.values()]).sum(0)
        return VisionLoss(total, counts[0], counts[1], right)

    def _embedding_rows(self, name: str) -> Tensor:
        return wide(self.reasoner.backbone.embedding_rows()[self._rows[name]])


def _distance(tokens_LD: Tensor, rows_LD: Tensor) -> Tensor:
    """Sum over tokens of the squared distance from their rows, as a share of the rows' mean square."""
    rows = rows_LD.detach()
    return (tokens_LD - rows).square().sum() / rows.square().sum(-1).mean().clamp_min(1e-12)


def _word_ids(processor: Processor, label: str, words: Sequence[str]) -> list[int]:
    """The one token of each word."""
    ids = {word: found for word in words if (found := processor.one_token(word)) is not None}
    if missing := [word for word in words if word not in ids]:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ConfigError(
            f"readouts.{label}: tied classes need a token for each word, and the tokenizer has none for {shown}; lower "
            "classes or set tied: false"
        )
    return list(ids.values())
