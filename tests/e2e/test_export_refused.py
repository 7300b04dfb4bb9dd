"""Engines that the builder refuses, or cannot finish: said before the comparison with torch, and the ONNX bundle is
left whole. With NVIDIA's real parser and builder."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.trail import trail_set
from lrkit.export import bundle as bundle_module
from lrkit.export.bundle import EnginesRefused, export_bundle
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.standard_writer import StandardWriter
from lrkit.export.targets.target import Target
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.checks.bundle_check import check_bundle
from tests.bundles import CAPACITY, processor
from tests.commands import lrkit
from tests.e2e.test_export_engines import builders_of, on_linux
from tests.engines import needs_builder
from tests.tiny import LATENT, tiny_backbone
from tests.waiting import until

pytestmark = needs_builder

LIMITS = [f"limits.{name}={value}" for name, value in CAPACITY.items()]
RTX = ("--engine", "tensorrt-rtx", "--arch", "sm89", "--samples", "1")
ENGINE = {"kind": "tensorrt-rtx", "archs": ["sm89"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The paper's weights of replayed tokens, one layer."""
    settings = {"think": {"max_latent_steps": 1}, "replay": {"num_tokens": 3, "weighting": "softmax"}}
    reasoner = build_reasoner(
        tiny_backbone(layers=1), ReasonerSettings.model_validate(settings), LATENT, trainable="none"
    )
    folder = tmp_path_factory.mktemp("refused") / "paper"
    save_checkpoint(folder, reasoner, processor(), base=None, info={"stage": "latent"})
    return folder


def assert_whole_without_engines(place: Path) -> None:
    assert check_bundle(place).problems == []
    assert not any(entry.engines for entry in open_bundle(place).manifest.programs.values())
    assert not (place / "engines").exists()
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def one_axis(self: StandardWriter, g: Graph, x: Value) -> Value:
    """As programs were written once: what TensorRT-RTX's parser refuses."""
    return g.op("Softmax", x, axis=-1)


def test_what_the_parser_refuses_is_known_before_torch_is_asked(checkpoint, tmp_path, monkeypatch):
    """It was found after minutes of comparison, and the bundle was thrown away."""
    monkeypatch.setattr(StandardWriter, "softmax", one_axis)
    told: list[str] = []
    honest = bundle_module.check_program

    def check(*arguments, **named):
        told.append("compared")
        return honest(*arguments, **named)

    monkeypatch.setattr(bundle_module, "check_program", check)
    target = Target.model_validate({"dialect": "standard", "limits": CAPACITY, "engine": ENGINE})
    with pytest.raises(EnginesRefused, match=r"has no engines: .*think/Softmax.*at least 2 dimensions") as refused:
        export_bundle(checkpoint, tmp_path / "own", target, trail_set("main", "test", 1), say=told.append)
    photos, refusal, compared = told
    assert photos.startswith("photos will be shrunk") and refusal.startswith("no engine will be built: ")
    assert compared == "compared"
    assert f"lrkit engines {tmp_path / 'own'} --engine tensorrt-rtx" in str(refused.value)
    assert "\n" not in str(refused.value) and refused.value.report.folder == tmp_path / "own"
    assert_whole_without_engines(tmp_path / "own")


def test_what_only_the_builder_refuses_is_known_by_the_rules(checkpoint, tmp_path, capsys):
    """Turing has no int4, which the parser does not see. Both the note and the end are one sentence."""
    place, figures = tmp_path / "int4", tmp_path / "figures.json"
    asked = (
        "--engine",
        "tensorrt-rtx",
        "--arch",
        "sm75",
        "--int4",
        "--samples",
        1,
        "--allow-unproven",
        "--json",
        figures,
    )
    assert lrkit("export", checkpoint, "-o", place, *asked, *LIMITS) == 2
    captured = capsys.readouterr()
    *_, last = captured.err.strip().splitlines()
    (note,) = [line for line in captured.err.splitlines() if "no engine will be built: " in line]
    assert "sm75" in note and "still written" in note
    assert last.startswith(f"error: {place} is whole but has no engines: ") and "sm75" in last
    assert f"bundle: {place}" in captured.out and "against torch" in captured.out
    assert figures.is_file()
    figures.unlink()
    assert_whole_without_engines(place)


@on_linux
@pytest.mark.slow
def test_a_builder_that_is_killed_leaves_the_bundle(checkpoint, tmp_path, capsys):
    def kill() -> None:
        # The first process only parses; the second builds.
        until(lambda: builders_of(os.getpid()))
        (parser,) = builders_of(os.getpid())
        until(lambda: set(builders_of(os.getpid())) - {parser})
        os.kill(builders_of(os.getpid())[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert lrkit("export", checkpoint, "-o", tmp_path / "own", *RTX, *LIMITS) == 2
    thread.join()
    assert "ended by signal SIGKILL" in capsys.readouterr().err
    assert_whole_without_engines(tmp_path / "own")


@on_linux
@pytest.mark.slow
def test_an_engine_that_does_not_fit_on_the_disk_leaves_the_bundle(checkpoint, tmp_path):
    """By a limit on the size of files, which an engine of 20 MB is above and the program is not."""
    program = (
        "import resource, sys\n"
        "from lrkit.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "export", str(checkpoint), "-o", str(tmp_path / "own"), *RTX, *LIMITS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "is larger than the system allows (ulimit -f); raise the limit" in last, done.stderr
    assert "Traceback" not in done.stderr
    assert_whole_without_engines(tmp_path / "own")
    command[2] = program.replace("5_000_000", "50_000")
    command[command.index("-o") + 1] = str(tmp_path / "none")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "(ulimit -f); raise the limit" in done.stderr.strip().splitlines()[-1], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
