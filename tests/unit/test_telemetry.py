"""Nothing is reported by the libraries below: ONNX Runtime leaves no identifier and no queue of events behind."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from lrkit.telemetry import OFF

RUN = """
import sys
if "lrkit" in sys.argv: import lrkit
import onnx, onnxruntime
x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "neg", [x], [y])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
# Where ONNX Runtime finds one of these it takes the machine for a build server, and reports nothing of its own accord.
CI = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "BUILD_ID", "JENKINS_URL", "PYTEST_CURRENT_TEST")


def left_behind(home: Path, *arguments: str, **changed: str) -> list[str]:
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in {*CI, *OFF, "XDG_CACHE_HOME"}}
    environment = {**kept, "HOME": str(home), **changed}
    subprocess.run([sys.executable, "-c", RUN, *arguments], env=environment, check=True, capture_output=True)
    return sorted(path.name for path in home.rglob("*onnxruntime*"))


def test_a_session_leaves_nothing_behind(tmp_path: Path) -> None:
    assert left_behind(tmp_path / "home", "lrkit") == []


@pytest.mark.skipif(Version(version("onnxruntime")) < Version("1.29"), reason="this ONNX Runtime reports nothing")
@pytest.mark.skipif(sys.platform != "linux", reason="files lie elsewhere")
def test_without_lrkit_it_would(tmp_path: Path) -> None:
    """So that the test above can fail; and who wants the reports can have them."""
    assert left_behind(tmp_path / "alone") != []
    assert left_behind(tmp_path / "wanted", "lrkit", ORT_DISABLE_TELEMETRY="0") != []


def test_a_choice_of_the_user_stays() -> None:
    code = "import os, lrkit; print(os.environ['RAY_USAGE_STATS_ENABLED'], os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name not in OFF}
    environment["RAY_USAGE_STATS_ENABLED"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1"]
