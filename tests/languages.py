"""The examples in other languages as commands, for tests: each takes BUNDLE PICTURE QUESTION [MODE].

Node.js runs where npm has installed its packages. C++ and Java take ONNX Runtime from where a variable says.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = list[str]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NODE = EXAMPLES / "node"


def run(command: Command, where: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=600)


def succeed(command: Command, where: Path) -> None:
    done = run(command, where)
    assert done.returncode == 0, done.stdout + done.stderr


def node(_: Path) -> Command:
    """The interpreter, with the packages of the example beside it."""
    found = _program("node")
    if not (NODE / "node_modules").is_dir():
        if os.environ.get("LRKIT_NODE") != "1":
            pytest.skip("examples/node has no node_modules; LRKIT_NODE=1 lets this test call npm install")
        succeed(["npm", "install", "--no-audit", "--no-fund"], NODE)
    return [found, str(NODE / "ask.mjs")]


def cpp(folder: Path) -> Command:
    """Built into `folder` with the ONNX Runtime that LRKIT_ORT_ROOT names, or one that apt and npm bring."""
    given = os.environ.get("LRKIT_ORT_ROOT")
    if given is None and os.environ.get("LRKIT_CPP") != "1":
        pytest.skip(
            "LRKIT_ORT_ROOT is not set; it names an unpacked release of ONNX Runtime (include/, lib/), and LRKIT_CPP=1 "
            "lets this test fetch libonnxruntime-dev by apt and the library by npm"
        )
    _program("cmake")
    root = Path(given) if given is not None else _fetched(folder / "onnxruntime")
    build = folder / "build"
    strict = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"
    succeed(["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(build), f"-DONNXRUNTIME_ROOT={root}", strict], folder)
    succeed(["cmake", "--build", str(build)], folder)
    return [str(build / "ask")]


def java(folder: Path) -> Command:
    """Compiled into `folder`."""
    path = os.environ.get("LRKIT_ORT_JAVA")
    if path is None:
        pytest.skip(
            "LRKIT_ORT_JAVA is not set; it is a class path with ONNX Runtime and Jackson: in examples/java call "
            "mvn dependency:copy-dependencies, then set it to examples/java/target/dependency/*"
        )
    sources = sorted(str(source) for source in (EXAMPLES / "java").glob("*.java"))
    succeed([_program("javac"), "-Xlint:all", "-Werror", "-cp", path, "-d", str(folder), *sources], folder)
    return [_program("java"), "-cp", os.pathsep.join([path, str(folder)]), "Ask"]


LANGUAGES: dict[str, Callable[[Path], Command]] = {"node": node, "cpp": cpp, "java": java}


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _fetched(root: Path) -> Path:
    """Headers out of Debian's package and the library of npm's: its C interface takes older headers."""
    node(root)
    root.mkdir()
    succeed(["apt-get", "download", "libonnxruntime-dev"], root)
    (package,) = root.glob("*.deb")
    succeed(["dpkg", "-x", str(package), str(root / "package")], root)
    (root / "include").symlink_to(root / "package" / "usr" / "include")
    (root / "lib").mkdir()
    machine = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    (library,) = NODE.glob(f"node_modules/onnxruntime-node/bin/napi-*/linux/{machine}/libonnxruntime.so.1")
    for name in (library.name, "libonnxruntime.so"):
        (root / "lib" / name).symlink_to(library)
    return root
