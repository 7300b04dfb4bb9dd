"""Builds one TensorRT engine from one ONNX file with NVIDIA's `tensorrt` (10, 11) or `tensorrt_rtx`.

Place in the pipeline: run_builder.py calls `build`, in a process of its own or on a device. Nothing of lrkit is
imported but words.py, as this file becomes part of the script that builds on a device (tensorrt/script.py).

lrkit's tests never ran the package `tensorrt`, for want of a GPU. They run `tensorrt_rtx`, which has the same classes.
What only `tensorrt` does (hardware and version compatibility, timings, building for the GPU at hand) follows its
documentation.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from lrkit.export.tensorrt.device.words import default_archs, explain, known_archs, layers_by_part, place_of

PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Python package -> lrkit's name for it."""
FLAGS = {"version_compatible": "VERSION_COMPATIBLE", "weight_streaming": "WEIGHT_STREAMING", "tf32": "TF32"}
"""Option -> BuilderFlag."""
CHOICES = {
    "hardware_compatibility": ("HardwareCompatibilityLevel", "hardware_compatibility_level"),
    "layer_details": ("ProfilingVerbosity", "profiling_verbosity"),
}
"""Option -> enum, attribute of the builder's config."""


class BuildError(Exception):
    """One sentence about what the package refused."""


class Watch:
    """What the builder is at, for whoever waits."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.started = time.monotonic()

    def sign(self) -> dict[str, Any]:
        """A sign of life."""
        phase = self.phases[-1] if self.phases else ""
        return {"phase": phase, "seconds": time.monotonic() - self.started, "bytes": memory("VmRSS")}


class Package:
    """NVIDIA's package with its one logger: a process honours only the first that it is given."""

    def __init__(self, name: str) -> None:
        self.name, self.trt = name, importlib.import_module(name)
        self.version = str(self.trt.__version__)
        errors: list[str] = []
        severities = (self.trt.ILogger.INTERNAL_ERROR, self.trt.ILogger.ERROR)

        class Log(self.trt.ILogger):  # type: ignore[name-defined,misc] # pyright: ignore
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, msg: str) -> None:
                if severity in severities:
                    errors.append(msg)

        self.errors, self.log = errors, Log()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def said(self) -> str:
        """The builder's own words since the last call: the longest, as the others repeat parts of it."""
        lines = [" ".join(text.split()) for text in self.errors]
        self.errors.clear()
        return max(lines, key=len, default="it gives no reason")


def load_package(names: list[str]) -> Package:
    """The first of the packages that is installed.

    Raises:
        BuildError: none is, or it cannot be loaded.
    """
    problems: list[str] = []
    for name in names:
        try:
            return Package(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise BuildError(f"the package {name} is installed but lacks {error.name}; install it again") from error
            problems.append(name)
        except Exception as error:  # whatever its loader of shared libraries says
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BuildError(f"the package {name} cannot be loaded ({said}); install it again") from error
    raise BuildError(f"none of the packages {', '.join(problems)} is installed; install the one for this device")


def build(package: Package, job: dict[str, Any], request: dict[str, Any], folder: Path, watch: Watch) -> dict[str, Any]:
    """Builds one engine from a file of `folder` and writes it to the folder that the request names, or the same;
    returns what a bundle records of it.

    Raises:
        BuildError: the parser or the builder refused, in their words and with the place in the program.
    """
    trt = package.trt
    started = time.monotonic()
    forget_peak()
    builder, network, _ = read(package, folder / job["onnx"])
    config = builder.create_builder_config()
    set_profile(package, builder, network, config, job["profile"])
    set_options(package, config, request["options"])
    archs = set_archs(package, config, request["archs"])
    if (monitor := make_monitor(trt, watch)) is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{package} cannot build {job['onnx']}: {explain(package.said(), network)}")
    write(Path(request.get("output", folder)) / job["engine"], plan)
    save_timing_cache(config, request["options"])
    return {
        "file": job["engine"], "kind": PACKAGES[package.name], "version": package.version, "graph": job["graph"],
        "archs": archs, "profile": job["profile"], "options": request["options"], "num_layers": network.num_layers,
        "layers_by_part": layers_by_part(network), "build_seconds": round(time.monotonic() - started, 3),
        "build_peak_bytes": memory("VmHWM"),
    }  # fmt: skip


def read(package: Package, file: Path) -> tuple[Any, Any, Any]:
    """(builder, network, parser) of an ONNX file; all three are to be kept, as the network uses the others.

    Raises:
        BuildError: there is no builder, or the parser refuses the file.
    """
    trt = package.trt
    try:
        builder = trt.Builder(package.log)
    except Exception as error:  # pybind raises a TypeError when the factory gives nothing
        raise BuildError(f"{package} cannot start its builder ({package.said()}); it needs an NVIDIA driver") from error
    # Later releases know strongly typed networks only; the flag may go.
    typed = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, package.log)
    parse(package, parser, file)
    return builder, network, parser


def parse(package: Package, parser: Any, file: Path) -> None:
    """Reads the ONNX file; from the file, as its weights may lie in another beside it."""
    if not file.is_file():
        raise BuildError(f"{file}: no such file; give the folder that holds it")
    if parser.parse_from_file(str(file)):
        package.errors.clear()
        return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    if not errors:
        raise BuildError(f"{package} cannot read {file.name}: {package.said()}")
    first = errors[0]
    node, operator = str(first.node_name()), str(first.node_operator())
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = f"the node {node} (operator {operator}, {place_of(node)})"
    raise BuildError(f"{package} cannot read {file.name}: it refuses {where}: {' '.join(first.desc().split())}{more}")


def set_profile(package: Package, builder: Any, network: Any, config: Any, shapes: dict[str, Any]) -> None:
    """One optimization profile: smallest, usual and largest shape of each input that varies."""
    names = {network.get_input(number).name for number in range(network.num_inputs)}
    if not set(shapes) <= names:
        raise BuildError(f"the program has no input {sorted(set(shapes) - names)}; it is not the one that was planned")
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, tuple(smallest), tuple(usual), tuple(largest))
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"{package} refuses the optimization profile: {package.said()}")


def set_archs(package: Package, config: Any, archs: list[str]) -> list[str]:
    """Names the compute capabilities; returns those that the engine is for: where none are asked for, all that this
    package can build for by default, or that of the GPU at hand."""
    known = getattr(package.trt, "ComputeCapability", None)
    archs = archs or default_archs(package.trt)
    if not archs:
        found = device_arch()
        return [found] if found else []
    if known is None:
        raise BuildError(f"{package} builds for the GPU of this machine only; leave the compute capabilities out")
    config.num_compute_capabilities = len(archs)
    for number, arch in enumerate(archs):
        value = getattr(known, arch.upper(), None)
        if value is None or not config.set_compute_capability(value, number):
            raise BuildError(f"{package} does not build for {arch}; it knows {', '.join(known_archs(package.trt))}")
    return archs


def set_options(package: Package, config: Any, options: dict[str, Any]) -> None:
    """Tells the builder what was asked for beyond its defaults; what it does not have or take is an error."""
    trt = package.trt
    for name, value in options.items():
        if name == "workspace_mb":
            pool = need(package, name, trt, "MemoryPoolType.WORKSPACE")
            config.set_memory_pool_limit(pool, value << 20)
            taken = config.get_memory_pool_limit(pool) == value << 20
        elif name == "optimization_level":
            need(package, name, config, "builder_optimization_level")
            config.builder_optimization_level = value
            taken = config.builder_optimization_level == value
        elif name == "timing_cache":
            need(package, name, config, "create_timing_cache")
            path = Path(value)
            cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
            taken = cache is not None and config.set_timing_cache(cache, False)
        elif name in CHOICES:
            enum, attribute = CHOICES[name]
            wanted = need(package, name, trt, f"{enum}.{str(value).upper()}")
            need(package, name, config, attribute)
            setattr(config, attribute, wanted)
            taken = getattr(config, attribute) == wanted
        else:
            flag = need(package, name, trt, f"BuilderFlag.{FLAGS[name]}")
            (config.set_flag if value else config.clear_flag)(flag)
            taken = config.get_flag(flag) == value
        if not taken:
            raise BuildError(f"{package} does not take the option {name}={value} ({package.said()}); leave it out")


def need(package: Package, option: str, owner: Any, path: str) -> Any:
    """The attribute at `path`, or an error that this release has no such option."""
    for step in path.split("."):
        if not hasattr(owner, step):
            raise BuildError(f"{package} has no {path}, which the option {option} needs; leave the option out")
        owner = getattr(owner, step)
    return owner


def save_timing_cache(config: Any, options: dict[str, Any]) -> None:
    """What was timed, for the next build on the same device."""
    cache = config.get_timing_cache() if options.get("timing_cache") else None
    if cache is not None:
        write(Path(options["timing_cache"]), cache.serialize())


def make_monitor(trt: Any, watch: Watch) -> Any:
    """A progress monitor that notes the phase; None where the package has none (before TensorRT 10)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc] # pyright: ignore
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.phases.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True  # go on: a build is stopped by ending its process, at any moment and not only at a step

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in watch.phases:
                watch.phases.remove(phase_name)

    return Monitor()


def memory(key: str) -> int | None:
    """Bytes of /proc/self/status: VmRSS now, VmHWM at most; None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), None)


def forget_peak() -> None:
    """Resets VmHWM, so that the second engine of a script does not report the first one's memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def device_arch() -> str | None:
    """Compute capability of the first GPU, as sm87, from the driver itself; None without one."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h.
    if cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device) or cuda.cuDeviceGetAttribute(
        ctypes.byref(minor), 76, device
    ):
        return None
    return f"sm{major.value}{minor.value}"


def write(path: Path, content: Any) -> None:
    """Through a neighbour, so that no half file is ever found under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.writing")
    try:
        with staging.open("wb") as stream:
            stream.write(memoryview(content))
        os.replace(staging, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            staging.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # of a failed write the system names no file
        raise
