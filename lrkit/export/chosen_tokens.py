"""Visual tokens that a tower chooses: which ones a written program takes, and how many of them torch takes too.

Another word is another input, and where two words are as near, the order of sums decides. So a right program may be far
from torch in every number behind its tower. The comparison parts the two: the program's choices are counted against
torch's, and torch then answers from the program's, which holds all that follows to the usual bounds.

Place in the pipeline: for families whose tower chooses (`chooses` in graph/tower_writer.py), bundle.py calls
`program_choices` before torch's model is loaded, and check.py answers inside `taken`. The tower runs alone, cut out of
the written program, so that neither the whole program nor another trace of the tower is needed.

Legend: V visual tokens of a prompt or batch.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch

from lrkit.errors import ExportError
from lrkit.export.graph.saving import save_model
from lrkit.export.graph.tower_writer import CHOSEN
from lrkit.export.sessions import Comparing, refusal
from lrkit.families.protocols import Geometry
from lrkit.model.backbone import Backbone, ChoosingBackbone
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.torch.prompt_batch import PromptBatch


def program_choices(
    file: Path, prompts: Sequence[EncodedPrompt], image_id: int, geometry: Geometry, comparing: Comparing
) -> list[np.ndarray]:
    """Ids (V,) of the visual tokens of each prompt, image after image, as the tower in `file` chooses them. `file` is
    the program, or the graph that reads the prompt.

    Raises:
        ExportError: the engine cannot run the tower.
        OSError: it cannot be written beside the program, where it stands for as long as this takes.
    """
    alone = file.with_name(f"{file.stem}.{CHOSEN}.onnx")
    try:
        save_model(_tower_in(file), alone)
        session = comparing.open(alone, None, ())
        return [_choices(session, prompt, image_id, geometry, comparing.name) for prompt in prompts]
    finally:
        alone.unlink(missing_ok=True)


def _tower_in(file: Path) -> ir.Model:
    """The part of a written program that chooses; its weights may lie in the program's data file."""
    program = ir.load(file)
    for node in list(program.graph):
        if node.op_type == "If":
            _inline(program.graph, node)
    (ids,) = [value for node in program.graph for value in node.outputs if value.name == CHOSEN]
    ids.type, ids.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["V"])
    tower = ir.convenience.extract(program.graph, list(program.graph.inputs), [ids])
    read = {value for node in tower for value in node.inputs}
    unread = [number for number, value in enumerate(tower.inputs) if value not in read]
    for number in reversed(unread):
        del tower.inputs[number]
    return ir.Model(tower, ir_version=program.ir_version)


def _inline(graph: ir.Graph, node: ir.Node) -> None:
    """Puts the nodes that a condition chooses in front of the node that chooses, where they run always."""
    branch = node.attributes["then_branch"].as_graph()
    for inner in list(branch):
        branch.remove(inner)
        graph.insert_before(node, inner)


def _choices(session: Any, prompt: EncodedPrompt, image_id: int, geometry: Geometry, who: str) -> np.ndarray:
    if prompt.patches is None:
        return np.zeros(0, np.int64)
    feed = geometry.program_feed(prompt.ids, image_id, prompt.grids, prompt.patches)
    try:
        (ids,) = session.run([CHOSEN], {given.name: feed[given.name] for given in session.get_inputs()})
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        raise ExportError(refusal("cannot run the vision tower", error, who)) from error
    return ids


@contextmanager
def taken(
    chosen: Sequence[np.ndarray] | None, backbone: Backbone, batch: PromptBatch, geometry: Geometry
) -> Generator[list[list[tuple[int, int]]]]:
    """While it lasts, torch's backbone takes the visual tokens `chosen` for the prompts of a batch, each (V,); None:
    its own. Gives, for each prompt and picture, how many torch would have chosen otherwise, and of how many."""
    if chosen is None or batch.pixel_values is None or batch.grids is None:
        yield [[] for _ in batch.images_per_sample]
        return
    choosing = cast(ChoosingBackbone, backbone)
    theirs = torch.from_numpy(np.concatenate(chosen))
    differs = (choosing.choose_tokens(batch.pixel_values, batch.grids) != theirs).tolist()
    sizes = iter([geometry.num_visual_tokens(tuple(grid)) for grid in batch.grids.tolist()])
    flags = iter(differs)
    found: list[list[tuple[int, int]]] = []
    for count in batch.images_per_sample:
        pictures = [next(sizes) for _ in range(count)]
        found.append([(sum(next(flags) for _ in range(size)), size) for size in pictures])
    choosing.given_tokens = theirs
    try:
        yield found
    finally:
        choosing.given_tokens = None
