"""An export streams: each matrix is read once, written, and let go before the next; what is written is what would have
been held.

The tale behind: a shape of two billion weights was killed at 24 GB, and every int4 matrix was read, and its adapter
merged, twice.
"""

import gc
import json
import weakref
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.program import build_program
from lrkit.export.graph.saving import SMALL, WeightFile, save_model, save_models
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.step_graphs import build_steps, save_steps
from lrkit.export.graph.tower_pieces import grafted
from lrkit.export.targets.target import Target
from lrkit.export.weights.source import read_source
from lrkit.runtime.engines.programs.feed import build_feed
from tests.programs import limits
from tests.tiny import EOS, GEOMETRY, IMAGE, tiny_reasoner, tiny_trace

SETTINGS = ReasonerSettings.model_validate(
    {"think": {"max_latent_steps": 2}, "replay": {"num_tokens": 2}, "routing": {"depth": 1, "alpha": 4}}
)
INT4 = {"block": 32, "vision": "int4"}


class Watched:
    """Weights of a source, counted while they live."""

    def __init__(self, weight) -> None:
        self.weight = weight
        self.reads: Counter[str] = Counter()
        self.alive = self.most = 0

    def __call__(self, role: str) -> np.ndarray:
        made = self.weight(role).copy()
        self.reads[role] += 1
        if made.ndim > 1 and made.nbytes > SMALL:  # smaller ones stay in the graph
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(made, self._gone)
        return made

    def _gone(self) -> None:
        self.alive -= 1


def parts(dialect: str, precision: str, weights: WeightFile | None) -> tuple[Stack, object, Watched]:
    source = read_source(tiny_reasoner(SETTINGS))
    watched = Watched(source.weight)
    target = Target(dialect=dialect, precision=precision, int4=INT4)
    write = writer_for(target, watched, source.dimensions.recipe.norm, weights)
    tower = grafted(tiny_trace(target.computes_fp16, dialect == "ort"), write)
    return Stack(source, write, limits(SETTINGS), GEOMETRY), tower, watched


@pytest.mark.parametrize(("dialect", "precision"), [("ort", "int4"), ("standard", "int4"), ("ort", "fp16")])
def test_one_matrix_is_alive_at_a_time_and_each_is_read_once(dialect, precision, tmp_path):
    stack, tower, watched = parts(dialect, precision, WeightFile(tmp_path, "data", in_memory=0))
    gc.disable()  # what only the collector would free counts as held
    try:
        program = build_program(stack, [EOS], tower)
        assert (watched.most, watched.alive) == (1, 0)
    finally:
        gc.enable()
    assert set(watched.reads.values()) == {1} and len(watched.reads) > 4 * 6
    held = [value.const_value for value in program.model.graph.initializers.values()]
    assert not [t.name for t in held if t.nbytes > SMALL and isinstance(t, ir.Tensor) and "const/" not in str(t.name)]


@pytest.mark.parametrize(("dialect", "precision"), [("standard", "int4"), ("ort", "fp32")])
def test_a_streamed_program_holds_what_another_holds_in_memory(dialect, precision, tmp_path):
    """Same graph, same values of every tensor, in a file that ONNX Runtime loads."""
    stack, tower, _ = parts(dialect, precision, None)
    held = build_program(stack, [EOS], tower).model
    weights = WeightFile(tmp_path, "program.onnx.data", in_memory=3000)
    stack, tower, _ = parts(dialect, precision, weights)
    save_models({"program.onnx": build_program(stack, [EOS], tower).model}, tmp_path, "program.onnx.data", weights)
    read = ir.load(tmp_path / "program.onnx")
    assert [node.name for node in read.graph.all_nodes()] == [node.name for node in held.graph.all_nodes()]
    assert list(read.graph.initializers) == list(held.graph.initializers)
    for name, value in held.graph.initializers.items():
        found = read.graph.initializers[name].const_value
        assert found.dtype == value.const_value.dtype and found.tobytes() == value.const_value.tobytes(), name
    stored = {
        t.offset: t.length
        for v in read.graph.initializers.values()
        if isinstance(t := v.const_value, ir.ExternalTensor)
    }
    assert (tmp_path / "program.onnx.data").stat().st_size == sum(stored.values()), "each tensor once, without gaps"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(tmp_path / "program.onnx"), options, providers=["CPUExecutionProvider"])


def test_steps_share_what_was_streamed(tmp_path):
    weights = WeightFile(tmp_path, "latent.onnx.data", in_memory=0)
    stack, tower, watched = parts("standard", "int4", weights)
    files, data = save_steps(build_steps(stack, tower), tmp_path, "latent", weights)
    assert set(watched.reads.values()) == {1}
    places = {
        (name, value.const_value.offset)
        for file in files.values()
        for name, value in ir.load(tmp_path / file).graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and name == "1.gate_up.int4"
    }
    assert data == "latent.onnx.data" and len(places) == 1


def test_tensors_are_held_up_to_a_limit_and_written_beyond(tmp_path):
    weights = WeightFile(tmp_path, "data", in_memory=5000)
    floats = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    first, tiny = ir.tensor(floats, name="first"), ir.tensor(floats[:2], name="tiny")
    assert weights.take(first) is first and not weights.overflows
    assert weights.take(tiny) is tiny and weights.overflows, "small ones stay in the graph"
    int4 = ir.tensor(np.arange(3000).reshape(60, 50).astype(ml_dtypes.int4), name="int4")
    half = ir.tensor(floats.astype(np.float16), name="half")
    written = [weights.take(tensor) for tensor in (int4, half)]
    assert [tensor.offset for tensor in written] == [0, 1500] and (tmp_path / "data").stat().st_size == 1500 + 2400
    for tensor, original in zip(written, (int4, half), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), original.numpy())
        assert weights.write(tensor) is tensor


def test_another_export_begins_a_new_file(tmp_path):
    tensor = ir.tensor(np.ones((40, 40), np.float32), name="ones")
    for _ in range(2):
        assert WeightFile(tmp_path, "data").write(tensor).offset == 0
    assert (tmp_path / "data").stat().st_size == 6400


def test_a_graph_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    """As one of more than 2 GB: protobuf's own words, and what to do."""
    model = ir.Model(ir.Graph([], [], nodes=[], name="g", opset_imports={"": 21}), ir_version=10)
    model.metadata_props["x"] = "\ud800"  # protobuf refuses half a character
    with pytest.raises(ExportError, match=r"^model.onnx cannot be written \(.*\); .*2 GB") as refused:
        save_model(model, tmp_path / "model.onnx")
    assert "\n" not in str(refused.value)


def test_a_weight_is_unpacked_where_it_is_used(tmp_path):
    """ONNX Runtime runs nodes in an order that follows from the file's: with each DequantizeLinear behind the node that
    makes its operand, the float values of all layers were in memory at once (500 million weights: 5.0 GB; 2.2 since).
    A session's profile has the nodes in the order in which they ran."""
    stack, tower, _ = parts("standard", "int4", None)
    program = build_program(stack, [EOS], tower)
    model = program.model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # which rename nodes
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ids = [IMAGE + 4] * 6
    session.run(None, build_feed(
        ids, (), None, image_id=IMAGE, geometry=GEOMETRY, think=False, fixed_latents=False,
        max_latent_steps=0, max_new_tokens=1, spec=program.spec,
    ))  # fmt: skip
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["name"].removesuffix("_kernel_time") for event in events if event["name"].endswith("_kernel_time")]
    unpacked = {
        node.outputs[0].uses()[0].node.name: node.name
        for node in model.graph.all_nodes()
        if node.op_type == "DequantizeLinear" and len(node.outputs[0].uses()) == 1
    }
    waiting = most = count = 0
    for name in ran:
        waiting += name in unpacked.values()
        most, count = max(most, waiting), count + (name in unpacked)
        waiting -= name in unpacked
    assert count > 4 * 4 and most == 1
