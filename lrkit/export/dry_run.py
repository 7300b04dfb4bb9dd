"""What an export would be stopped by, found without writing anything: `lrkit export --dry-run`.

Place in the pipeline: the verb opens a subject and its samples -> `plan_export`, which reads what `export_bundle`
reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.sample import Sample
from lrkit.export.before import Bounds, look_ahead, refuse_taken
from lrkit.export.calibration.sensitive import NONE_KEPT, KeepSensitive
from lrkit.export.graph.latent_input import check_latents
from lrkit.export.subject import Subject, check_adapters
from lrkit.export.target_engines import Say
from lrkit.export.targets.target import Target, limits_of, processor_of


@dataclass(frozen=True)
class ExportPlan:
    """What would be written."""

    programs: Mapping[str, int]
    """Role -> layers of its language model."""
    limits: Limits
    samples: int
    """Compared with torch, whose model is not loaded here."""


def plan_export(
    subject: Subject,
    output: Path,
    target: Target,
    samples: Sequence[Sample],
    *,
    baselines: bool = True,
    force: bool = False,
    allow_unproven: bool = False,
    max_loss: float | None = None,
    keep: KeepSensitive = NONE_KEPT,
    say: Say = lambda text: None,
) -> ExportPlan:
    """Everything of `export_bundle` up to the first program: place, samples within the target's limits, every weight.

    Raises:
        CheckpointError: the checkpoint or a baseline cannot be read.
        ExportError: no program can be built for it, there is nothing to prove it by, or `output` is taken.
        CapacityError, DataError: a sample is above the limits, or cannot be read.
    """
    refuse_taken(output, force)
    look_ahead(subject, target, samples, Bounds(allow_unproven, max_loss), keep, say)
    processor = processor_of(target, subject.processor)
    for sample in samples:
        processor.encode_prompt(sample.images, sample.question)
    origins = subject.origins(baselines)
    check_adapters(origins, target.adapter)
    for origin in origins.values():
        check_latents(origin.settings.think)
    steps = next(iter(origins.values())).settings.think.max_latent_steps
    layers = {role: origin.source().dimensions.num_layers for role, origin in origins.items()}
    return ExportPlan(layers, limits_of(target, steps, processor.geometry), len(samples))
