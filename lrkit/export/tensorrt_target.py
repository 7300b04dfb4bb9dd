"""What an export does about the TensorRT engines that its target asks for: build them, or leave a script that does.

Place in the pipeline: bundle.py's `export_bundle` asks it before the weights are read, and again once the programs are
proven.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from lrkit.errors import ExportError
from lrkit.export.target import EngineTarget, Target
from lrkit.export.tensorrt import Plan, Progress, build_engines, plan_engines
from lrkit.export.tensorrt_bundle import with_engines
from lrkit.export.tensorrt_script import SCRIPT_FILE, write_script
from lrkit.runtime.manifest import Manifest, digest
from lrkit.runtime.tensorrt_library import installed_version


@dataclass(frozen=True)
class TargetEngines:
    """What the target's engines come to: built here by a plan, or left to a script, in the bundle or elsewhere."""

    target: EngineTarget | None
    plan: Plan | None
    script: Path | None

    @staticmethod
    def of(target: Target, script: Path | None) -> "TargetEngines":
        """Checked before anything is computed."""
        engine = target.engine
        if engine is None and script is not None:
            raise ExportError(
                f"{script} would build no engine: the target asks for none; give --engine tensorrt or a target with one"
            )
        elsewhere = engine is None or script is not None
        if engine is None or elsewhere or (engine.kind == "tensorrt" and installed_version(engine.kind) is None):
            return TargetEngines(engine, None, script)
        return TargetEngines(engine, plan_engines(engine), None)

    def add(self, manifest: Manifest, staging: Path, seconds: dict[str, float], progress: Progress) -> Manifest:
        """Engines, or the script, in the bundle being written."""
        if self.plan is not None:
            started = time.perf_counter()
            built = build_engines(staging, manifest, self.plan, staging, progress)
            seconds["engines"] = time.perf_counter() - started
            return with_engines(manifest, staging, built)
        if self.target is None or self.script is not None:
            return manifest
        write_script(staging / SCRIPT_FILE, staging, manifest, self.target)
        return manifest.model_copy(update={"files": {**manifest.files, SCRIPT_FILE: digest(staging / SCRIPT_FILE)}})

    def finish(self, bundle: Path, manifest: Manifest) -> Path | None:
        """Writes a script that lies outside of the finished bundle; returns where the script is."""
        if self.target is None or self.plan is not None:
            return None
        if self.script is not None:
            write_script(self.script, bundle, manifest, self.target)
        return self.script or bundle / SCRIPT_FILE
