"""What ONNX Runtime can run a program on, by short names. Torch-free; onnxruntime is imported when asked.

Place in the pipeline: `Reasoner.load(provider=...)`, `lrkit ask --provider` -> ort.py.
"""

from lrkit.errors import UnknownNameError, UserError, did_you_mean

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Name -> ONNX Runtime's name."""

Provider = str | tuple[str, dict[str, str]]
"""As InferenceSession takes it."""

# Where a provider comes from, for the ones that a pip extra of lrkit brings.
_EXTRAS = {"cuda": "gpu", "tensorrt": "gpu"}
_WITH_DEVICE = ("cuda", "tensorrt", "tensorrt-rtx", "rocm", "migraphx", "directml")


def available_providers() -> list[str]:
    """Short names of what the installed onnxruntime offers; a device may still be missing for one."""
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    return [name for name, real in PROVIDERS.items() if real in offered]


def choose_provider(name: str) -> list[Provider]:
    """Providers for a session, the one asked for first and the CPU last (for nodes that it does not have).

    `name` may end in a device number: "cuda:1".

    Raises:
        UnknownNameError: no provider of that name.
        UserError: the installed onnxruntime does not have it.
    """
    short, _, device = name.partition(":")
    here = ", ".join(available_providers())
    if short not in PROVIDERS:
        raise UnknownNameError(
            f"unknown provider {name!r}; this machine has {here}, and known are {', '.join(PROVIDERS)}"
            f"{did_you_mean(short, PROVIDERS)}"
        )
    if device and (not device.isdigit() or short not in _WITH_DEVICE):
        raise UserError(f"provider {name!r} has no device {device!r}; give {short}, or a number as in cuda:1")
    if short not in available_providers():
        bring = (
            f'pip install "lrkit[{_EXTRAS[short]}]"' if short in _EXTRAS else "install a build of onnxruntime with it"
        )
        raise UserError(f"provider {name!r} is not in the installed onnxruntime, which has {here}; use one, or {bring}")
    chosen: Provider = (PROVIDERS[short], {"device_id": device}) if device else PROVIDERS[short]
    return [chosen] if short == "cpu" else [chosen, PROVIDERS["cpu"]]
