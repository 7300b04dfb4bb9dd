"""What an export refuses or warns of before anything is computed or written.

Place in the pipeline: bundle.py and dry_run.py ask first of all.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import BUNDLE_FILE
from lrkit.contract.sample import Sample
from lrkit.errors import ExportError, FileError, os_sentence
from lrkit.export.calibration.sensitive import KeepSensitive
from lrkit.export.graph.front import check_front
from lrkit.export.loss_bound import enough
from lrkit.export.subject import Subject
from lrkit.export.target_engines import Say
from lrkit.export.targets.target import Target, picture_warning


@dataclass(frozen=True)
class Bounds:
    """What is asked of the comparison with torch, besides what the scheme asks."""

    allow_unproven: bool = False
    """A bundle is written even where the samples prove nothing."""
    max_loss: float | None = None
    """Points of accuracy that a program may lose."""


def look_ahead(
    subject: Subject, target: Target, samples: Sequence[Sample], bounds: Bounds, keep: KeepSensitive, say: Say
) -> None:  # fmt: skip
    """What can be refused or warned of before anything is written.

    Raises:
        ExportError: nothing would be compared, or too little to see the loss that is allowed.
        UserError: matrices are to be kept, and none has 4 bits; or a front is wanted that cannot be made.
    """
    if target.unread_on_cpu is not None and bounds.max_loss is not None:
        raise ExportError(
            f"no engine reads {target.unread_on_cpu} on a CPU, so no loss would be seen; leave --max-loss out, or set "
            "precision=int4 or fp8"
        )
    if target.unread_on_cpu is not None and not bounds.allow_unproven:
        raise ExportError(
            f"no engine reads {target.unread_on_cpu} on a CPU, so nothing would prove the program; give "
            "--allow-unproven to write it all the same, or set precision=int4 or fp8"
        )
    if not samples and not bounds.allow_unproven:
        raise ExportError("no samples were given to check the program on; give at least one, or allow_unproven")
    if target.front:
        check_front(subject.processor.geometry, [one.settings for one in subject.origins(False).values()])
    enough(bounds.max_loss, samples)
    keep.check(target)
    for warning in (picture_warning(target, subject.processor), target.speed_warning):
        if warning is not None:
            say(warning)


def check_form(target: Target, form: Form) -> None:
    """Raises `ExportError` where a target asks for what another form has."""
    if target.logits and form != "step":
        raise ExportError(
            f"the target sets logits, which steps give to the host, and the form is {form}; give form step, or leave "
            "logits out"
        )


def refuse_taken(output: Path, force: bool) -> None:
    """Checks, before anything is computed, that a bundle may be written there.

    Raises:
        ExportError: something else than a bundle is there, a bundle without `force`, or a folder that cannot be
            replaced.
        FileError: no path.
    """
    try:
        place = Path(os.path.realpath(output))
        taken, held = os.path.lexists(place), (place / BUNDLE_FILE).is_file()
        if taken and not held and (not place.is_dir() or any(place.iterdir())):
            raise ExportError(f"{output} exists and is no bundle; give another folder")
        if taken and (os.path.ismount(place) or place == Path(os.path.realpath("."))):
            what = "a mount point" if os.path.ismount(place) else "the working folder"
            raise ExportError(f"{output} is {what}, which no other folder can replace; give a folder of its own")
        if held and not force:
            raise ExportError(f"{output} holds a bundle already; give another folder, or --force to replace it")
        place.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, ExportError):
            raise
        raise FileError(os_sentence(error, output)) from error
