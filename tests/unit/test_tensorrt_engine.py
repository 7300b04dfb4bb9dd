"""Bundles with real engines of TensorRT-RTX on a machine without a GPU: each reason not to run is one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lrkit.cli.main import app
from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.manifest import EngineEntry
from lrkit.errors import BundleError, ConfigError, LrkitError, MissingExtraError, UnknownNameError, UserError
from lrkit.gpus import Gpu, find_gpus
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.engines.table import EngineChoice, open_engine, parse_options
from lrkit.runtime.engines.tensorrt.engine import choose_engine, deserialize
from lrkit.runtime.engines.tensorrt.engine_file import HEADER_BYTES, check_version, open_engine_file, read_header
from lrkit.runtime.engines.tensorrt.library import installed_version, load_library
from lrkit.runtime.engines.tensorrt.session import Allocation, make_allocator
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, picture
from tests.unit.test_device_array import ProcessMemory

without_gpu = pytest.mark.skipif(bool(find_gpus().found), reason="this machine has an NVIDIA GPU")
without_tensorrt = pytest.mark.skipif(installed_version("tensorrt") is not None, reason="tensorrt is installed")


@pytest.fixture
def own(engine_bundle: Path, tmp_path: Path) -> Path:
    """A copy to alter."""
    return Path(shutil.copytree(engine_bundle, tmp_path / "own"))


def entry_of(folder: Path) -> EngineEntry:
    (entry,) = open_bundle(folder).program("latent").engines
    return entry


def alter(folder: Path, **changes: object) -> None:
    """Changes what bundle.json says of the engine."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    values["programs"]["latent"]["engines"][0].update(changes)
    path.write_text(json.dumps(values))


def message(folder: Path, engine: str = "tensorrt-rtx", **how: Any) -> str:
    with pytest.raises(LrkitError) as caught:
        Reasoner.load(folder, engine=engine, **how)
    assert "\n" not in str(caught.value), "one sentence"
    return str(caught.value)


def test_the_program_of_an_engine_bundle_runs_in_onnx_runtime(engine_bundle: Path) -> None:
    answer = Reasoner.load(engine_bundle, threads=1).ask(picture(), QUESTION)
    assert answer.latent_steps == 3 and answer.text
    assert check_bundle(engine_bundle).problems == []


@without_gpu
def test_no_gpu_is_one_sentence(engine_bundle: Path) -> None:
    said = message(engine_bundle)
    assert "its engine of tensorrt-rtx runs on an NVIDIA GPU, and on this machine" in said
    assert "use engine onnxruntime here" in said


@without_gpu
def test_the_command_line_says_it(engine_bundle: Path) -> None:
    for verb in (["ask", str(engine_bundle), QUESTION], ["validate", str(engine_bundle)]):
        done = CliRunner().invoke(app, [*verb, "--engine", "tensorrt-rtx"])
        assert done.exit_code != 0 and isinstance(done.exception, UserError)
        assert "runs on an NVIDIA GPU" in str(done.exception)


@without_gpu
def test_the_package_itself_refuses_without_a_driver(engine_bundle: Path) -> None:
    """Were the GPU not asked for first, this is what would be said."""
    library, entry = load_library("tensorrt-rtx"), entry_of(engine_bundle)
    with pytest.raises(BundleError) as caught:
        deserialize(library, library.module.Runtime(library.log), engine_bundle / entry.file, entry)
    said = str(caught.value)
    assert "cannot make its engine, built by" in said and "driver" in said and "\n" not in said


def test_another_major_version(own: Path) -> None:
    alter(own, version="9.1.2")
    said = message(own)
    installed = load_library("tensorrt-rtx").version
    assert f"was built by tensorrt_rtx 9.1.2, and {installed} is installed" in said
    assert "install tensorrt_rtx 9.1.2, or build the engine again" in said


def test_a_minor_version_is_the_packages_affair(engine_bundle: Path) -> None:
    library, entry = load_library("tensorrt-rtx"), entry_of(engine_bundle)
    check_version(Path("x"), entry.model_copy(update={"version": f"{library.major}.999"}), library)


def cut(content: bytes) -> bytes:
    return content[:-1000]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (cut, "is cut off: it has"),
    "only a start": (lambda content: content[:20], "is cut off: it has 20 bytes, not even an engine's header"),
    "empty": (lambda content: b"", "cannot be read as an engine"),
    "another file": (lambda content: b"x" * len(content), "is no engine of tensorrt-rtx (it begins with b'xxxx')"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_engine(own: Path, what: str) -> None:
    """Even where bundle.json agrees with the damage, as when a cut off file was packed."""
    change, expected = DAMAGES[what]
    path = own / entry_of(own).file
    path.write_bytes(change(path.read_bytes()))
    assert "is cut off" in message(own) or "was altered" in message(own)
    values = json.loads((own / "bundle.json").read_text())
    values["files"][path.relative_to(own).as_posix()]["bytes"] = path.stat().st_size
    (own / "bundle.json").write_text(json.dumps(values))
    said = message(own, verify=False)
    assert expected in said and str(path) in said and said.endswith("copy the bundle again")


def test_the_header_is_that_of_the_builder(engine_bundle: Path) -> None:
    entry = entry_of(engine_bundle)
    path = engine_bundle / entry.file
    header = read_header(path.read_bytes()[:HEADER_BYTES])
    assert header is not None
    assert header.num_bytes == path.stat().st_size
    assert header.version == entry.version == load_library("tensorrt-rtx").version
    with open_engine_file(path, entry) as content:
        assert len(content) == header.num_bytes


GPUS = {"sm90": Gpu(0, "H100", "sm90"), "sm89": Gpu(0, "L4", "sm89"), "sm120": Gpu(0, "RTX 5090", "sm120")}


def test_another_compute_capability(engine_bundle: Path) -> None:
    engines = [entry_of(engine_bundle)]
    known = [name.lower() for name in load_library("tensorrt-rtx").module.ComputeCapability.__members__]
    assert choose_engine(engines, GPUS["sm89"], engine_bundle, known) is engines[0]
    with pytest.raises(BundleError) as caught:
        choose_engine(engines, GPUS["sm120"], Path("b"), known)
    assert str(caught.value) == (
        "b: its engines of tensorrt-rtx are for sm89, this GPU (RTX 5090) is sm120; build one for it: "
        "lrkit engines b --engine tensorrt-rtx --arch sm120"
    )
    with pytest.raises(
        BundleError, match=r"this GPU \(H100\) is sm90; tensorrt-rtx knows only .*: use engine tensorrt or"
    ):
        choose_engine(engines, GPUS["sm90"], Path("b"), known)


def test_hardware_compatibility_runs_on_later_gpus(engine_bundle: Path) -> None:
    options = {"hardware_compatibility": "ampere_plus"}
    built = entry_of(engine_bundle).model_copy(update={"kind": "tensorrt", "archs": ("sm86",), "options": options})
    assert choose_engine([built], GPUS["sm90"], Path("b")) is built
    with pytest.raises(BundleError, match=r"build one for it: lrkit engines b --engine tensorrt$"):
        choose_engine([built.model_copy(update={"options": {}})], GPUS["sm90"], Path("b"))


@without_tensorrt
def test_a_package_that_is_not_installed(own: Path) -> None:
    alter(own, kind="tensorrt", version="11.4.0.106")
    with pytest.raises(
        MissingExtraError, match=r'needs the package tensorrt, which .* pip install "lrkit\[tensorrt\]"'
    ):
        Reasoner.load(own, engine="tensorrt")


def test_a_bundle_without_such_engines(bundle: Path, engine_bundle: Path) -> None:
    assert message(bundle) == (
        f"{bundle}: has no engine of tensorrt-rtx for its latent program, nor of another kind; engines are built from "
        "the dialect standard, and the program is in ort, so export the checkpoint again: "
        "lrkit export CHECKPOINT --engine tensorrt-rtx"
    )
    assert message(bundle, "tensorrt").endswith("lrkit export CHECKPOINT --engine tensorrt --target TARGET")
    assert message(engine_bundle, "tensorrt").endswith(
        "its latent program, only of tensorrt-rtx; add it: " + f"lrkit engines {engine_bundle} --engine tensorrt"
    )


def test_the_command_that_adds_an_engine(own: Path) -> None:
    path = own / "bundle.json"
    values = json.loads(path.read_text())
    values["programs"]["latent"]["engines"] = []
    path.write_text(json.dumps(values))
    assert message(own).endswith(f"nor of another kind; add it: lrkit engines {own} --engine tensorrt-rtx --arch smXX")


def test_options_of_the_other_engine(bundle: Path) -> None:
    assert "provider is for engine onnxruntime, and the engine is tensorrt-rtx" in message(bundle, provider="cpu")
    assert "threads is for engine onnxruntime" in message(bundle, threads=1)
    said = message(bundle, "onnxruntime", engine_options={"device": 1})
    assert "device is for engine openvino or tensorrt-rtx or tensorrt or torch, and the engine is onnxruntime" in said
    with pytest.raises(
        UnknownNameError, match="unknown engine 'tensorrtx'; known are onnxruntime, openvino, tensorrt-rtx, tensorrt"
    ):
        open_engine(bundle, EngineChoice("tensorrtx"))
    with pytest.raises(UserError, match="is no bundle, and an engine runs bundles"):
        Reasoner.open("tiny", engine="tensorrt-rtx")


def test_engine_options_are_strict(bundle: Path) -> None:
    assert parse_options(["device=1", "cuda_graphs=[speak, think]", "runtime_cache=kernels"], "tensorrt-rtx") == {
        "device": 1, "cuda_graphs": ["speak", "think"], "runtime_cache": "kernels"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="devise"):
        parse_options(["devise=1"], "tensorrt")
    with pytest.raises(ConfigError, match="weight_budget_bytes"):
        parse_options(["weight_budget_bytes=-1"], "tensorrt-rtx")
    assert "cuda_graphs names speak, and" in message(bundle, engine_options={"cuda_graphs": ["speak"]})
    assert "export with --form step" in message(bundle, engine_options={"cuda_graphs": ["speak"]})
    cached = {"runtime_cache": "kernels"}
    assert "runtime_cache is for tensorrt-rtx" in message(bundle, "tensorrt", engine_options=cached)


def test_the_step_form_has_an_engine_for_each_graph(step_engine_bundle: Path) -> None:
    entry = open_bundle(step_engine_bundle).program("latent")
    assert [engine.graph for engine in entry.engines] == ["prompt", "think", "speak"]
    recorded = {"cuda_graphs": ["speak"], "runtime_cache": "kernels"}
    if not find_gpus().found:
        assert "runs on an NVIDIA GPU" in message(step_engine_bundle, engine_options=recorded)
    whole = message(step_engine_bundle, engine_options={"cuda_graphs": ["program"]})
    assert "engine tensorrt-rtx: cuda_graphs.0" in whole and "'prompt', 'think' or 'speak'" in whole


def test_memory_for_an_output_that_only_the_run_tells(engine_bundle: Path) -> None:
    """By the package's own allocator class, asked as a run asks it."""
    from lrkit.runtime.engines.tensorrt.device_array import Pool

    library, pool = load_library("tensorrt-rtx"), Pool(ProcessMemory())
    held, allocator = Allocation(pool, "float32"), make_allocator(library)
    allocator.owner = held
    assert isinstance(allocator, library.module.IOutputAllocator)
    with pytest.raises(LrkitError, match="latent: the engine told no size for one of its outputs"):
        held.array("latent")
    address = allocator.reallocate_output_async("found", 0, 24, 256, 0)
    assert address and allocator.reallocate_output("found", address, 20, 256) == address
    allocator.notify_shape("found", library.module.Dims([2, 3]))
    made = held.array("latent")
    assert (made.shape, made.nbytes, made.address) == ((2, 3), 24, address)


def test_the_logger_keeps_what_was_said() -> None:
    pytest.importorskip("tensorrt_rtx")
    library = load_library("tensorrt-rtx")
    assert load_library("tensorrt-rtx") is library
    library.log.take()
    assert library.module.Runtime(library.log).deserialize_cuda_engine(b"x" * 100) is None
    assert library.log.errors and "\n".join(library.log.take())
    assert library.log.take() == []
