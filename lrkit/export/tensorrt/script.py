"""Writes build_engine.py: one script that builds a bundle's engines on a device that has TensorRT but no lrkit.

Place in the pipeline: `lrkit engines ... --script FILE`, and targets whose builder is not on this machine. The script
is the code that lrkit itself builds with (device/words.py, device/build_engine.py, device/run_builder.py), one behind
the other, with the jobs, profiles and options of this bundle as a literal.
"""

import ast
import json
from pathlib import Path

from lrkit import __version__
from lrkit.contract.bundle.manifest import Manifest
from lrkit.export.targets.engine_target import EngineTarget
from lrkit.export.tensorrt.jobs import check_programs, plan_jobs, plan_script
from lrkit.files import write_text
from lrkit.runtime.engines.tensorrt.library import PACKAGES

SCRIPT_FILE = "build_engine.py"
"""Its usual name."""
_MODULES = ("words.py", "build_engine.py", "run_builder.py")
_REQUEST = "REQUEST: dict[str, Any] | None = None\n"


def write_script(file: Path, folder: Path, manifest: Manifest, engine: EngineTarget) -> None:
    """Writes the script for the bundle in `folder` to `file`.

    Raises:
        ExportError: the bundle's programs are of another dialect.
        FileError: it cannot be written.
    """
    write_text(file, script_text(folder, manifest, engine))


def script_text(folder: Path, manifest: Manifest, engine: EngineTarget) -> str:
    """The script's source."""
    check_programs(manifest.programs, engine.archs)
    plan = plan_script(engine)
    own = PACKAGES[plan.kind]
    request = {
        "packages": [own, *(name for name in PACKAGES.values() if name != own)], "archs": plan.archs,
        "options": plan.options,
        "jobs": [
            {**job.as_request(), "role": job.role, "sha256": manifest.files[job.onnx].sha256}
            for job in plan_jobs(folder, manifest, plan)
        ],
    }  # fmt: skip
    text = joined_source()
    assert text.count(_REQUEST) == 1
    literal = f"REQUEST: dict[str, Any] | None = json.loads(r'''\n{json.dumps(request, indent=1)}\n''')\n"
    return text.replace(_REQUEST, literal)


def joined_source() -> str:
    """The modules as one: docstring of the last, imports of all once, then the rest in order."""
    folder = Path(__file__).resolve().parent / "device"
    sources = [(folder / name).read_text(encoding="utf-8") for name in _MODULES]
    imports = sorted({line for source in sources for line in _imports(source) if "lrkit" not in line})
    # isort's order: `import x` before `from x import y`.
    imports.sort(key=lambda line: line.startswith("from"))
    head = f"{ast.get_docstring(ast.parse(sources[-1]))}\n\nWritten by lrkit {__version__}."
    parts = [f'"""{head}\n"""', "from __future__ import annotations", "\n".join(imports)]
    return "\n\n".join(parts) + "\n\n" + "\n\n".join(map(_body, sources))


def _imports(source: str) -> list[str]:
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.unparse(node) for node in nodes if not _is_future(node)]


def _body(source: str) -> str:
    """What follows the imports, with its comments."""
    last = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)][-1]
    return "\n".join(source.splitlines()[last.end_lineno :]).strip("\n") + "\n"


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"
