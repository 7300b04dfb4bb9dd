"""What `lrkit export` calibrates on: the options, and the `Calibrator` that they make."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from lrkit.errors import UserError
from lrkit.resources import random_shape

if TYPE_CHECKING:
    from lrkit.export.calibration.calibrate import Calibrator
    from lrkit.export.calibration.gather import CalibrationSet
    from lrkit.export.calibration.sensitive import KeepSensitive
    from lrkit.export.calibration.sums import Phase
    from lrkit.export.subject import Subject
    from lrkit.export.targets.target import Target

PANEL = "Integers"
DEFAULT, DEFAULT_SAMPLES = "trail:main", 64
MethodName = Annotated[
    str | None,
    typer.Option("--int4-method", help="rtn, search (no data), gptq, awq (calibrated).", rich_help_panel=PANEL),
]
SetName = Annotated[
    str | None,
    typer.Option(
        help="For gptq and awq: trail:main, ..., a .jsonl or a .txt file. [default: trail:main]", rich_help_panel=PANEL
    ),
]
SetSize = Annotated[
    int | None, typer.Option(help="How many samples of it. [default: 64; of a text: all]", rich_help_panel=PANEL)
]
Mix = Annotated[
    str | None,
    typer.Option(help="How much phases count: prompt=1,latent=2,speech=1. [default: 1 each]", rich_help_panel=PANEL),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        "--max-loss", help="Points of accuracy that a program may lose against torch, as 0.5.", rich_help_panel=PANEL
    ),
]
KeepCount = Annotated[
    int,
    typer.Option("--keep-sensitive", help="Keep so many of the worst matrices in more bits.", rich_help_panel=PANEL),
]
KeepAs = Annotated[str, typer.Option("--keep-as", help="int8 or float.", rich_help_panel=PANEL)]


def kept(model: str, count: int, kept_as: str) -> "KeepSensitive":
    """The matrices to keep. Raises `UserError` for less than none, what a matrix cannot be kept as, or random ones."""
    from lrkit.export.calibration.sensitive import KeepSensitive

    if count > 0 and random_shape(model) is not None:
        raise UserError(f"--keep-sensitive is {count}, and no random matrix is worse than another; leave it out")
    return KeepSensitive(count, kept_as)


def method_change(method: str | None, overrides: Sequence[str]) -> list[str]:
    """Changes of the target with that of --int4-method.

    Raises:
        UserError: there is no such method.
    """
    from lrkit.contract.schemes import Method

    if method is not None and method not in get_args(Method):
        raise UserError(f"--int4-method is {method!r}; it must be one of {', '.join(get_args(Method))}")
    return [*overrides, *([] if method is None else [f"int4.method={method}"])]


def open_calibrator(
    subject: "Subject", target: "Target", place: Path, name: str | None, count: int | None, mix: str | None
) -> "Calibrator | None":
    """None where the target's method needs no data.

    Raises:
        UserError: options of a calibration where there is none, random weights, or a mix that is none.
        DataError, UnknownNameError, ExportError: no such set, or an empty one.
    """
    from lrkit.contract.schemes import CALIBRATED
    from lrkit.export.subject import CheckpointSubject

    wanted = target.scheme.integers and target.int4.method in CALIBRATED
    if not wanted:
        if given := [key for key, value in (("", name), ("-samples", count), ("-mix", mix)) if value is not None]:
            raise UserError(
                f"--calibration{given[0]} is for --int4-method {' and '.join(CALIBRATED)} with integers, and this is "
                f"{target.precision} by {target.int4.method}; leave it out, or ask for both"
            )
        return None
    if not isinstance(subject, CheckpointSubject):
        raise UserError(
            f"int4.method is {target.int4.method}, and random weights have nothing to keep; set int4.method=rtn"
        )
    from lrkit.export.calibration.calibrate import Calibrator

    files = sorted(path for path in subject.folder.iterdir() if path.is_file())
    stamp = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    folder = place.parent / f"{place.name}.calibration"
    return Calibrator(target, _opened(name or DEFAULT, count, mix), folder, f"{subject.folder}: {'; '.join(stamp)}")


def _opened(name: str, count: int | None, mix: str | None) -> "CalibrationSet":
    from lrkit.data.sources import load_samples
    from lrkit.export.calibration.gather import CalibrationSet
    from lrkit.files import read_text

    if count is not None and count < 1:
        raise UserError(f"--calibration-samples is {count}; give 1 or more")
    if name.endswith(".txt"):
        if count is not None:
            raise UserError(f"{name} is a text, which is read whole; leave --calibration-samples out")
        return CalibrationSet(name, (), (read_text(Path(name), UserError),), _mix(mix))
    return CalibrationSet(name, load_samples(name, count or DEFAULT_SAMPLES, "train"), (), _mix(mix))


def _mix(text: str | None) -> "dict[Phase, float]":
    from lrkit.export.calibration.sums import PHASES

    if text is None:
        return dict.fromkeys(PHASES, 1.0)
    parts: dict[str, str] = {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
    found: dict[Phase, float] = {}
    try:
        found = {phase: float(parts.pop(phase, "0")) for phase in PHASES}
    except ValueError:
        parts["?"] = ""
    if parts or any(not 0 <= value < 1e6 for value in found.values()) or not any(found.values()):
        raise UserError(
            f"--calibration-mix is {text[:60]!r}; give numbers from 0 on for {', '.join(PHASES)}, one of them more "
            "than 0, as in prompt=1,latent=2,speech=1"
        )
    return found
