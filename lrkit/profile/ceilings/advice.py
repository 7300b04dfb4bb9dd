"""Which engine this machine should run bundles on, by what its CPU has and what was measured. Torch-free.

Place in the pipeline: ceilings/machine.py -> `engine_advice` -> `lrkit doctor`.
"""

from collections.abc import Collection
from pathlib import Path

AMX = "amx_bf16"
PROFILE = "lrkit profile BUNDLE --engine onnxruntime,openvino measures yours"
_MEASURED = (
    "with two cores of such a CPU and some 500 million weights OpenVINO read picture and prompt in 0.34 s in bf16 and "
    "0.79 s in f32, ONNX Runtime in 1.25 s; a spoken word took 24 ms against 17 ms, and small models such as tiny are "
    "quicker on ONNX Runtime"
)


def cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU says that it has, by Linux's names; empty where that is not told."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    told = next((line for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), "")
    return frozenset(told.partition(":")[2].split())


def engine_advice(flags: Collection[str], openvino: bool) -> str:
    """One sentence. `openvino`: it is installed."""
    if AMX in flags:
        brings = "" if openvino else ' (pip install "lrkit[openvino]")'
        return (
            f"bundles on this CPU, which multiplies bfloat16 in hardware (AMX): for large models use OpenVINO{brings}, "
            f"exported by --engine openvino openvino.precision=bf16: {_MEASURED}; {PROFILE}"
        )
    also = f"; {PROFILE}" if openvino else ""
    return (
        "bundles on this CPU, which has no AMX: use ONNX Runtime, as OpenVINO was measured against it on CPUs with AMX "
        f"alone{also}"
    )
