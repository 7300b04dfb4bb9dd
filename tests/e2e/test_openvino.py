"""OpenVINO through the command line: what it answers, checks and measures, and each wrong input in one sentence."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrkit.runtime.engines.openvino.library import core, load_library
from tests.bundles import CAPACITY, QUESTION, picture
from tests.commands import lrkit

pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')

FEW = ("samples.0.count=2", "max_new_tokens=3", "phase_samples=1", "gallery=1", "repeats=1")
LIMITS = [f"limits.{name}={value}" for name, value in CAPACITY.items()]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "rooms.png"
    picture().save(path)
    return path


def test_it_answers_as_onnxruntime_does_and_keeps_what_it_compiled(
    openvino_bundle: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    kept = f"cache={tmp_path / 'kept'}"
    ways = (["onnxruntime"], ["openvino"], ["openvino", "--engine-option", kept], ["openvino", "--engine-option", kept])
    for way in ways:
        assert lrkit("ask", openvino_bundle, "--image", rooms, "--threads", 1, "--engine", *way, QUESTION) == 0
        said.append(capsys.readouterr().out)
    assert said[0] and said == said[:1] * len(ways)
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.long
def test_preflight_tells_its_bundles_from_others(
    openvino_bundle: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lrkit("preflight", openvino_bundle, "--target", "openvino") == 0
    assert "nothing that openvino would reject was found" in capsys.readouterr().out
    assert lrkit("preflight", bundle, "--target", "openvino") == 2
    assert "openvino would reject" in sentence(capsys)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert ".cpp" not in line and "Traceback" not in line
    return line


WRONG: dict[str, tuple[str, str]] = {
    "no GPU": ("device=GPU", "finds no device 'GPU' here, only CPU"),
    "no NPU": ("device=NPU", "finds no device 'NPU' here, only CPU"),
    "nonsense": ("device=toaster", "finds no device 'toaster' here, only CPU"),
    "below AUTO": ("device=AUTO:NPU", "finds no device 'AUTO:NPU' here, only CPU"),
    "a number": ("device=3", "device"),
    "an option misspelt": ("cahce=x", "cahce"),
    "a precision": ("precision=fp8", "precision"),
    "no thread": ("threads=0", "threads"),
    "half a thread": ("threads=1.5", "threads"),
    "a property": ("properties.NO_SUCH=1", "refuses the property NO_SUCH = 1"),
    "no KEY=VALUE": ("precision", "must look like key.path=value"),
    "a cache that is a file": ("cache={file}", "is no folder"),
    "a cache below a file": ("cache={file}/below", "below"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_one_sentence(
    openvino_bundle: Path, rooms: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option, told = WRONG[case]
    asked = ("ask", openvino_bundle, "--engine", "openvino", "--engine-option", option.format(file=rooms), QUESTION)
    assert lrkit(*asked) == 2
    assert told in sentence(capsys)


def test_a_bundle_of_another_engine_is_one_sentence(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["ask", bundle, QUESTION], ["eval", bundle], ["validate", bundle]):
        assert lrkit(*verb, "--engine", "openvino") == 2, verb
        assert "lrkit export CHECKPOINT --engine openvino" in sentence(capsys)


@pytest.fixture
def without_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where the extra is not installed."""
    load_library.cache_clear()
    core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    yield
    load_library.cache_clear()
    core.cache_clear()


@pytest.mark.usefixtures("without_it")
def test_without_the_extra_it_says_how_to_get_it(
    openvino_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lrkit("ask", openvino_bundle, "--engine", "openvino", QUESTION) == 2
    assert 'pip install "lrkit[openvino]"' in sentence(capsys)
    assert lrkit("export", "tiny", "--engine", "openvino", "--samples", 2, "-o", tmp_path / "new", *LIMITS) == 2
    assert 'pip install "lrkit[openvino]"' in sentence(capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.long
@pytest.mark.parametrize("way", [["--int4"], ["openvino.precision=bf16"]])
def test_from_an_export_to_a_profile(
    way: list[str], rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped model: exported and proven, opened by itself on OpenVINO, evaluated, and profiled beside another."""
    place = tmp_path / "made"
    asked = ("export", "tiny", "--engine", "openvino", "--no-baselines", "--samples", 25, "-o", place, *way)
    assert lrkit(*asked) == 0
    made_for = json.loads((place / "bundle.json").read_text())["made_for"]
    assert made_for["engine"] == "openvino" and made_for["precision"] == ("f32" if way == ["--int4"] else "bf16")
    assert lrkit("validate", place) == lrkit("ask", place, "--image", rooms, QUESTION) == 0
    figures = tmp_path / "figures.json"
    engine = ("--engine", "openvino", "--threads", 1)
    assert lrkit("eval", place, "--samples", 5, "--modes", "latent", *engine, "--json", figures) == 0
    assert "openvino" in figures.read_text()
    profiled = ("profile", place, "--suite", "latency", "-o", tmp_path / "report", *FEW)
    assert lrkit(*profiled, "--engine", "onnxruntime,openvino", "--threads", 1) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [model["engine"] for model in report["models"]] == ["onnxruntime", "openvino"]
