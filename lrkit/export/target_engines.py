"""What an export does about the TensorRT engines that its target asks for: build them, or leave a script that does.

Place in the pipeline: bundle.py's `export_bundle` asks it before the weights are read, once the programs are written,
and again once they are proven.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lrkit.contract.bundle.manifest import Manifest, ProgramEntry, Role, digest
from lrkit.errors import ExportError, FileError
from lrkit.export.targets.engine_target import EngineTarget
from lrkit.export.targets.target import Target
from lrkit.export.tensorrt.into_bundle import with_engines
from lrkit.export.tensorrt.jobs import FOLDER, Plan, Progress, build_engines, check_programs, plan_engines
from lrkit.export.tensorrt.script import SCRIPT_FILE, write_script
from lrkit.files import remove
from lrkit.runtime.engines.tensorrt.library import installed_version

Say = Callable[[str], None]
"""Gets a sentence that whoever waits should read now."""


@dataclass
class TargetEngines:
    """What the target's engines come to: built here by a plan, or left to a script, in the bundle or elsewhere."""

    target: Target
    plan: Plan | None
    script: Path | None
    refusal: str | None = None
    """Why there are none, where the builder refused or failed."""

    @property
    def engine(self) -> EngineTarget | None:
        """The engines that are asked for."""
        return self.target.engine

    @staticmethod
    def of(target: Target, script: Path | None) -> "TargetEngines":
        """Checked before anything is computed."""
        engine = target.engine
        if engine is None and script is not None:
            raise ExportError(
                f"{script} would build no engine: the target asks for none; give --engine tensorrt or a target with one"
            )
        if script is not None:
            _refuse_place(script)
        elsewhere = engine is None or script is not None
        if engine is None or elsewhere or (engine.kind == "tensorrt" and installed_version(engine.kind) is None):
            return TargetEngines(target, None, script)
        return TargetEngines(target, plan_engines(engine), None)

    def ask(self, folder: Path, programs: Mapping[Role, ProgramEntry], progress: Progress, say: Say) -> None:
        """Asks the rules and the parser about programs that have just been written, before more time is spent on them.

        Raises:
            ExportError: a script would have nothing to build from.
        """
        if self.engine is None:
            return
        from lrkit.export.preflight.of_export import doubts, refusal

        values = self.target.model_dump(mode="json")
        if self.plan is None:
            check_programs(programs, self.engine.archs)
            for doubt in doubts(folder, programs, values, self.engine.kind):
                say(f"the script may build no engine: {doubt}")
            return
        self.refusal = refusal(folder, programs, values, self.plan, progress)
        if self.refusal is not None:
            say(f"no engine will be built: {self.refusal}; the rest of the bundle is still written")

    def add(self, manifest: Manifest, staging: Path, seconds: dict[str, float], progress: Progress) -> Manifest:
        """Engines, or the script, in the bundle being written; neither where the builder refuses, see `refusal`."""
        if self.plan is not None:
            started = time.perf_counter()
            try:
                built = {} if self.refusal else build_engines(staging, manifest, self.plan, staging, progress)
            except (ExportError, FileError) as error:
                self.refusal, built = str(error), {}
                remove(staging / FOLDER)
            seconds["engines"] = time.perf_counter() - started
            return with_engines(manifest, staging, built)
        if self.engine is None or self.script is not None:
            return manifest
        write_script(staging / SCRIPT_FILE, staging, manifest, self.engine)
        return manifest.model_copy(update={"files": {**manifest.files, SCRIPT_FILE: digest(staging / SCRIPT_FILE)}})

    def finish(self, bundle: Path, manifest: Manifest) -> Path | None:
        """Writes a script that lies outside of the finished bundle; returns where the script is."""
        if self.engine is None or self.plan is not None:
            return None
        if self.script is not None:
            write_script(self.script, bundle, manifest, self.engine)
        return self.script or bundle / SCRIPT_FILE


def _refuse_place(script: Path) -> None:
    """A path below a file is known before anything is computed."""
    place = Path(os.path.realpath(script))
    above = next(parent for parent in place.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise ExportError(f"{script}: {above} is a file, so nothing can be written below it; give another path")
