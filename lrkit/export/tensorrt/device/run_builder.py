"""Builds TensorRT engines from ONNX files. Needs Python 3.10 and NVIDIA's `tensorrt` (10, 11) or `tensorrt_rtx`.

    python build_engine.py [FOLDER] [--package tensorrt_rtx]

FOLDER holds the .onnx files (default: the folder of this file). Engines are written to FOLDER/engines, with an
engines.json that `lrkit engines BUNDLE --take FOLDER/engines/engines.json` takes into a bundle.

lrkit itself runs this in a process of its own (tensorrt/process.py), told by a line of JSON on stdin, and
`lrkit engines --script` writes it with REQUEST filled in (tensorrt/script.py): what lrkit tests is what a device runs.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrkit.export.tensorrt.device.build_engine import (
    PACKAGES,
    BuildError,
    Package,
    Watch,
    build,
    device_arch,
    load_package,
    read,
    write,
)

REQUEST: dict[str, Any] | None = None
SECONDS_BETWEEN_SIGNS = 0.5

Say = Callable[[dict[str, Any]], None]


def run(request: dict[str, Any], package: Package, folder: Path, job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Builds in a thread, so that Ctrl-C and signs of life are not kept waiting: the build lets other threads run.

    Raises:
        BuildError: as `build`.
    """
    watch, ended = Watch(), threading.Event()
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(build(package, job, request, folder, watch))
        except BaseException as error:
            result.append(error)
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    while not ended.wait(SECONDS_BETWEEN_SIGNS):
        say(watch.sign())
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def child() -> int:
    """Run by lrkit: the request on stdin, signs of life and the result as lines of JSON on stdout."""
    # The libraries print to stdout too: the real one is kept, and theirs goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    # stdin ends when lrkit does, however that happened: nobody waits for this build any more.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    folder, job = Path(request["folder"]), request["jobs"][0]
    try:
        package = load_package(request["packages"])
        if request.get("parse_only"):
            say({"built": {"layers": read(package, folder / job["onnx"])[1].num_layers}})
        else:
            say({"built": run(request, package, folder, job, say)})
    except BuildError as error:
        say({"error": str(error)})
    except OSError as error:
        say({"system": [error.errno, error.strerror or str(error), error.filename]})
    except MemoryError:
        say({"system": [errno.ENOMEM, "out of memory", job["engine"]]})
    os._exit(0)  # without the libraries' own clean-up, which has nothing left to do and may hang


def script(request: dict[str, Any]) -> int:
    """Run by a user: builds all engines of the request, with lines to read."""
    arguments = argparse.ArgumentParser(description="Builds TensorRT engines from lrkit's ONNX programs.")
    arguments.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    arguments.add_argument("--package", choices=sorted(PACKAGES), help="default: the first that is installed")
    given = arguments.parse_args()
    try:
        package = load_package([given.package] if given.package else request["packages"])
        print(f"{package} on {device_arch() or 'a machine without a GPU'}", flush=True)
        engines = [_build_and_tell(request, package, given.folder, job) for job in request["jobs"]]
        content = json.dumps({"schema": 1, "kind": "engines", "engines": engines}, indent=2) + "\n"
        write(given.folder / "engines" / "engines.json", content.encode())
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; check the disk's space and rights", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; no engine was written", file=sys.stderr, flush=True)
        os._exit(130)  # the build goes on in its thread until the process ends
    print(f"wrote {given.folder / 'engines' / 'engines.json'}", flush=True)
    return 0


def _build_and_tell(request: dict[str, Any], package: Package, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    source = folder / job["onnx"]
    if source.is_file() and digest(source) != job["sha256"]:
        raise BuildError(f"{source} is not the file that this script was written for; copy both from one bundle")
    said = [time.monotonic()]

    def say(sign: dict[str, Any]) -> None:
        if time.monotonic() - said[0] > 10:
            said[0] = time.monotonic()
            print(f"  {sign['seconds']:.0f} s, {(sign['bytes'] or 0) / 1e9:.2f} GB: {sign['phase']}", flush=True)

    print(f"building {job['engine']} from {job['onnx']}", flush=True)
    entry = run(request, package, folder, job, say)
    size, peak = (folder / job["engine"]).stat().st_size, (entry["build_peak_bytes"] or 0) / 1e9
    print(
        f"  {size / 1e6:.1f} MB after {entry['build_seconds']:.1f} s, {entry['num_layers']} layers, "
        f"at most {peak:.2f} GB of memory", flush=True,
    )  # fmt: skip
    return {"role": job["role"], "onnx_sha256": job["sha256"], "entry": entry}


if __name__ == "__main__":
    sys.exit(child() if REQUEST is None else script(REQUEST))
