"""What `lrkit preflight THING` can be given, as ONNX files: a file, the programs of a bundle, or a checkpoint that
is built into a temporary folder as an export would build it.

Place in the pipeline: lrkit/cli/preflight.py opens a thing here and hands each graph to findings.py.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import Dialect
from lrkit.errors import UserError, clean, one_line
from lrkit.export.preflight.view import View, graphs_of
from lrkit.export.targets.target import Target, limits_of


@dataclass(frozen=True)
class CheckedGraph:
    """One ONNX file to check."""

    name: str
    """How reports call it: model.onnx, latent, latent.think, ..."""
    path: Path
    target: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of the target file that it was exported for, where they are known."""
    dialect: Dialect | None = None
    """Of a program of lrkit."""

    def view(self) -> View:
        """The graph with the types and shapes that can be inferred. Weights stay on disk.

        Where inference fails, as it does on a program that contradicts itself, the declared ones must do.

        Raises:
            UserError: it is no ONNX program, or not a whole one.
        """
        try:
            model = ir.load(self.path)
            view = View(model, self.target)
            wrong = next(incomplete(view, self.path.parent), None)
            if wrong is None:
                with _quiet():
                    return View(ShapeInferencePass()(model).model, self.target)
        except Exception as error:  # protobuf, numpy and onnx_ir each raise their own
            raise UserError(
                f"{self.path}: cannot be read as an ONNX program ({one_line(error)}); give an .onnx file"
            ) from error
        raise UserError(f"{self.path}: {wrong}")


def incomplete(view: View, folder: Path) -> Iterator[str]:
    """What a program lacks before anything can be said of it: operators, bodies, branches, files of weights that lie
    in `folder`."""
    if not view.sites:
        yield "holds no nodes; give an ONNX program"
    for site in view.sites:
        if problem := _unfinished(site.node):
            yield f"the {site.node.op_type or 'node'} {clean(site.name)} has {problem}; write the program again"
    for value in view.constants():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield from _outside(value.const_value, folder)


def _unfinished(node: ir.Node) -> str:
    """What a node lacks to be one."""
    graphs = dict(graphs_of(node))
    needed = {"Loop": ("body",), "Scan": ("body",), "If": ("then", "else")}.get(node.op_type, ())
    missing = [name for name in needed if name not in graphs]
    if not node.op_type:
        return "no operator"
    if missing:
        return f"no {' and no '.join(missing)}"
    if node.op_type == "Loop":
        states = max(0, len(node.inputs) - 2)
        if len(graphs["body"].inputs) != 2 + states or len(graphs["body"].outputs) < 1 + states:
            return f"{states} carried states, which its body does not take and return"
    return ""


def _outside(tensor: ir.ExternalTensor, folder: Path) -> Iterator[str]:
    """What is wrong with where a weight lies: never opened, as the name may be any file of this machine."""
    name = str(tensor.location)
    place = folder / name
    if (
        not name
        or Path(name).is_absolute()
        or not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))
    ):
        yield f"its weights lie in {clean(name)!r}, outside its folder; do not use this program"
    elif not place.is_file():
        yield f"its weights lie in {clean(name)!r}, which is not beside it; copy both"
    elif (tensor.offset or 0) + tensor.nbytes > place.stat().st_size or (tensor.offset or 0) < 0:
        yield f"{clean(name)!r}, which holds its weights, is cut off; copy it again"


@contextmanager
def _quiet() -> Generator[None]:
    """Inference writes a traceback to the log where it fails; what is wrong will be found by the rules."""
    logger = logging.getLogger(ShapeInferencePass.__module__)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def graphs_of_bundle(folder: Path) -> list[CheckedGraph]:
    """The graphs of all programs of a bundle. Digests are not compared; `lrkit validate` does that.

    Raises:
        BundleError: no bundle, or one whose files are missing.
    """
    manifest = open_bundle(folder, verify=False).manifest
    found: list[CheckedGraph] = []
    for role, entry in manifest.programs.items():
        files = {f"{role}.{name}": step.file for name, step in entry.steps.items()} or {str(role): entry.file}
        found += [CheckedGraph(name, folder / f, manifest.target, entry.dialect) for name, f in files.items()]
    return found


@contextmanager
def graphs_of_checkpoint(checkpoint: Path, target: Target, form: Form) -> Generator[list[CheckedGraph]]:
    """The graphs that an export of the checkpoint to the target would write; they are gone afterwards.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: no program can be built for it.
    """
    folder = Path(tempfile.mkdtemp(prefix="lrkit-check-"))
    try:
        values = target.model_dump(mode="json")
        files = _build(checkpoint, target, form, folder)
        yield [CheckedGraph(name, folder / file, values, target.dialect) for name, file in files.items()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build(checkpoint: Path, target: Target, form: Form, folder: Path) -> dict[str, str]:
    """Name -> file of the graphs, written into `folder`."""
    import torch

    from lrkit.export.graph.dialects import writer_for
    from lrkit.export.graph.program import build_program
    from lrkit.export.graph.saving import save_models
    from lrkit.export.graph.stack import Stack
    from lrkit.export.graph.step_graphs import build_steps, save_steps
    from lrkit.export.graph.tower_writer import write_tower
    from lrkit.export.weights.source import read_source
    from lrkit.model.checkpoint import load_checkpoint
    from lrkit.runtime.encode.processor import Processor

    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    source = read_source(loaded.reasoner, keep=target.adapter == "keep")
    writer = writer_for(target, source.weight, source.dimensions.recipe.norm, low_rank=source.low_rank)
    processor = Processor.from_folder(checkpoint)
    limits = limits_of(target, loaded.reasoner.settings.think.max_latent_steps, processor.geometry)
    stack = Stack(source, writer, limits, processor.geometry)
    tower = write_tower(source, processor.geometry, writer)
    if form == "step":
        files, _ = save_steps(build_steps(stack, tower), folder, "latent")
        return {f"latent.{name}": file for name, file in files.items()}
    program = build_program(stack, processor.end_ids, tower)
    save_models({"latent.onnx": program.model}, folder, "latent.onnx.data")
    return {"latent": "latent.onnx"}
