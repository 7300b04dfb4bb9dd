"""Measures beside the model what this device can do at most: how fast it copies memory and multiplies matrices.

Place in the pipeline: `measure_rates` -> roofline.py. Through torch for a checkpoint (its device, number type and
threads) and on a GPU, through numpy and ONNX Runtime for a bundle on a CPU. The best of several tries counts: a ceiling
is no average.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lrkit.contract.schemes import scheme_named
from lrkit.cores import usable_cores
from lrkit.gpus import torch_can_use
from lrkit.profile.ceilings.number_types import TypeRate, measure_types
from lrkit.profile.ceilings.openvino_rate import openvino_flops
from lrkit.profile.ceilings.program_rates import program_flops
from lrkit.profile.ceilings.roofline import Rates
from lrkit.runtime.engines.common.protocol import Engine

_LARGE_BYTES = 128 * 2**20
"""Beyond the caches of most CPUs."""
_LARGE_GPU_BYTES = 2**31
"""The same of GPUs, and enough work for the wait at its end not to count."""
_SMALL_BYTES = 256 * 2**10
_TRIES = 15


@dataclass(frozen=True)
class MeasuredRates:
    """Rates, and how they were found."""

    working_set_bytes: int
    """Size of what was copied, that of the model's weights: small weights stay in a cache, and are read as fast."""
    copy_bytes_per_sec: float
    """Read and written bytes together, at the working set's size."""
    read_bytes_per_sec: float
    """Read bytes alone, at the working set's size: what streaming the weights can reach."""
    memory_copy_bytes_per_sec: float
    """Copied, for a buffer that no cache holds."""
    matmul_flops_per_sec: float | None
    """Of the language model's products."""
    matmul_side: int
    """Of the square matrices."""
    dtype: str
    threads: int | None
    by: str
    """torch on ..., or numpy."""
    float_flops_per_sec: float | None = None
    """Of a vision tower that is held otherwise than the language model; None: the same."""
    types: tuple[TypeRate, ...] = ()
    """What the device does in each number type, whatever the model computes in."""

    @property
    def rates(self) -> Rates:
        """For roofline.py."""
        return Rates(max(self.copy_bytes_per_sec, self.read_bytes_per_sec), self.matmul_flops_per_sec)

    @property
    def vision_rates(self) -> Rates:
        """The same for the vision tower."""
        return replace(self.rates, flops_per_sec=self.float_flops_per_sec or self.matmul_flops_per_sec)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_rates(engine: Engine, weight_bytes: int, threads: int | None = None) -> MeasuredRates | None:
    """The rates of what `engine` runs on; None where lrkit cannot measure them: a bundle on a GPU without torch."""
    found = _own_rates(engine, max(_SMALL_BYTES, min(weight_bytes, _large(engine.place))), threads)
    return found and replace(found, types=measure_types(engine.place, found.threads))


def _own_rates(engine: Engine, working_set: int, threads: int | None) -> MeasuredRates | None:
    """Those of the number type, or the integers, that the model is multiplied in."""
    if engine.bundle is None or engine.entry is None:
        return _by_torch(engine.place, engine.dtype, working_set)
    if engine.place != "cpu":
        return _of_gpu(engine.dtype, working_set)
    entry, target = engine.entry, engine.bundle.manifest.target
    rates = _by_numpy(working_set, threads or usable_cores())
    if engine.name == "openvino":
        flops, by = openvino_flops(engine.products or "f32", threads or usable_cores())
        return replace(rates, matmul_flops_per_sec=flops, by=f"numpy; products by {by}")
    layers = program_flops(entry, target, threads, entry.held.get("chunks") or entry.precision)
    tower = program_flops(entry, target, threads, entry.held.get("vision") or "fp32")
    if layers is None and tower is None:
        return rates
    said = [
        f"products of the {part} by {one[1]}" for part, one in (("language model", layers), ("tower", tower)) if one
    ]
    own, seen = (one[0] if one else rates.matmul_flops_per_sec for one in (layers, tower))
    return replace(rates, matmul_flops_per_sec=own, float_flops_per_sec=seen, by="; ".join(["numpy", *said]))


def measure_device(device: str, dtype: str) -> MeasuredRates:
    """The rates of a device through torch, for `lrkit doctor`; `dtype` as torch names it."""
    return _by_torch(device, dtype, _large(device))


def measure_cpu(threads: int) -> MeasuredRates:
    """The rates of this CPU through numpy, for `lrkit doctor`."""
    return _by_numpy(_LARGE_BYTES, threads)


def _large(device: str) -> int:
    """Bytes that no cache of that device holds."""
    return _LARGE_GPU_BYTES if device.startswith("cuda") else _LARGE_BYTES


def _of_gpu(precision: str, working_set: int) -> MeasuredRates | None:
    """Through torch, where it is installed and sees the GPU."""
    if not torch_can_use():
        return None
    return _by_torch("cuda", "float32" if scheme_named(precision).bits == 32 else "float16", working_set)


def _by_torch(on: str, dtype: str, working_set: int) -> MeasuredRates:
    import torch

    device = torch.device(on)
    side = 8192 if device.type == "cuda" else 768

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def copy_rate(size: int) -> float:
        source = torch.ones(size // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return _best(lambda: (target.copy_(source), wait()), size)

    def read_rate(size: int) -> float:
        values = torch.ones(size // 4, device=device)
        dot = _best(lambda: (torch.dot(values, values), wait()), size)
        return max(dot, _best(lambda: (values.sum(), wait()), size))

    left = torch.randn(side, side, dtype=torch.float32, device=device).to(getattr(torch, dtype))
    with torch.inference_mode():
        flops = _best(lambda: (left @ left, wait()), 2 * side**3)
    return MeasuredRates(
        working_set, copy_rate(working_set), read_rate(working_set), copy_rate(_large(on)), flops, side,
        dtype, torch.get_num_threads() if device.type == "cpu" else None,
        f"torch on {device}",
    )  # fmt: skip


def _by_numpy(working_set: int, threads: int) -> MeasuredRates:
    with ThreadPoolExecutor(threads) as pool:

        def copy_rate(size: int) -> float:
            part = max(1, size // 2 // threads)
            pairs = [(np.ones(part, np.uint8), np.empty(part, np.uint8)) for _ in range(threads)]

            def copy() -> None:
                # numpy copies without the interpreter's lock, so threads add up.
                list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

            return _best(copy, 2 * part * threads)

        def read_rate(size: int) -> float:
            parts = [np.ones(max(1, size // 4 // threads), np.float32) for _ in range(threads)]
            return _best(lambda: list(pool.map(lambda part: part @ part, parts)), 4 * len(parts[0]) * threads)

        side = 768
        left = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
        flops = _best(lambda: left @ left, 2 * side**3)
        return MeasuredRates(
            working_set,
            copy_rate(working_set),
            read_rate(working_set),
            copy_rate(_LARGE_BYTES),
            flops,
            side,
            "float32",
            threads,
            "numpy",
        )


def _best(work: Callable[[], object], amount: float) -> float:
    """Amount per second of the fastest try; short work is repeated until a try takes a millisecond."""
    work()
    started = time.perf_counter()
    work()
    once = max(1e-7, time.perf_counter() - started)
    loops = max(1, round(1e-3 / once))
    fastest = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        for _ in range(loops):
            work()
        fastest = min(fastest, (time.perf_counter() - started) / loops)
    return amount / fastest
