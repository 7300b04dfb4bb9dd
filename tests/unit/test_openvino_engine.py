"""A bundle on OpenVINO: the answers of torch, runs that end, devices and properties, refusals of one sentence."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrkit.contract.generated import MODES, Mode
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError, Cancelled, ConfigError, TimeoutExceeded, UserError
from lrkit.runtime.engines.common.stopping import Running, Stop
from lrkit.runtime.engines.openvino import row
from lrkit.runtime.engines.openvino.brake import MOST_ITERATIONS
from lrkit.runtime.engines.openvino.compiled import compile_graph
from lrkit.runtime.engines.openvino.engine import OpenVinoEngine
from lrkit.runtime.engines.openvino.graph import OvGraph
from lrkit.runtime.engines.openvino.library import said
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions
from lrkit.runtime.engines.table import engine_row
from lrkit.runtime.sdk import Reasoner
from tests.bundles import MAX_NEW_TOKENS, QUESTION, picture, torch_reasoner
from tests.hostile import resign
from tests.preflight.make import save
from tests.unit.test_ort_engine import facts

pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')


@pytest.fixture(scope="module")
def reasoner(openvino_bundle: Path) -> Reasoner:
    return Reasoner.load(openvino_bundle, threads=1)


@pytest.fixture
def own(openvino_bundle: Path, tmp_path: Path) -> Path:
    """A copy to alter."""
    return Path(shutil.copytree(openvino_bundle, tmp_path / "own"))


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_torch(reasoner: Reasoner, mode: Mode) -> None:
    assert isinstance(reasoner.engine, OpenVinoEngine)
    engine = torch_reasoner()
    for sample in trail_set("main", "test", 3):
        expected = engine.ask(sample.images, sample.question, mode, max_new_tokens=MAX_NEW_TOKENS)
        assert facts(reasoner.ask(sample.images, sample.question, mode)) == facts(expected)


def test_without_a_picture(reasoner: Reasoner) -> None:
    expected = torch_reasoner().ask(None, QUESTION, max_new_tokens=MAX_NEW_TOKENS)
    assert facts(reasoner.ask(None, QUESTION)) == facts(expected)


@pytest.mark.long
def test_the_form_step_answers_and_streams_the_same(openvino_step_bundle: Path, reasoner: Reasoner) -> None:
    step = Reasoner.load(openvino_step_bundle, threads=1)
    words: list[str] = []
    answer = step.ask(picture(), QUESTION, on_text=words.append)
    assert facts(answer) == facts(reasoner.ask(picture(), QUESTION))
    assert "".join(words) == answer.text
    assert {"prefill", "think", "speak"} <= set(answer.timings)


def test_threads_share_it(reasoner: Reasoner) -> None:
    pictures = [picture(number) for number in range(4)]
    expected = [facts(reasoner.ask(one, QUESTION)) for one in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: facts(reasoner.ask(one, QUESTION)), pictures * 3))
    assert found == expected * 3


ENDLESS = (
    "(float[4] x, int64 n, bool c) => (float[4] y) { [loop] y = Loop(n, c, x) "
    "<body = b (int64 i, bool on, float[4] h) => (bool go, float[4] z) "
    "{ [go] go = Identity(on) [abs] z = Abs(h) }> }"
)
"""A loop that goes on for as long as it is told: a program may say any number."""
FOREVER = {"x": np.ones(4, np.float32), "n": np.array((1 << 31) - 1), "c": np.array(True)}


def graph_of(text: str, folder: Path) -> OvGraph:
    return compile_graph(save(text, 21, folder / "graph.onnx"), None, OpenVinoOptions(threads=1), Numbers("f32"))


def slow(folder: Path) -> OvGraph:
    """The same, with iterations that take long."""
    wide = ENDLESS.replace("float[4]", "float[512,512]").replace("Abs(h)", "MatMul(h, h)")
    return graph_of(wide, folder)


WIDE: dict[str, Any] = FOREVER | {"x": np.eye(512, dtype=np.float32)}


def test_a_loop_that_never_ends_is_ended_by_a_time_out(tmp_path: Path) -> None:
    """OpenVINO's own cancel is heard between nodes, and a loop is one node: the run would go on for years."""
    graph = slow(tmp_path)
    with Running(Stop.within(0.2)), pytest.raises(TimeoutExceeded):
        graph.run(["y"], WIDE)
    with Running(Stop()):  # and the graph is of use afterwards
        assert graph.run(["y"], WIDE | {"n": np.array(2)})[0].shape == (512, 512)


def test_a_loop_is_ended_by_another_thread_and_so_is_one_that_waits_its_turn(tmp_path: Path) -> None:
    graph, cancel = slow(tmp_path), threading.Event()

    def run() -> None:
        with Running(Stop.within(cancel=cancel)), pytest.raises(Cancelled):
            graph.run(["y"], WIDE)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(run) for _ in range(3)]
        cancel.set()
        assert [one.result() for one in waiting] == [None] * 3


def test_a_loop_ends_by_itself_after_more_iterations_than_any_answer_has(tmp_path: Path) -> None:
    counted = ENDLESS.replace("Abs(h)", "Add(h, k)").replace("(float[4] y) {", "(float[4] y) <float k> {")
    (found,) = graph_of(counted, tmp_path).run(["y"], FOREVER)
    assert found[0] == MOST_ITERATIONS + 1


def test_other_iterations_are_not_touched(tmp_path: Path) -> None:
    counted = ENDLESS.replace("Abs(h)", "Add(h, k)").replace("(float[4] y) {", "(float[4] y) <float k> {")
    graph = graph_of(counted, tmp_path)
    for number in (0, 1, 5):
        (found,) = graph.run(["y"], FOREVER | {"n": np.array(number)})
        assert found[0] == number + 1


def test_arrays_that_openvino_does_not_take_as_they_lie(tmp_path: Path) -> None:
    """Rotations that a family computed once are read-only; OpenVINO refused to share them, and no such family ran."""
    graph = graph_of("(float[2,3] x) => (float[2,3] y) { [abs] y = Abs(x) }", tmp_path)
    values = -np.arange(6, dtype=np.float32).reshape(2, 3)
    locked, crooked = values.copy(), np.frombuffer(b"." + values.tobytes(), np.float32, offset=1).reshape(2, 3)
    locked.flags.writeable = False
    spread = np.repeat(values, 2, axis=1)[:, ::2]
    for given in (values, locked, crooked, spread, np.asfortranarray(values), np.broadcast_to(values[:1], (2, 3))):
        (found,) = graph.run(["y"], {"x": given})
        np.testing.assert_array_equal(found, -given)
    (found,) = graph_of(ENDLESS, tmp_path).run(["y"], {"x": -FOREVER["x"], "n": np.array(0), "c": np.array(True)})
    np.testing.assert_array_equal(found, -FOREVER["x"])


def test_a_bundle_made_for_it_runs_on_it_and_elsewhere_where_it_is_not_installed(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reasoner.open(openvino_bundle).engine.name == "openvino"
    assert Reasoner.open(openvino_bundle, provider="cpu").engine.name == "onnxruntime"
    assert Reasoner.open(openvino_bundle, engine="onnxruntime").engine.note is None
    monkeypatch.setattr(row, "installed_version", lambda: None)
    elsewhere = Reasoner.open(openvino_bundle)
    assert elsewhere.engine.name == "onnxruntime"
    assert 'pip install "lrkit[openvino]"' in str(elsewhere.engine.note)
    assert "not installed" in engine_row("openvino").state(no_gpus()).runs_on


def no_gpus() -> Any:
    from lrkit.gpus import find_gpus

    return replace(find_gpus(), found=())


def test_the_bundle_says_what_it_was_compared_on(openvino_bundle: Path, bundle: Path) -> None:
    made_for = json.loads((openvino_bundle / "bundle.json").read_text())["made_for"]
    assert (made_for["engine"], made_for["precision"], made_for["int8_activations"]) == ("openvino", "f32", False)
    assert json.loads((bundle / "bundle.json").read_text())["made_for"] is None


def test_numbers_are_those_of_the_export_unless_others_are_asked_for(own: Path) -> None:
    def numbers(**options: Any) -> Numbers:
        engine = Reasoner.open(own, engine="openvino", engine_options=options).engine
        assert isinstance(engine, OpenVinoEngine)
        return engine.sessions.numbers

    assert numbers() == Numbers("f32")
    assert numbers(precision="bf16", int8_activations=True) == Numbers("bf16", True)
    values = json.loads((own / "bundle.json").read_text())
    values["made_for"] |= {"precision": "bf16", "int8_activations": True}
    (own / "bundle.json").write_text(json.dumps(values))
    assert numbers() == Numbers("bf16", True)
    assert numbers(precision="f32") == Numbers("f32", True)
    values["made_for"] = None
    (own / "bundle.json").write_text(json.dumps(values))
    assert numbers() == Numbers("f32")


def test_programs_with_operators_of_onnxruntime_are_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"dialect ort.*lrkit export CHECKPOINT --engine openvino"):
        Reasoner.load(bundle, engine="openvino")


@pytest.mark.parametrize("device", ["GPU.7", "cpu:1", "tpu", "", "AUTO:TPU"])
def test_a_device_that_is_not_here_is_refused(openvino_bundle: Path, device: str) -> None:
    with pytest.raises(UserError, match=r"finds no device .* here, only CPU.*; give one of them or AUTO"):
        Reasoner.load(openvino_bundle, engine="openvino", engine_options={"device": device})


def test_the_device_that_openvino_chooses(openvino_bundle: Path, reasoner: Reasoner) -> None:
    chosen = Reasoner.load(openvino_bundle, engine="openvino", engine_options={"device": "auto"})
    assert facts(chosen.ask(picture(), QUESTION)) == facts(reasoner.ask(picture(), QUESTION))


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ({"NO_SUCH": 1}, "refuses the property NO_SUCH = 1 "),
        ({"INFERENCE_NUM_THREADS": "many"}, "refuses the property INFERENCE_NUM_THREADS = many "),
        ({"INFERENCE_PRECISION_HINT": "i9"}, "refuses the property INFERENCE_PRECISION_HINT = i9 "),
    ],
)
def test_a_property_that_openvino_refuses(openvino_bundle: Path, properties: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        Reasoner.load(openvino_bundle, engine="openvino", engine_options={"properties": properties})
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)


def test_a_property_comes_before_what_lrkit_sets(openvino_bundle: Path) -> None:
    options = {"properties": {"NUM_STREAMS": 2, "ENABLE_CPU_PINNING": True}}
    engine = Reasoner.load(openvino_bundle, engine="openvino", threads=2, engine_options=options).engine
    assert isinstance(engine, OpenVinoEngine)
    compiled = engine.sessions.of("latent").compiled
    assert compiled.get_property("NUM_STREAMS") == 2
    assert compiled.get_property("ENABLE_CPU_PINNING") is True


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"threads": 0}, {"devise": "CPU"}, {"properties": "x"}])
def test_options_that_there_are_not(openvino_bundle: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Reasoner.load(openvino_bundle, engine="openvino", engine_options=options)


@pytest.mark.parametrize("content", [b"\x08\x07garbage" * 40, b"<html></html>"])
def test_a_file_that_is_no_program(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked about such a file by path, OpenVINO would try every format that it knows, and write to stderr."""
    (tmp_path / "latent.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="OpenVINO cannot read it") as caught:
        compile_graph(tmp_path / "latent.onnx", None, OpenVinoOptions(), Numbers("f32"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_program_that_is_cut_off(own: Path) -> None:
    file = own / "latent.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    resign(own)
    with pytest.raises(BundleError):
        Reasoner.load(own)


def test_another_program_than_declared(own: Path) -> None:
    save("(float[4] x) => (float[4] y) { [abs] y = Abs(x) }", 21, own / "latent.onnx")
    resign(own)
    with pytest.raises(BundleError, match=r"is not the program that bundle\.json declares"):
        Reasoner.load(own)


def test_what_openvino_says_is_one_line_without_places_in_its_source() -> None:
    text = (
        "Exception from src/inference/src/cpp/core.cpp:117:\nException from src/inference/src/dev/plugin.cpp:54:\n"
        "Check 'false' failed at src/frontends/x/y.cpp:151:\nFrontEnd API failed with OpConversionFailure:\n"
        "Model wasn't fully converted. Failed operations detailed log:\n-- Loop-21 with a message:\nno such thing\n\n"
        "Summary:\n-- Conversion is failed for: Loop-21\n"
    )
    assert said(RuntimeError(text)) == "Loop-21 with a message; no such thing"
    assert said(RuntimeError("")) == "RuntimeError"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_answers(reasoner: Reasoner) -> None:
    expected = reasoner.ask(picture(), QUESTION).text
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = 0 if reasoner.ask(picture(), QUESTION).text == expected else 5
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
