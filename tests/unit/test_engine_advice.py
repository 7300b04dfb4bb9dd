"""Which engine to use: what `lrkit doctor` says of the CPU, and a profile of a bundle on one engine or several."""

from pathlib import Path
from typing import Any

import pytest

from lrkit.cli.shared.profiling import choose_models, engines_in, where_to_run
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.errors import UnknownNameError, UserError
from lrkit.profile.ceilings.advice import cpu_flags, engine_advice
from lrkit.profile.judge import engines
from lrkit.profile.measure.cases import unique_names


def test_flags_of_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nflags\t\t: fpu amx_bf16 avx2\n\nprocessor : 1\nflags : other\n")
    assert cpu_flags(file) == {"fpu", "amx_bf16", "avx2"}
    assert cpu_flags(tmp_path / "none") == frozenset()
    file.write_bytes(b"\xff\xfe flags")
    assert cpu_flags(file) == frozenset()


def test_advice_by_what_the_cpu_has() -> None:
    assert "use OpenVINO, exported" in engine_advice({"amx_bf16"}, True)
    assert 'pip install "lrkit[openvino]"' in engine_advice({"amx_bf16"}, False)
    assert "use ONNX Runtime" in engine_advice({"avx2"}, True)
    assert "lrkit profile" not in engine_advice({"avx2"}, False)


def chosen(bundle: Path, engine: str, *options: str, **given: Any) -> list[tuple[Any, ...]]:
    place = where_to_run(None, None, engine, options, given.get("provider"), given.get("threads"), False)
    return [
        (one.engine, one.provider, one.threads, dict(one.engine_options)) for one in choose_models([str(bundle)], place)
    ]


def test_a_bundle_is_profiled_on_each_engine_with_the_options_that_it_has(bundle: Path) -> None:
    assert chosen(bundle, "onnxruntime,openvino", "precision=bf16", provider="cpu", threads=2) == [
        ("onnxruntime", "cpu", 2, {}), ("openvino", None, 2, {"precision": "bf16"}),
    ]  # fmt: skip
    assert chosen(bundle, "openvino") == [("openvino", None, None, {})]


def test_engines_that_cannot_be_named_so(bundle: Path) -> None:
    for wrong in ("onnxruntime,", "openvino,openvino", ","):
        with pytest.raises(UserError, match="names none, or one twice"):
            engines_in(wrong)
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        chosen(bundle, "onnxruntime,openvinoo")
    with pytest.raises(UserError, match="no_such"):
        chosen(bundle, "onnxruntime,openvino", "no_such=1")


def test_names_say_the_engine_where_that_is_what_differs(bundle: Path) -> None:
    place = where_to_run(None, None, "onnxruntime,openvino", [], None, None, False)
    choices = choose_models([str(bundle)], place)
    assert unique_names(choices) == [f"{bundle.name}@onnxruntime", f"{bundle.name}@openvino"]
    assert unique_names([choices[0], choices[0]]) == [bundle.name, f"{bundle.name}-2"]


def run(model: int, seconds: float | None) -> dict[str, Any]:
    return {"model": model, "summary": {"latency_sec": {"median": seconds}}}


def test_a_profile_names_the_faster_engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = open_bundle(bundle, verify=False).manifest.programs["latent"]
    standard = entry.model_copy(update={"dialect": "standard"})
    models = [{"path": "b", "engine": name, "device": "cpu"} for name in ("onnxruntime", "openvino")]
    said = engines.engine_sentences(models, [standard] * 2, [run(0, 0.006), run(0, 9.0), run(1, 0.003)])
    assert said == ["b: use --engine openvino here, which is 2.00x as fast as onnxruntime (median 3.0 against 6.0 ms)"]
    in_int4 = standard.model_copy(update={"precision": "int4"})
    (sentence,) = engines.engine_sentences(models, [in_int4] * 2, [run(0, 0.006), run(1, 0.003)])
    assert sentence.endswith("a bundle of the dialect ort shows onnxruntime at its best")
    (sentence,) = engines.engine_sentences(models, [standard] * 2, [run(0, 0.00301), run(1, 0.003)])
    assert "take the same time here" in sentence
    assert engines.engine_sentences(models, [standard] * 2, [run(0, None), run(1, 0.003)]) == []
    monkeypatch.setattr(engines, "installed_version", lambda name: "1")
    (sentence,) = engines.engine_sentences(models[:1], [standard], [run(0, 0.006)])
    assert sentence == "b: openvino can run it too; --engine onnxruntime,openvino says which is faster here"
    assert engines.engine_sentences(models[:1], [entry], [run(0, 0.006)]) == []  # in ONNX Runtime's own operators
    monkeypatch.setattr(engines, "installed_version", lambda name: None)
    assert engines.engine_sentences(models[:1], [standard], [run(0, 0.006)]) == []
