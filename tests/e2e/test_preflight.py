"""`lrkit preflight THING` through the command line: files, bundles and checkpoints."""

import json
from pathlib import Path

import pytest

from lrkit.cli.preflight import Asked, target_to_build
from lrkit.export.preflight.rules import TARGETS
from lrkit.runtime.engines.tensorrt.library import installed_version
from tests.commands import lrkit
from tests.preflight import quantized
from tests.preflight.make import save
from tests.preflight.operators import ABS
from tests.preflight.structure import CASES


@pytest.fixture
def findings(tmp_path):
    """Options that write the JSON report, and what reads it."""

    def read() -> dict:
        return json.loads((tmp_path / "findings.json").read_text())

    return ["--json", tmp_path / "findings.json"], read


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from lrkit.model.checkpoint import save_checkpoint
    from tests.bundles import SETTINGS, processor
    from tests.tiny import tiny_reasoner

    folder = tmp_path_factory.mktemp("checked") / "latent"
    save_checkpoint(folder, tiny_reasoner(SETTINGS["latent"]), processor(), base=None, info={"stage": "latent"})
    return folder


def test_a_file_that_would_be_rejected_exits_with_2_and_says_where(tmp_path, capsys, findings):
    file = save(CASES["loop-growing-state"].bad, 21, tmp_path / "grow.onnx")
    options, read = findings
    assert lrkit("preflight", file, "--target", "tensorrt-10", *options) == 2
    captured = capsys.readouterr()
    assert "step (state h: Concat" in captured.out
    assert "tensorrt-10 would reject grow.onnx at 1 place (loop-growing-state)" in captured.err
    report = read()
    assert (report["ok"], report["kind"], len(report["reports"])) == (False, "preflight", 1)
    (finding,) = report["reports"][0]["findings"]
    assert (finding["rule"], finding["name"], finding["basis"]) == ("loop-growing-state", "step", "documented")


def test_a_file_that_would_be_taken_exits_with_0(tmp_path, capsys, findings):
    options, read = findings
    for target in TARGETS:
        assert lrkit("preflight", save(ABS, 21, tmp_path / "abs.onnx"), "--target", target, *options) == 0
        assert f"nothing that {target} would reject was found" in capsys.readouterr().out
        assert read()["ok"] is True
    assert read()["reports"][0]["asked"]["takes"] is True


def test_a_bundle_is_checked_for_what_it_was_exported_for(bundle, capsys, findings):
    options, read = findings
    assert lrkit("preflight", bundle, *options) == 0
    assert [(r["graph"], r["target"], r["agrees"]) for r in read()["reports"]] == [
        ("latent", "ort", True), ("cot", "ort", True),
    ]  # fmt: skip
    assert lrkit("preflight", bundle, "--target", "tensorrt-11") == 2
    assert "operator-unsupported" in capsys.readouterr().err


def test_the_graphs_of_the_step_form_are_checked_one_by_one(step_bundle, findings):
    options, read = findings
    assert lrkit("preflight", step_bundle, *options) == 0
    assert [r["graph"] for r in read()["reports"]] == ["latent.prompt", "latent.think", "latent.speak"]


@pytest.mark.parametrize("precision", ["int4", pytest.param("fp16", marks=pytest.mark.slow)])
def test_what_lrkit_writes_for_tensorrt_passes(checkpoint, precision, findings):
    options, read = findings
    precise = [f"precision={precision}", "int4.block=32", *options]
    assert lrkit("preflight", checkpoint, "--target", "tensorrt-rtx", *precise) == 0
    (report,) = read()["reports"]
    assert {f["verdict"] for f in report["findings"]} == {"note"}
    if installed_version("tensorrt-rtx") is not None:
        assert (report["agrees"], report["asked"]["takes"]) == (True, True)


def test_the_other_dialect_is_rejected_with_the_loops_around_its_nodes(bundle, capsys, findings):
    options, read = findings
    assert lrkit("preflight", bundle, "--target", "tensorrt-rtx", *options) == 2
    rejected = [f for f in read()["reports"][0]["findings"] if f["verdict"] == "rejected"]
    assert "operator-unsupported" in {f["rule"] for f in rejected}
    assert any(f["name"] == "think/Loop > think/layer0/QuickGelu" for f in rejected), rejected
    said = capsys.readouterr().out.replace("\n", " ")
    if installed_version("tensorrt-rtx") is not None:
        assert "refuses it: " in said and "the rules say the same" in said


def test_a_target_file_says_what_to_check_for_and_how_to_build():
    def built(target: str | None, *changes: str, int4: bool = False) -> tuple:
        made, targets, archs = target_to_build(Asked("tiny", target, changes, int4, "program", ()))
        return made.dialect, made.precision, targets, archs

    standard = ("tensorrt-11", "tensorrt-10")
    assert built(None) == ("ort", "fp32", ("ort",), ())
    assert built(None, int4=True) == ("ort", "int4", ("ort",), ())
    assert built(None, "dialect=standard") == ("standard", "fp32", ("tensorrt-rtx", *standard), ())
    assert built("tensorrt-rtx", "dialect=ort") == ("ort", "fp16", ("tensorrt-rtx",), ())
    assert built("ort", int4=True) == ("ort", "int4", ("ort",), ())
    assert built("jetson-orin-trt10") == ("standard", "int4", standard, ())
    assert built("rtx-pc", "precision=int4") == ("standard", "int4", ("tensorrt-rtx",), ("sm86", "sm89", "sm120"))


def test_gpus_are_checked(tmp_path, capsys, findings):
    options, read = findings
    file = save(quantized.CASES["arch-int4"].bad, 21, tmp_path / "int4.onnx")
    assert lrkit("preflight", file, "--target", "tensorrt-rtx", "--arch", "sm75,sm89", *options) == 2
    rejected = {f["rule"]: f["reason"] for f in read()["reports"][0]["findings"] if f["verdict"] == "rejected"}
    assert rejected == {"arch-int4": "sm75: Turing has no int4."}
    assert lrkit("preflight", file, "--target", "tensorrt-rtx", "--arch", "sm86,sm89") == 0
    assert lrkit("preflight", "tiny", "--target", "tensorrt-rtx", "--arch", "sm87") == 2
    assert "cannot build for sm87" in capsys.readouterr().err


@pytest.mark.skipif(installed_version("tensorrt-rtx") is None, reason="needs the parser that crashes")
def test_a_program_that_crashes_the_parser_is_refused(tmp_path, capsys, findings):
    """A function that calls itself: asked in this process, TensorRT-RTX 1.7.1 would take it along."""
    import onnx

    domains = '<ir_version: 10, opset_import: ["" : 21, "own" : 1]>'
    text = f"{domains} g (float[4] x) => (float[M] y) {{ y = own.f(x) }}"
    again = '<domain: "own", opset_import: ["" : 21, "own" : 1]> f (a) => (b) { b = own.f(a) }'
    file = tmp_path / "itself.onnx"
    file.write_bytes(onnx.parser.parse_model(f"{text} {again}").SerializeToString())
    options, read = findings
    assert lrkit("preflight", file, "--target", "tensorrt-rtx", *options) == 2
    assert "ended by signal SIGSEGV while it read the program" in " ".join(capsys.readouterr().out.split())
    assert read()["reports"][0]["asked"]["takes"] is False


def test_bad_input_is_one_sentence(tmp_path, bundle, capsys):
    file = save(ABS, 21, tmp_path / "abs.onnx")
    for arguments, said in (
        ([file], "say with --target what"),
        ([file, "--target", "tensorrt-rtz"], "did you mean 'tensorrt-rtx'?"),
        ([file, "--target", "ort", "--int4"], "is built already"),
        ([file, "--target", "ort", "--arch", "sm89"], "leave them out"),
        ([bundle, "--engine", "tensorrt-rtx"], "lrkit preflight has no option --engine"),
        ([tmp_path / "none.onnx", "--target", "ort"], "there is no such file"),
        (["no-such-thing"], "no such checkpoint"),
        (["random:qwen2-vl-2b"], "has no program yet"),
        ([file, "--target", "ort", "--form", "steps"], "must be one of program, step"),
    ):
        assert lrkit("preflight", *arguments) == 2
        assert said in capsys.readouterr().err.replace("\n", " ")


def test_the_earlier_spelling_checks_too(bundle, capsys, findings):
    options, read = findings
    assert lrkit("export", "--check", bundle, *options) == 0
    assert read()["kind"] == "preflight" and "nothing that ort would reject was found" in capsys.readouterr().out
    assert lrkit("export", bundle, "--check", "--engine", "tensorrt-rtx") == 2
    assert "lrkit preflight has no option --engine" in capsys.readouterr().err


def test_an_empty_target_is_refused(bundle, capsys):
    """Of a bundle it was passed over, and of a graph it ended in a traceback."""
    for thing in (bundle, bundle / "latent.onnx"):
        assert lrkit("preflight", thing, "--target", " ") == 2
        assert "--target is empty; give " in capsys.readouterr().err
