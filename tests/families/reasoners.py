"""Reasoners around a family's tiny model with no new weight at a special value, and batches of its questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from lrkit.contract.sample import Sample
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.collate import TrainBatch, collate_training
from lrkit.model.build import Trainable, build_reasoner
from lrkit.model.open_backbone import load_backbone
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import Side
from tests.families.cases import FamilyCase
from tests.families.conftest import pictures_of


def settings_of(case: FamilyCase, **sections: Any) -> ReasonerSettings:
    """Everything on that the family has a meaning for; `sections` take the place of the defaults here."""
    usual: dict[str, Any] = {
        "think": {"max_latent_steps": 2, "halting": "fixed"},
        "replay": {"num_tokens": 4},
        "routing": {"depth": 1, "alpha": 6, "layers": "all"},
        "distill": {"weight": 1.0, "window": 2},
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0},
    }
    without: dict[str, Any] = {"replay": {"num_tokens": 0}, "routing": {"depth": 0}, "distill": {"weight": 0.0}}
    chosen = {**usual, **sections, **{part: value for part, value in without.items() if part in case.cannot}}
    return ReasonerSettings.model_validate(chosen)


def rich_reasoner(
    folder: Path, settings: ReasonerSettings, processor: Processor, trainable: Trainable = "none", seed: int = 0
) -> LatentReasoner:
    """In float32; step encodings, routers and LoRA are away from their starting values."""
    backbone = load_backbone(str(folder), torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # peft draws lora_A by it
        reasoner = build_reasoner(backbone, settings, processor.latent_id, trainable=trainable)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in reasoner.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad or _new(name) else None
            if drawn is not None and "step_encoding" in name:
                parameter.copy_(0.3 * drawn)
            elif drawn is not None and "router" in name and parameter.dim() > 1:
                parameter.copy_(0.25 * drawn)  # more would close or open gates so far that no gradient is left
            elif drawn is not None and "lora_B" in name:
                parameter.copy_(0.05 * drawn)
    return reasoner.eval()


def _new(name: str) -> bool:
    return not name.startswith("model.")


def sample_of(case: FamilyCase, pictures: Sequence[Image], name: str = "") -> Sample:
    """The case's question about these pictures."""
    return Sample(tuple(pictures), case.question, case.steps, case.answer, name)


def unlike_samples(case: FamilyCase) -> list[Sample]:
    """A picture, several, none."""
    return [sample_of(case, pictures_of(case, count), str(count)) for count in (1, 2, 0)]


def batch_of(
    processor: Processor, samples: Sequence[Sample], latents: Sequence[int], side: Side = "right", extra: int = 0
) -> TrainBatch:
    """A training batch; `extra` columns of padding more than its longest prompt needs."""
    batch = collate_training(processor, samples, latents, side=side)
    if extra:
        shape = (len(samples), extra)
        ids = torch.full(shape, processor.pad_id)
        mask = torch.zeros(shape, dtype=torch.bool)
        first = (ids, batch.input_ids) if side == "left" else (batch.input_ids, ids)
        batch.prompt_mask = torch.cat((mask, batch.prompt_mask) if side == "left" else (batch.prompt_mask, mask), 1)
        batch.input_ids = torch.cat(first, 1)
    return batch
