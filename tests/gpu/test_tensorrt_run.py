"""Engines on a GPU: `pytest -m gpu`. Built for the GPU that is there, run, and compared with ONNX Runtime.

Written without a GPU and not executed so far (README, "Where it runs"); whoever has one begins here.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import EngineKind
from lrkit.data.trail import trail_set
from lrkit.errors import CapacityError
from lrkit.export.bundle import export_bundle
from lrkit.export.targets.engine_target import EngineOptions, EngineTarget
from lrkit.export.tensorrt.into_bundle import add_engines
from lrkit.gpus import find_gpus
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.engines.table import EngineChoice
from lrkit.runtime.engines.tensorrt.library import KINDS, installed_version, load_library
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, TARGET, picture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not find_gpus().found, reason=str(find_gpus().reason))]
SAMPLES = trail_set("main", "test", 8)


def archs_for(kind: EngineKind) -> tuple[str, ...]:
    """For TensorRT-RTX the GPU that is there; skips where the package is missing or does not know it."""
    if installed_version(kind) is None:
        pytest.skip(f'needs {kind}: pip install "lrkit[{kind}]"')
    if kind == "tensorrt":
        return ()
    arch = find_gpus().found[0].arch
    if arch.upper() not in load_library(kind).module.ComputeCapability.__members__:
        pytest.skip(f"{kind} does not build for {arch}")
    return (arch,)


@pytest.fixture(scope="module", params=[(kind, form) for kind in KINDS for form in ("program", "step")])
def built(request: pytest.FixtureRequest, bundle: Path) -> tuple[Path, EngineKind, Form]:
    """(bundle with engines for this GPU, their kind, form)."""
    kind, form = request.param
    archs = archs_for(kind)
    place = bundle.parent / f"gpu-{kind}-{form}"
    target = TARGET.model_copy(update={"dialect": "standard"})
    export_bundle(bundle.parent / "latent", place, target, SAMPLES[:2], form=form, baselines=False)
    # Without tf32=False a product of float32 matrices keeps 11 bits, and choices between near equals may differ.
    add_engines(place, EngineTarget(kind=kind, archs=archs, options=EngineOptions(tf32=False)))
    return place, kind, form


def facts(answer: Answer) -> dict[str, object]:
    """Every choice; the shares of regions are numbers, which another order of operations may change."""
    values = answer.to_dict() | {"timings": None}
    values["regions"] = [[region["box"] for region in step] for step in values["regions"]]
    return values


def test_answers_are_those_of_onnx_runtime(built: tuple[Path, EngineKind, Form]) -> None:
    place, kind, _ = built
    expected, engine = Reasoner.load(place, threads=1), Reasoner.load(place, engine=kind)
    assert engine.engine.name == kind
    for sample in SAMPLES:
        asked = (sample.images, sample.question)
        assert facts(engine.ask(*asked)) == facts(expected.ask(*asked))
    for how in ({"max_latent_steps": 0}, {"max_latent_steps": 2, "halting": "fixed"}, {"max_new_tokens": 1}):
        assert facts(engine.ask(picture(), QUESTION, **how)) == facts(expected.ask(picture(), QUESTION, **how))
    assert facts(engine.ask(None, QUESTION)) == facts(expected.ask(None, QUESTION))


def test_recorded_samples(built: tuple[Path, EngineKind, Form]) -> None:
    assert check_bundle(built[0], EngineChoice(built[1])).problems == []


def test_threads_share_an_engine(built: tuple[Path, EngineKind, Form]) -> None:
    reasoner = Reasoner.load(built[0], engine=built[1])
    alone = [facts(reasoner.ask(sample.images, sample.question)) for sample in SAMPLES]
    started = threading.Barrier(4)

    def ask_all(_: int) -> list[dict[str, object]]:
        started.wait()
        return [facts(reasoner.ask(sample.images, sample.question)) for sample in SAMPLES]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask_all, range(4))) == [alone] * 4


def test_limits_come_before_the_device(built: tuple[Path, EngineKind, Form]) -> None:
    with pytest.raises(CapacityError, match="max_images"):
        Reasoner.load(built[0], engine=built[1]).ask([picture()] * 3, QUESTION)


def test_a_recorded_graph_says_the_same(built: tuple[Path, EngineKind, Form]) -> None:
    place, kind, form = built
    if form != "step":
        pytest.skip("loops run inside a whole program")
    plain, recorded = (
        Reasoner.load(place, engine=kind, engine_options=options) for options in ({}, {"cuda_graphs": ["speak"]})
    )
    for _ in range(3):  # recorded, then launched
        for sample in SAMPLES[:3]:
            asked = (sample.images, sample.question)
            assert facts(recorded.ask(*asked)) == facts(plain.ask(*asked))


def test_what_was_compiled_is_kept(built: tuple[Path, EngineKind, Form], tmp_path: Path) -> None:
    place, kind, _ = built
    if kind != "tensorrt-rtx":
        pytest.skip("tensorrt compiles when it builds")
    options = {"runtime_cache": str(tmp_path / "kernels")}
    first = facts(Reasoner.load(place, engine=kind, engine_options=options).ask(picture(), QUESTION))
    kept = sorted((tmp_path / "kernels").glob("*.cache"))
    assert kept and all(file.stat().st_size for file in kept)
    assert facts(Reasoner.load(place, engine=kind, engine_options=options).ask(picture(), QUESTION)) == first
