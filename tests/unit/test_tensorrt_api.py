"""Every name that the TensorRT runtime uses of a package it cannot run here is looked up in the package itself.

The sources are read as syntax: an attribute of a variable that stands for an engine must be one of `ICudaEngine`, and a
call must have as many arguments as one of the overloads that its docstring declares.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lrkit.runtime.engines.tensorrt import device_memory
from lrkit.runtime.engines.tensorrt import engine as tensorrt
from lrkit.runtime.engines.tensorrt import session as tensorrt_session
from lrkit.runtime.engines.tensorrt.library import load_library

# Variable, as written -> class of the package.
ENGINES = {
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "cache": "IRuntimeCache",
    "runtime": "Runtime",
    "base": "IOutputAllocator",
}
MODULES = ("library.module", "self._library.module")


def uses(module: Any) -> Iterator[tuple[str, str, int | None]]:
    """(variable, attribute, number of positional arguments where it is called) of every attribute in a source."""
    tree = ast.parse(inspect.getsource(module))
    called = {
        id(node.func): len(node.args) for node in ast.walk(tree) if isinstance(node, ast.Call) and not node.keywords
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node.value), node.attr, called.get(id(node))


def arities(function: Any) -> set[int]:
    """Numbers of arguments, self left out, that pybind11 declares in a docstring; defaults may be left out."""
    found: set[int] = set()
    for line in re.findall(r"^(?:\d+\. )?\w+\((self.*)\) -> ", function.__doc__ or "", re.MULTILINE):
        arguments = re.split(r", (?=\w+: )", line)[1:]
        optional = sum(" = " in argument for argument in arguments)
        found |= set(range(len(arguments) - optional, len(arguments) + 1))
    return found


def test_every_name_is_in_tensorrt_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    module = load_library("tensorrt-rtx").module
    seen: set[str] = set()
    for source in (tensorrt, tensorrt_session):
        for variable, name, count in uses(source):
            if variable in MODULES:
                assert hasattr(module, name), name
                seen.add(name)
            elif variable in ENGINES:
                owner = getattr(module, ENGINES[variable])
                assert hasattr(owner, name), f"{ENGINES[variable]} has no {name}"
                seen.add(f"{ENGINES[variable]}.{name}")
                if count is not None and name != "__init__":
                    allowed = arities(getattr(owner, name))
                    assert count in allowed, f"{ENGINES[variable]}.{name} takes {allowed} arguments, not {count}"
    used = {
        "ICudaEngine.create_execution_context", "ICudaEngine.get_tensor_profile_shape", "CudaGraphStrategy",
        "IExecutionContext.execute_async_v3", "IExecutionContext.set_output_allocator", "IRuntimeCache.serialize",
        "IRuntimeConfig.cuda_graph_strategy", "Runtime.deserialize_cuda_engine",
    }  # fmt: skip
    assert used <= seen and len(seen) > 25, "the sweep must see the sources"


def test_the_sweep_finds_what_is_not_there() -> None:
    """Without this the test above could pass by reading nothing of a docstring."""
    module = pytest.importorskip("tensorrt_rtx")
    assert arities(module.IExecutionContext.set_tensor_address) == {2}
    assert arities(module.ICudaEngine.create_execution_context) == {0, 1}
    assert arities(module.Runtime.deserialize_cuda_engine) == {1}
    assert not hasattr(module.IExecutionContext, "execute_async_v2")


def test_enumerations_have_the_members_that_are_used() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    for name, member in (
        ("TensorIOMode", "INPUT"), ("TensorLocation", "HOST"), ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
        ("DataType", "INT64"), ("DataType", "FLOAT"), ("DataType", "HALF"), ("DataType", "UINT8"), ("DataType", "BOOL"),
    ):  # fmt: skip
        assert member in getattr(module, name).__members__
    assert "SM89" in module.ComputeCapability.__members__


def test_every_name_is_in_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: pip install cuda-python")
    seen: set[str] = set()
    for variable, name, count in uses(device_memory):
        if variable in ("self._cuda", "cuda") or (variable == "runtime" and name.startswith("cuda")):
            assert hasattr(runtime, name), name
            seen.add(name)
            declared = (getattr(runtime, name).__doc__ or "").partition("\n")[0]
            if count is not None and "(" in declared:
                arguments = declared.partition("(")[2].rpartition(")")[0]
                assert count == (arguments.count(",") + 1 if arguments else 0), declared
    assert "cudaMemcpyAsync" in seen and len(seen) > 14
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    code = runtime.cudaError_t.cudaErrorInsufficientDriver
    assert runtime.cudaGetErrorName(code)[1].decode() == "cudaErrorInsufficientDriver"


def test_every_name_is_in_torch() -> None:
    import torch

    seen: set[str] = set()
    for variable, name, _ in uses(device_memory):
        if re.fullmatch(r"(self\._)?torch(\.cuda)?", variable) and not name.startswith("_"):
            assert hasattr(torch.cuda if variable.endswith("cuda") else torch, name), name
            seen.add(name)
    assert {"CUDAGraph", "graph", "Stream", "set_device", "OutOfMemoryError"} <= seen
    declared = inspect.signature(torch.cuda.graph.__init__).parameters
    assert {"stream", "capture_error_mode"} <= set(declared)
