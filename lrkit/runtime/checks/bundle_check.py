"""Checks that a bundle is whole and still answers as it did when it was exported. Torch-free.

Place in the pipeline: `lrkit validate BUNDLE` -> `check_bundle`. Digests and schema: bundle/bundle_folder.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.manifest import RecordedSample, Role
from lrkit.errors import BundleError, TimeoutExceeded, UserError
from lrkit.runtime.checks.front_check import front_problems
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.common.stopping import Stop
from lrkit.runtime.engines.programs.patience import patience
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.table import EngineChoice, open_engine

_ENDLESS = "has no answer after many times what its files need, so its program may have no end; do not use this bundle"


@dataclass
class BundleReport:
    """What was found in a bundle."""

    bundle: Bundle
    engine: str
    """What ran its samples."""
    place: str
    """Where, as `Engine.place` says."""
    samples: int = 0
    """Recorded samples run again."""
    same: int = 0
    """Those that gave the recorded tokens and latent steps."""
    problems: list[str] = field(default_factory=list)
    """One sentence each; empty for a good bundle."""

    def raise_if_bad(self) -> None:
        """Raise all problems at once.

        Raises:
            BundleError: with one line per problem.
        """
        if self.problems:
            raise BundleError("\n".join(self.problems))


def check_bundle(folder: Path | str, choice: EngineChoice | None = None) -> BundleReport:
    """Digests, schema, each program against its declared inputs and outputs, and the recorded samples once more.

    Raises:
        BundleError: the bundle cannot be opened at all; what is found after that is in the report.
        UserError: a provider or GPU that this machine lacks.
    """
    engine = open_engine(folder, choice)
    report = BundleReport(engine.bundle, engine.name, engine.place)
    engines: dict[Role, ProgramEngine] = {}
    for role in engine.bundle.manifest.programs:
        try:
            engines[role] = engine.as_role(role)
            engines[role].load()
        except BundleError as error:
            report.problems.append(str(error))
    if (front := engine.bundle.manifest.front) is not None:
        report.problems += front_problems(engine.bundle.folder, front, engine.processor)
    if not report.problems:
        for number, sample in enumerate(engine.bundle.manifest.samples):
            name = f"{folder}: recorded sample {number}"
            try:
                _run_again(engines, sample, name, report)
            except (TimeoutExceeded, UserError) as error:
                # What one sample cannot be asked, the others hardly can, and each may take its whole time.
                report.problems.append(f"{name}: {error if isinstance(error, UserError) else _ENDLESS}")
                break
    return report


def _run_again(engines: dict[Role, ProgramEngine], sample: RecordedSample, name: str, report: BundleReport) -> None:
    if sample.role not in engines:
        report.problems.append(f"{name} is for a {sample.role} program, which the bundle lacks; copy the bundle again")
        return
    engine = engines[sample.role]
    images = [report.bundle.folder / image for image in sample.images]
    prompt = engine.processor.encode_prompt(images, sample.question)
    # As it was recorded, whatever the bundle was told to do by default since.
    think, most = engine.entry.settings.think, report.bundle.manifest.limits.max_latent_steps
    stop = Stop.within(patience(report.bundle, sample.role, len(sample.token_ids) + sample.latent_steps + 1))
    asked = AskOptions(sample.role, None, min(think.max_latent_steps, most), think.halting, stop=stop)
    (found,) = engine.generate([prompt], asked)
    report.samples += 1
    if tuple(found.token_ids) == sample.token_ids and found.latent_steps == sample.latent_steps:
        report.same += 1
        return
    said, expected = engine.processor.decode(found.token_ids), engine.processor.decode(sample.token_ids)
    report.problems.append(
        f"{name} ({sample.role}) gives {said!r} after {found.latent_steps} latent steps where {expected!r} after "
        f"{sample.latent_steps} was recorded; this machine computes otherwise, so export again on it"
    )
