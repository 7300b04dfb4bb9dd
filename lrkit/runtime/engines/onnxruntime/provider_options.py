"""Lists the options of ONNX Runtime's providers that a bundle may give. All others are refused: some load a library,
some write or read anywhere, some are addresses in memory. Torch-free; values only.

Place in the pipeline: providers.py checks what a bundle's target gives, and export/targets/target.py what goes into
one. What a user gives in a call (`provider_options`, `session_config`) is the user's own and is not looked up here.

Sources: onnxruntime.ai, the page of each execution provider; NVIDIA's of the TensorRT-RTX provider; the names in
onnxruntime's include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h.
"""

import math
import re
from pathlib import Path, PurePosixPath

from lrkit.errors import clean, did_you_mean

_CUDA = (
    "device_id gpu_mem_limit arena_extend_strategy cudnn_conv_algo_search do_copy_in_default_stream enable_cuda_graph "
    "cudnn_conv_use_max_workspace cudnn_conv1d_pad_to_nc1d tunable_op_enable tunable_op_tuning_enable fuse_conv_bias "
    "tunable_op_max_tuning_duration_ms enable_skip_layer_norm_strict_mode use_tf32 prefer_nhwc sdpa_kernel "
    "use_ep_level_unified_stream"
)
_TENSORRT = (
    "device_id trt_max_workspace_size trt_max_partition_iterations trt_min_subgraph_size trt_fp16_enable "
    "trt_bf16_enable trt_int8_enable trt_engine_cache_enable trt_engine_cache_prefix trt_engine_hw_compatible "
    "trt_timing_cache_enable trt_force_timing_cache trt_force_sequential_engine_build trt_detailed_build_log "
    "trt_build_heuristics_enable trt_sparsity_enable trt_builder_optimization_level trt_auxiliary_streams "
    "trt_tactic_sources trt_context_memory_sharing_enable trt_layer_norm_fp32_fallback trt_cuda_graph_enable "
    "trt_profile_min_shapes trt_profile_max_shapes trt_profile_opt_shapes trt_preview_features trt_op_types_to_exclude"
)
_RTX = (
    "device_id enable_cuda_graph nv_max_workspace_size nv_max_shared_mem_size nv_detailed_build_log "
    "nv_profile_min_shapes nv_profile_max_shapes nv_profile_opt_shapes nv_multi_profile_enable "
    "nv_use_external_data_initializer nv_op_types_to_exclude"
)
PLAIN: dict[str, str] = {
    "cpu": "",
    "cuda": _CUDA,
    "rocm": _CUDA,
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": _RTX,
    "migraphx": "device_id migraphx_exhaustive_tune",
    "openvino": "device_type precision num_of_threads num_streams enable_opencl_throttling enable_qdq_optimizer "
    "disable_dynamic_shapes model_priority layout reshape_input",
    "coreml": "MLComputeUnits ModelFormat RequireStaticInputShapes EnableOnSubgraphs SpecializationStrategy "
    "AllowLowPrecisionAccumulationOnGPU",
    "directml": "device_id performance_preference device_filter disable_metacommands enable_graph_capture",
    "qnn": "backend_type htp_performance_mode htp_graph_finalization_optimization_mode soc_model htp_arch device_id "
    "enable_htp_fp16_precision offload_graph_io_quantization qnn_context_priority vtcm_mb rpc_control_latency "
    "enable_htp_weight_sharing enable_htp_spill_fill_buffer",
    "webgpu": "deviceId powerPreference dawnBackendType preferredLayout validationMode storageBufferCacheMode "
    "uniformBufferCacheMode queryResolveBufferCacheMode defaultBufferCacheMode enableGraphCapture",
    "xnnpack": "intra_op_num_threads",
}
"""Provider -> options whose values are numbers, switches or short words."""

PATHS: dict[str, str] = {
    "tensorrt": "trt_engine_cache_path trt_timing_cache_path",
    "tensorrt-rtx": "nv_runtime_cache_path",
    "migraphx": "migraphx_model_cache_dir",
    "openvino": "cache_dir",
    "coreml": "ModelCacheDirectory",
}
"""Provider -> options whose values are folders, inside the bundle's only."""

SESSION: str = "ep.context_enable ep.context_embed_mode"
"""ONNX Runtime's session entries."""
SESSION_PATHS: str = "ep.context_file_path"

_WORD = re.compile(r"[\w.,:;+\- *]{0,1000}")
_BACKENDS = ("cpu", "gpu", "htp")


def is_path(provider: str, key: str) -> bool:
    """Whether the option's value is a path."""
    return key in PATHS.get(provider, "").split() or key in SESSION_PATHS.split()


def problem_of(provider: str, key: str, value: object) -> str | None:
    """Why a bundle for `provider` may not give that option, after its name; None where it may."""
    if not (is_path(provider, key) or key in [*PLAIN.get(provider, "").split(), *SESSION.split()]):
        known = [*PLAIN.get(provider, "").split(), *PATHS.get(provider, "").split(), *SESSION.split(), SESSION_PATHS]
        return (
            f"is no option that a bundle may give{did_you_mean(key, known)}; leave it out of the target, and give it "
            "in the call: Reasoner.load(..., provider_options={...})"
        )
    if not isinstance(value, bool | int | float | str):
        return f"is a {type(value).__name__}; it must be text, a number or a boolean"
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number; write a finite one"
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "is a number of more than 64 bits; write a smaller one"
    if is_path(provider, key):
        return path_problem(value)
    if isinstance(value, str) and not _WORD.fullmatch(value):
        return f"is {clean(ascii(value))[:80]}; it must be a word, numbers or shapes"
    if key == "backend_type" and value not in _BACKENDS:
        return f"is {clean(ascii(value))[:80]}; it must be one of {', '.join(_BACKENDS)}"
    return None


def path_problem(value: object) -> str | None:
    """Why a bundle may not name that place; None for one inside its folder."""
    inside = "name a place inside the bundle, as trt-cache"
    if not isinstance(value, str) or not value:
        return f"is {clean(ascii(value))[:80]}, which is no path; {inside}"
    place = PurePosixPath(value)
    if place.is_absolute() or ".." in place.parts or re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', value) or value == ".":
        return f"is {clean(ascii(value))[:80]}, which leads out of the bundle; {inside}"
    return None


def resolve(folder: Path, value: str, listed: "set[str]") -> Path | None:
    """The place in a bundle; None where a link leads out of it, or a listed file would be written over."""
    path = folder / value
    overwritten = PurePosixPath(value).as_posix() in listed
    return None if overwritten or not path.resolve().is_relative_to(folder.resolve()) else path
