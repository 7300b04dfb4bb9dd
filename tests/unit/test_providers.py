"""Options of ONNX Runtime's providers that come with a bundle: merged, checked, and refused in one sentence."""

import json
from pathlib import Path

import pytest

from lrkit.config import load_config
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.cores import usable_cores
from lrkit.errors import BundleError, ConfigError, UserError
from lrkit.export.targets.target import Target
from lrkit.resources import find_target
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine
from lrkit.runtime.engines.onnxruntime.provider_options import PATHS
from lrkit.runtime.engines.onnxruntime.providers import available_providers, bundle_options, choose_provider, refusal


def options_of(folder: Path, asked: str, **target: object) -> tuple[dict[str, str], dict[str, str]]:
    """What the provider `asked` is given by a bundle whose target has been altered."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    values["target"].update(target)
    path.write_text(json.dumps(values))
    return bundle_options(open_bundle(folder).manifest, asked, folder)


CACHE = {"trt_engine_cache_enable": True, "trt_engine_cache_path": "cache", "trt_max_workspace_size": 1 << 30}


def test_options_are_written_as_the_provider_reads_them(own_bundle: Path) -> None:
    options, entries = options_of(
        own_bundle, "tensorrt", provider="tensorrt", provider_options={**CACHE, "ep.context_enable": True}
    )
    assert options == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(own_bundle / "cache"),
        "trt_max_workspace_size": "1073741824",
    }
    assert entries == {"ep.context_enable": "True"}
    given = {"enable_cuda_graph": True, "nv_runtime_cache_path": "caches/rtx"}
    rtx, _ = options_of(own_bundle, "tensorrt-rtx", provider="tensorrt-rtx", provider_options=given)
    assert rtx == {"enable_cuda_graph": "1", "nv_runtime_cache_path": str(own_bundle / "caches/rtx")}


def test_options_are_for_the_provider_of_the_target_alone(own_bundle: Path) -> None:
    assert options_of(own_bundle, "cuda", provider="tensorrt", provider_options=CACHE) == ({}, {})
    assert options_of(own_bundle, "tensorrt:1", provider="tensorrt", provider_options=CACHE)[0]
    assert options_of(own_bundle, "tensorrt", provider_options={}) == ({}, {})


def test_a_device_in_the_name_joins_the_options(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    chosen = choose_provider("tensorrt:1", {"trt_max_workspace_size": "5"})
    assert chosen[0] == ("TensorrtExecutionProvider", {"trt_max_workspace_size": "5", "device_id": "1"})
    with pytest.raises(UserError, match="'tensorrt:1' was asked for, and the bundle's target says device_id 0"):
        options_of(own_bundle, "tensorrt:1", provider="tensorrt", provider_options={"device_id": 0})


WRONG: dict[str, tuple[object, str]] = {
    "pointer": ({"user_compute_stream": "94"}, "user_compute_stream is no option that a bundle may give"),
    "list": ({"trt_engine_cache_path": ["a"]}, "trt_engine_cache_path is a list; it must be text, a number or"),
    "huge": ({"trt_max_workspace_size": 10**39}, "number of more than 64 bits"),
    "escapes": ({"trt_tactic_sources": "\x1b[31m"}, "trt_tactic_sources is '\\x1b[31m'; it must be a word"),
    "slashes": (
        {"trt_engine_cache_prefix": "../../etc/x"},
        "trt_engine_cache_prefix is '../../etc/x'; it must be a word",
    ),
    "out": ({"trt_engine_cache_path": "../cache"}, "is '../cache', which leads out of the bundle"),
    "absolute": ({"trt_timing_cache_path": "/etc"}, "is '/etc', which leads out of the bundle"),
    "empty": ({"trt_engine_cache_path": ""}, "is '', which is no path"),
    "number": ({"trt_engine_cache_path": 5}, "is 5, which is no path"),
    "a listed file": (
        {"trt_engine_cache_path": "latent.onnx"},
        "is latent.onnx, which a link leads out of the bundle or",
    ),
    "context": ({"ep.context_file_path": "/tmp/x"}, "ep.context_file_path is '/tmp/x', which leads out of the bundle"),
    "precision": ({"trt_fp16_enable": True}, "asks for another number type than the fp32 that the programs were"),
    "no mapping": (["trt_fp16_enable"], "is a list where a mapping belongs"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_bundle_can_give(own_bundle: Path, what: str) -> None:
    given, expected = WRONG[what]
    with pytest.raises(BundleError) as caught:
        options_of(own_bundle, "tensorrt", provider="tensorrt", provider_options=given)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_fp16_may_be_asked_for_where_the_program_computes_in_it(own_bundle: Path) -> None:
    how = {"provider": "tensorrt", "provider_options": {"trt_fp16_enable": True}}
    assert options_of(own_bundle, "tensorrt", precision="fp16", **how)[0] == {"trt_fp16_enable": "True"}
    with pytest.raises(BundleError, match="trt_fp16_enable"):
        options_of(own_bundle, "tensorrt", precision="int4", activations=None, **how)


def test_a_refusal_names_the_option() -> None:
    """The text is that of onnxruntime/core/framework/provider_options_utils.h."""
    error = RuntimeError('[ONNXRuntimeError] : 1 : FAIL : Unknown provider option: "trt_speed".')
    said = str(refusal(error, "tensorrt", Path("b/latent.onnx"), {"trt_speed": "9", "trt_x": "1"}))
    assert said == (
        "b/latent.onnx: provider 'tensorrt' refuses its option trt_speed = 9 (Unknown provider option: "
        '"trt_speed"); correct provider_options in the target and export again'
    )


def test_a_refusal_is_one_sentence_without_the_place_in_the_source() -> None:
    """As onnxruntime-gpu 1.31.1 says it on a machine without TensorRT."""
    error = RuntimeError(
        "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::"
        "RegisterTensorRTPluginsAsCustomOps(PySessionOptions&, const onnxruntime::ProviderOptions&) Please install "
        "TensorRT libraries as mentioned in the GPU requirements page.\n"
    )
    said = str(refusal(error, "tensorrt", Path("latent.onnx"), {}))
    assert "could not be started on this machine (Please install TensorRT libraries as" in said and "\n" not in said


@pytest.mark.skipif("tensorrt" in available_providers(), reason="this onnxruntime has tensorrt")
def test_an_unknown_provider_comes_before_its_options(own_bundle: Path) -> None:
    with pytest.raises(BundleError):
        options_of(own_bundle, "tensorrt", provider="tensorrt", provider_options=["x"])
    with pytest.raises(UserError, match="is not in the installed onnxruntime"):
        OrtEngine.from_bundle(own_bundle, "tensorrt")


def test_the_shipped_target_of_that_provider(own_bundle: Path) -> None:
    target = load_config(Target, find_target("ort-tensorrt"))
    assert target.provider == "tensorrt" and target.computes_fp16
    options, entries = options_of(own_bundle, "tensorrt", **target.model_dump(mode="json"))
    assert set(options) == set(target.provider_options) and entries == {}
    assert options["trt_engine_cache_path"] == str(own_bundle / "trt-cache")
    assert options["trt_fp16_enable"] == "True"


LOADERS = {
    "tensorrt": "trt_extra_plugin_lib_paths trt_engine_decryption_lib_path trt_ep_context_file_path "
    "trt_onnx_model_folder_path trt_dump_subgraphs trt_dump_ep_context_model trt_onnx_bytestream "
    "has_user_compute_stream",
    "tensorrt-rtx": "nv_dump_subgraphs user_aux_stream_array nv_ep_context_file_path",
    "cuda": "gpu_external_alloc gpu_external_free user_compute_stream",
    "qnn": "backend_path profiling_file_path qnn_saver_path op_packages dump_json_qnn_graph json_qnn_graph_dir",
    "openvino": "load_config context so_path",
    "migraphx": "migraphx_load_model_path migraphx_load_model_name",
    "webgpu": "dawnProcTable webgpuInstance",
    "cpu": "use_arena",
}
"""Of each provider: options that load code, write files or hold addresses."""


@pytest.mark.parametrize("provider", LOADERS)
def test_options_that_load_or_write_are_not_a_bundles_to_give(own_bundle: Path, provider: str) -> None:
    for key in (*LOADERS[provider].split(), "session.load_model_format", "ep.dynamic.x", "x", "session.register\x1b"):
        with pytest.raises(BundleError) as caught:
            options_of(own_bundle, provider, provider=provider, provider_options={key: "evil.so"})
        said = str(caught.value)
        assert "is no option that a bundle may give" in said and "provider_options={...}" in said and said.isprintable()
        with pytest.raises(ConfigError, match="is no option that a bundle may give"):
            load_config(Target, {"provider": provider, "provider_options": {key: "evil.so"}})


def test_every_option_that_is_a_path_stays_inside(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "out").symlink_to(tmp_path)
    for provider, keys in PATHS.items():
        for key in keys.split():
            for value in ("/x", "a/../../x", "..", "C:\\x", "out/x", "out", "bundle.json", "."):
                with pytest.raises(BundleError):
                    options_of(own_bundle, provider, provider=provider, provider_options={key: value})
            options, _ = options_of(own_bundle, provider, provider=provider, provider_options={key: "a/b"})
            assert options == {key: str(own_bundle / "a/b")}


def test_backends_of_qnn(own_bundle: Path) -> None:
    how = {"provider": "qnn", "provider_options": {"backend_type": "saver"}}
    with pytest.raises(BundleError, match="backend_type is 'saver'; it must be one of cpu, gpu, htp"):
        options_of(own_bundle, "qnn", **how)


def test_the_users_own_options_are_taken_as_they_are(own_bundle: Path) -> None:
    options_of(own_bundle, "cpu", provider="cpu", provider_options={})
    engine = OrtEngine.from_bundle(own_bundle, "cpu", provider_options={"backend_path": "/opt/x.so"})
    assert engine.sessions._given == {"backend_path": "/opt/x.so"}


def test_threads_of_a_bundle_are_at_most_those_of_the_machine(own_bundle: Path) -> None:
    path = own_bundle / "bundle.json"
    values = json.loads(path.read_text()) | {"defaults": {"threads": 1000}}
    path.write_text(json.dumps(values))
    options = OrtEngine.from_bundle(own_bundle).sessions.of("latent").get_session_options()
    assert options.intra_op_num_threads == usable_cores()
