"""`lrkit engines` through the command line, with NVIDIA's real builder: new bundles and old ones, a build that
is stopped or killed, a script for a device, targets. No engine is run: that needs a GPU that they are built for."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.bundle.manifest import SCHEMA
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import BundleError
from lrkit.export.tensorrt import jobs
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.engines.tensorrt.library import installed_version
from tests.bundles import CAPACITY, processor
from tests.commands import lrkit
from tests.engines import needs_builder
from tests.tiny import LATENT, tiny_backbone
from tests.waiting import until

pytestmark = needs_builder

LIMITS = [f"limits.{name}={value}" for name, value in CAPACITY.items()]
SMALL = ReasonerSettings.model_validate({"think": {"max_latent_steps": 1}, "replay": {"num_tokens": 0}})
ROUTING = {"depth": 3, "alpha": 4, "threshold": 0.4}
SLOW = ReasonerSettings.model_validate(
    {"think": {"max_latent_steps": 3}, "replay": {"num_tokens": 3}, "routing": ROUTING}
)
"""Several seconds to build, so that it can be stopped on the way."""


def save(folder: Path, settings: ReasonerSettings, layers: int) -> Path:
    reasoner = build_reasoner(tiny_backbone(layers=layers), settings, LATENT, trainable="none")
    save_checkpoint(folder, reasoner, processor(), base=None, info={"stage": "latent"})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """One layer: its engine is built in a second."""
    return save(tmp_path_factory.mktemp("engines") / "small", SMALL, 1)


@pytest.fixture(scope="module")
def slow_checkpoint(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("stopped") / "slow", SLOW, 4)


@pytest.fixture(scope="module")
def exported(checkpoint) -> Path:
    """A bundle whose programs engines can be built from; shared, so copy it to alter it."""
    place = checkpoint.parent / "plain"
    assert lrkit("export", checkpoint, "--target", "rtx-pc", "--samples", 2, "-o", place, *LIMITS, "engine=null") == 0
    return place


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.mark.long
def test_a_new_bundle_with_an_engine_for_two_gpus(checkpoint, tmp_path, capsys):
    place, figures = tmp_path / "pc", tmp_path / "figures.json"
    wanted = ("--engine", "tensorrt-rtx", "--arch", "sm89,sm120", "--json", figures)
    assert lrkit("export", checkpoint, *wanted, "--samples", 2, "-o", place, *LIMITS) == 0
    assert "TensorRT engines" in capsys.readouterr().out
    manifest = json.loads(figures.read_text())["manifest"]
    assert manifest["schema_version"] == SCHEMA
    program = manifest["programs"]["latent"]
    (entry,) = program["engines"]
    assert entry["file"] == "engines/latent.tensorrt-rtx.sm89-sm120.engine"
    assert (entry["archs"], entry["graph"], entry["kind"]) == (["sm89", "sm120"], "program", "tensorrt-rtx")
    assert entry["build_seconds"] > 0 and entry["build_peak_bytes"] > 1e8
    assert sum(entry["layers_by_part"].values()) == entry["num_layers"]
    most = CAPACITY["max_prompt_tokens"]
    assert entry["profile"]["position_ids"][0] == [3, 1] and entry["profile"]["position_ids"][2] == [3, most]
    assert (place / entry["file"]).stat().st_size == manifest["files"][entry["file"]]["bytes"]
    assert lrkit("validate", place) == 0

    (place / entry["file"]).write_bytes((place / entry["file"]).read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"engines/latent\S+ is cut off"):
        open_bundle(place)


def test_engines_are_added_without_torch_and_replace_their_like(bundle):
    """A device that runs bundles has no torch; what is built again replaces, under another name, what was there."""
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'onnx_ir'): sys.modules[name] = None\n"
        "from lrkit.cli.main import main\n"
        "main(['engines', sys.argv[1], '--engine', 'tensorrt-rtx', '--arch', 'sm89'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first = open_bundle(bundle).manifest.programs["latent"].engines[0].file
    assert (
        lrkit("engines", bundle, "--engine", "tensorrt-rtx", "--arch", "sm89", "engine.options.workspace_mb=512") == 0
    )
    manifest = open_bundle(bundle).manifest
    (entry,) = manifest.programs["latent"].engines
    assert entry.file != first and entry.options == {"workspace_mb": 512}
    assert [path.relative_to(bundle).as_posix() for path in bundle.glob("engines/*")] == [entry.file]
    assert first not in manifest.files
    assert lrkit("validate", bundle) == 0


def test_engines_of_the_standard_package(bundle):
    """`tensorrt` itself cannot be installed here: its place is taken by tensorrt_rtx, which has the same classes. What
    differs, building for the GPU at hand, was never run."""
    program = (
        "import sys\n"
        "from lrkit.runtime.engines.tensorrt import library\n"
        "library.PACKAGES['tensorrt'] = 'tensorrt_rtx'\n"
        "from lrkit.cli.main import main\n"
        "main(['engines', sys.argv[1], '--target', 'l4'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (entry,) = open_bundle(bundle).manifest.programs["latent"].engines
    assert entry.kind == "tensorrt" and entry.options == {"workspace_mb": 4096}


@pytest.mark.long
def test_every_graph_of_the_form_step_gets_an_engine(checkpoint, tmp_path):
    place = tmp_path / "steps"
    wanted = ("--form", "step", "--engine", "tensorrt-rtx", "--arch", "sm89")
    assert lrkit("export", checkpoint, *wanted, "--samples", 2, "-o", place, *LIMITS) == 0
    entries = open_bundle(place).manifest.programs["latent"].engines
    assert [entry.graph for entry in entries] == ["prompt", "think", "speak"]
    assert entries[1].file == "engines/latent.think.tensorrt-rtx.sm89.engine"
    assert list(entries[1].layers_by_part) == ["think", "other"]
    assert entries[2].profile["prompt_key0"][2][-2] == CAPACITY["max_prompt_tokens"]


def builders_of(parent: int) -> list[int]:
    """Processes that build an engine for that one."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and "tensorrt.device.run_builder" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def working(parent: int) -> list[int]:
    """Those of `builders_of` that have loaded the builder's library."""
    try:
        return [pid for pid in builders_of(parent) if "libtensorrt" in Path(f"/proc/{pid}/maps").read_text()]
    except OSError:  # it has ended meanwhile
        return []


def is_gone(pid: int) -> bool:
    """Ended, or waiting for init to take note."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@on_linux
def test_ctrl_c_while_building_leaves_no_half_bundle_and_no_process(slow_checkpoint, tmp_path, capsys):
    """The signal comes while the builder works, which nothing in its own process could stop."""
    builders: list[int] = []

    def interrupt() -> None:
        until(lambda: working(os.getpid()))
        builders.extend(builders_of(os.getpid()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    wanted = ("--engine", "tensorrt-rtx", "--arch", "sm89", "--samples", 1, "-o", tmp_path / "out")
    assert lrkit("export", slow_checkpoint, *wanted, *LIMITS) == 130
    thread.join()
    assert "interrupted" in capsys.readouterr().err
    assert len(builders) == 1 and is_gone(builders[0])
    assert list(tmp_path.iterdir()) == []


@on_linux
def test_a_builder_that_the_system_kills_is_one_sentence(slow_checkpoint, tmp_path, capsys, monkeypatch):
    """What a machine does that runs out of memory."""
    bundle = Path(shutil.copytree(exported_slow(slow_checkpoint), tmp_path / "bundle"))

    told, build = threading.Event(), jobs.build_in_process

    def listened_to(request, sign):
        return build(request, lambda message: (sign(message), told.set()))

    def kill() -> None:
        until(told.is_set)  # it has said how much it holds
        os.kill(builders_of(os.getpid())[0], signal.SIGKILL)

    monkeypatch.setattr(jobs, "build_in_process", listened_to)
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert lrkit("engines", bundle, "--engine", "tensorrt-rtx") == 2
    thread.join()
    said = capsys.readouterr().err
    assert re.search(r"process ended by signal SIGKILL after \d s, holding 0\.\d GB; .* memory runs out", said), said
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert f"{bundle} stays as it was" in said
    open_bundle(bundle)


@on_linux
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_bundle_stays_whole_when_adding_engines_is_stopped(slow_checkpoint, tmp_path, how):
    """Killed outright, lrkit cannot clean up: its builder ends by itself, and the next run drops what was left."""
    bundle, staging = tmp_path / "bundle", tmp_path / "bundle" / ".engines.writing"
    shutil.copytree(exported_slow(slow_checkpoint), bundle)
    before = (bundle / "bundle.json").read_text()
    command = [sys.executable, "-m", "lrkit", "engines", str(bundle), "--engine", "tensorrt-rtx"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: working(process.pid), lambda: process.poll() is None)
    (builder,) = builders_of(process.pid)
    process.send_signal(how)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), said
    until(lambda: is_gone(builder))
    assert (bundle / "bundle.json").read_text() == before
    open_bundle(bundle)
    assert staging.exists() == (how == signal.SIGKILL)


def exported_slow(checkpoint: Path) -> Path:
    """A bundle of it, made once."""
    place = checkpoint.parent / "slow-bundle"
    if not place.exists():
        assert (
            lrkit("export", checkpoint, "--target", "rtx-pc", "--samples", 1, "-o", place, *LIMITS, "engine=null") == 0
        )
    return place


def test_a_script_builds_on_a_device_without_lrkit_and_its_engine_joins_the_bundle(bundle, tmp_path, capsys):
    """Only the ONNX file and the script go to the device: a Python that has nothing but the package of the builder."""
    assert lrkit("engines", bundle, "--engine", "tensorrt", "--script", tmp_path / "build_engine.py") == 0
    assert "built on the device" in capsys.readouterr().out
    device = tmp_path / "device"
    device.mkdir()
    for file in (bundle / "latent.onnx", tmp_path / "build_engine.py"):
        shutil.copy(file, device)
    ast.parse((device / "build_engine.py").read_text(), feature_version=(3, 10))
    bare = (
        "import runpy, sys\n"
        "for name in ('lrkit', 'numpy', 'torch', 'onnx', 'pydantic'): sys.modules[name] = None\n"
        "sys.argv = ['build_engine.py']\n"
        "runpy.run_path('build_engine.py', run_name='__main__')\n"
    )
    done = on_device("-c", bare, device)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+\.\d MB after \d+\.\d s, \d+ layers, at most \d+\.\d+ GB", done.stdout), done.stdout

    engines = device / "engines" / "engines.json"
    assert lrkit("engines", bundle, "--take", engines) == 0
    (entry,) = open_bundle(bundle).manifest.programs["latent"].engines
    # The script takes the package that is there: on this machine tensorrt_rtx, for all GPUs that it knows.
    assert entry.kind == "tensorrt-rtx" and entry.archs[0] == "sm80" and "sm75" not in entry.archs
    assert entry.file == f"engines/latent.tensorrt-rtx.{'-'.join(entry.archs)}.engine"
    assert lrkit("validate", bundle) == 0

    (device / "latent.onnx").write_bytes(b"another")
    refused = subprocess.run(
        [sys.executable, "build_engine.py"], cwd=device, capture_output=True, text=True, timeout=100
    )
    assert refused.returncode == 2 and "is not the file that this script was written for" in refused.stderr
    content = json.loads(engines.read_text())
    content["engines"][0]["onnx_sha256"] = "0" * 64
    engines.write_text(json.dumps(content))
    assert lrkit("engines", bundle, "--take", engines) == 2
    assert "was built from another program" in capsys.readouterr().err


def on_device(what: str, argument: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, what, argument]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_targets_of_devices_leave_a_script_where_their_builder_is_missing(checkpoint, tmp_path, capsys):
    if installed_version("tensorrt") is not None:
        pytest.skip("the package tensorrt is installed: its engine would be built")
    place = tmp_path / "thor"
    assert lrkit("export", checkpoint, "--target", "jetson-thor", "--samples", 2, "-o", place, *LIMITS) == 0
    assert f"copy {place} there" in capsys.readouterr().out
    assert "build_engine.py" in open_bundle(place).manifest.files
    assert lrkit("validate", place) == 0
    (place / "build_engine.py").write_text("print('hello')")
    with pytest.raises(BundleError, match=r"build_engine\.py is cut off"):
        open_bundle(place)


def test_the_earlier_spelling_of_engines_is_known(bundle, tmp_path, capsys):
    """`lrkit export BUNDLE` added engines to it."""
    (tmp_path / "none.json").write_text("{}")
    for arguments, part in (
        ((bundle, "--engine", "tensorrt-rtx", "--arch", "sm87"), "does not build for sm87"),
        ((bundle, "--engine-file", tmp_path / "none.json"), "lists no engines"),
        ((bundle, "limits.max_images=3"), "only engine.KEY=VALUE"),
        (
            (bundle, "--engine", "tensorrt-rtx", "-o", tmp_path / "other"),
            "is a bundle already, and `lrkit engines` adds",
        ),
    ):
        assert lrkit("export", *arguments) == 2
        said = capsys.readouterr().err
        assert part in said and len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_built_is_one_sentence(checkpoint, bundle, tmp_path, capsys):
    (tmp_path / "none.json").write_text("{}")
    rtx, nothing = ("--engine", "tensorrt-rtx"), tmp_path / "nothing"
    for arguments, part in (
        ((checkpoint, *rtx, "--arch", "sm87,sm90"), r"not build for sm87, sm90; it knows sm75, .*--engine tensorrt$"),
        ((bundle, *rtx, "--arch", "sm87"), "does not build for sm87"),
        ((checkpoint, *rtx, "--target", "cpu-fp32"), "the dialect is ort, but tensorrt-rtx engines"),
        ((checkpoint, "--engine", "tensorrt-rt"), "did you mean 'tensorrt-rtx'"),
        ((checkpoint, "--engine", "tensorrt"), "say which with --target: h200, jetson"),
        ((checkpoint, "--script", nothing), "the target asks for none"),
        ((checkpoint, "--target", "l4", "--arch", "sm89"), "builds for the GPU of the machine"),
        ((checkpoint, "--target", "rtx-pc", "engine.options.timing_cache=x"), "timing_cache are for tensorrt"),
        ((bundle, "limits.max_images=3"), "only engine.KEY=VALUE"),
        ((bundle, "--take", tmp_path / "none.json"), "lists no engines"),
        ((bundle, "--take", tmp_path / "absent.json"), "no such file"),
        ((bundle, *rtx, "--take", tmp_path / "none.json"), "with the bundle alone"),
    ):
        own = () if arguments[0] == bundle else ("-o", nothing)
        assert lrkit("engines" if arguments[0] == bundle else "export", *arguments, *own) == 2
        said = capsys.readouterr().err
        assert re.search(part, said.strip()), said
        assert not nothing.exists()
