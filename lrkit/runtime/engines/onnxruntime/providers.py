"""What ONNX Runtime can run a program on, by short names. Torch-free; onnxruntime is imported when asked.

Place in the pipeline: `Reasoner.load(provider=...)`, `lrkit ask --provider`, and the options of the bundle's target ->
engine.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from lrkit.contract.bundle.manifest import BUNDLE_FILE, Manifest
from lrkit.contract.schemes import computed_in
from lrkit.errors import BundleError, UnknownNameError, UserError, did_you_mean, one_line
from lrkit.runtime.engines.onnxruntime.provider_options import is_path, problem_of, resolve
from lrkit.runtime.engines.onnxruntime.session import said

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


SESSION_PREFIX = "ep."
"""Options that begin so are ONNX Runtime's session entries, such as ep.context_enable."""
# Other number types than the program was written and validated in.
_PRECISIONS = ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")


def bundle_options(manifest: Manifest, provider: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(options of the provider, session entries) that the bundle's target gives for `provider`; empty where the target
    is for another one. Paths are those inside the bundle's folder.

    Raises:
        BundleError: an option that no bundle may give (provider_options.py), or a value that it may not have.
    """
    short, _, device = provider.partition(":")
    given = cast(object, manifest.target.get("provider_options") or {})
    if not given or str(manifest.target.get("provider", "")).partition(":")[0] != short:
        return {}, {}
    where = f"{folder}: target.provider_options in bundle.json"
    if not isinstance(given, dict):
        raise BundleError(f"{where} is a {type(given).__name__} where a mapping belongs; export again without it")
    given = cast(dict[str, object], given)
    listed = {*manifest.files, BUNDLE_FILE}
    options = {
        key: _written(f"{where}.{one_line(key, 80)}", key, value, short, folder, listed) for key, value in given.items()
    }
    computes = computed_in(manifest.target.get("precision"), manifest.target.get("activations"))
    for name in _PRECISIONS:
        if options.get(name, "").casefold() in ("true", "1") and (name, computes) != ("trt_fp16_enable", "fp16"):
            raise BundleError(
                f"{where}.{name} asks for another number type than the {computes} that the programs were validated in; "
                "export with the precision that is wanted instead"
            )
    if device and options.get("device_id", device) != device:
        raise UserError(
            f"provider {provider!r} was asked for, and the bundle's target says device_id {options['device_id']}; "
            f"give {short} for that one, or export again without device_id"
        )
    entries = {key: value for key, value in options.items() if key.startswith(SESSION_PREFIX)}
    return {key: value for key, value in options.items() if key not in entries}, entries


def _written(where: str, key: str, value: object, provider: str, folder: Path, listed: set[str]) -> str:
    """One option as ONNX Runtime reads it: as text."""
    if problem := problem_of(provider, key, value):
        raise BundleError(f"{where} {problem}")
    if isinstance(value, bool):
        # The TensorRT provider spells them out, the others count.
        return str(value) if provider == "tensorrt" else str(int(value))
    if is_path(provider, key):
        if (place := resolve(folder, str(value), listed)) is None:
            raise BundleError(
                f"{where} is {value}, which a link leads out of the bundle or which is one of its files; name another "
                "place inside it"
            )
        return str(place)
    return str(value)


def refusal(error: Exception, provider: str, path: Path, options: Mapping[str, str]) -> UserError:
    """One sentence for what ONNX Runtime said when it could not load a program on a provider other than the CPU."""
    text = said(error)
    named = [key for key in options if re.search(rf"\b{re.escape(key)}\b", text)]
    if named:
        return UserError(
            f"{path}: provider {provider!r} refuses its option {named[0]} = {options[named[0]]} ({text}); "
            "correct provider_options in the target and export again"
        )
    return UserError(
        f"{path}: provider {provider!r} could not be started on this machine ({text}); "
        "check its driver and libraries, or use cpu"
    )


def choose_provider(name: str, options: Mapping[str, str] | None = None) -> list[Provider]:
    """Providers for a session, the one asked for first and the CPU last (for nodes that it does not have).

    `name` may end in a device number: "cuda:1". `options` are the provider's own.

    Raises:
        UnknownNameError: no provider of that name.
        UserError: the installed onnxruntime does not have it.
    """
    short, _, device = name.partition(":")
    here = ", ".join(available_providers())
    if short not in PROVIDERS:
        raise UnknownNameError(
            f"unknown provider {one_line(repr(name), 80)}; this machine has {here}, and known are "
            f"{', '.join(PROVIDERS)}{did_you_mean(short, PROVIDERS)}"
        )
    if device and (not device.isdigit() or short not in _WITH_DEVICE):
        raise UserError(f"provider {name!r} has no device {device!r}; give {short}, or a number as in cuda:1")
    if short not in available_providers():
        bring = (
            f'pip install "lrkit[{_EXTRAS[short]}]"' if short in _EXTRAS else "install a build of onnxruntime with it"
        )
        raise UserError(f"provider {name!r} is not in the installed onnxruntime, which has {here}; use one, or {bring}")
    merged = {**(options or {}), **({"device_id": device} if device else {})}
    chosen: Provider = (PROVIDERS[short], merged) if merged else PROVIDERS[short]
    return [chosen] if short == "cpu" else [chosen, PROVIDERS["cpu"]]
