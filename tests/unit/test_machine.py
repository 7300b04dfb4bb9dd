"""What `lrkit doctor` says of engines and measures of the machine."""

import pytest

from lrkit.gpus import Gpu, Gpus
from lrkit.profile.ceilings.machine import engine_states, inspect_machine, known_gpus
from lrkit.profile.ceilings.number_types import fastest_float, measure_types
from lrkit.provenance import installed_version
from lrkit.runtime.engines.tensorrt.library import installed_version as engine_version

NONE = Gpus((), "there is no NVIDIA driver")
ONE = Gpus((Gpu(0, "NVIDIA L4", "sm89"),))


def test_a_machine_without_a_gpu_runs_torch_and_onnx_runtime() -> None:
    found = {engine.name: engine for engine in engine_states(NONE)}
    assert found["torch"].usable and found["onnxruntime"].usable and "cpu" in found["onnxruntime"].runs_on
    for kind in ("tensorrt-rtx", "tensorrt"):
        assert not found[kind].usable and found[kind].runs_on.startswith("no NVIDIA GPU here")
        missing = engine_version(kind) is None  # pyright: ignore[reportArgumentType]
        assert found[kind].command == (f'pip install "lrkit[{kind}]"' if missing else None)


def test_a_gpu_that_the_packages_cannot_use_is_said_with_what_brings_them() -> None:
    """A CPU build of torch, and ONNX Runtime without CUDA: both answer, and leave the GPU idle."""
    found = {engine.name: engine for engine in engine_states(ONE)}
    if str(installed_version("torch")).endswith("+cpu"):
        assert "stays idle" in found["torch"].runs_on and found["torch"].command is not None
    if installed_version("onnxruntime-gpu") is None:
        assert found["onnxruntime"].command == 'pip install "lrkit[gpu]"'
    for kind in ("tensorrt-rtx", "tensorrt"):
        there = engine_version(kind) is not None  # pyright: ignore[reportArgumentType]
        assert found[kind].usable is there and "NVIDIA L4 (sm89)" in found[kind].runs_on


def test_what_the_driver_does_not_say_is_null() -> None:
    (gpu,) = known_gpus(ONE)
    assert (gpu["name"], gpu["compute_capability"]) == ("NVIDIA L4", "sm89")
    assert gpu["memory"] is gpu["driver"] is None
    (gpu,) = known_gpus(Gpus((Gpu(0, "NVIDIA L4", "sm89", 24_152_899_584, "550.54.15"),)))
    assert (gpu["memory"], gpu["driver"]) == ("23034 MiB", "550.54.15")


@pytest.mark.parametrize("measure", [False, True])
def test_rates_are_measured_only_when_asked(measure: bool) -> None:
    rates = inspect_machine(measure)["rates"]
    if not measure:
        assert rates is None
        return
    assert [(row["by"], row["dtype"]) for row in rates[:3]] == [
        ("numpy", "float32"), ("torch on cpu", "float32"), ("torch on cpu", "bfloat16"),
    ]  # fmt: skip
    for row in rates:
        assert 1e8 < row["memory_copy_bytes_per_sec"] < 1e13 and 1e8 < row["read_bytes_per_sec"] < 1e13
        assert 1e8 < row["matmul_flops_per_sec"] < 1e16


def test_each_number_type_is_measured_once() -> None:
    types = measure_types("cpu", 1)
    assert [one.name for one in types] == ["float32", "bfloat16", "int8"]
    assert all(1e8 < one.flops_per_sec < 1e16 for one in types)
    assert measure_types("cpu", 1) is types
    best = fastest_float(types)
    assert best is not None and best.flops_per_sec == max(one.flops_per_sec for one in types[:2])
    assert fastest_float(()) is None
