"""Runs one build of an engine in a process of its own.

Place in the pipeline: jobs.py -> `build_in_process` -> device/run_builder.py in the child -> device/build_engine.py.

Why a process: nothing in the same process can stop the builder's calls. A crash, or a machine out of memory, must not
take the export along. A process also gives its peak memory, and gives the memory back. Ctrl-C reaches only the parent,
which kills the child. A parent that is killed closes the child's stdin, and then the child ends too.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lrkit.errors import ExportError, FileError, one_line, os_sentence

_SECONDS_TO_END = 10
_LRKIT = Path(__file__).resolve().parents[3]

Sign = Callable[[dict[str, Any]], None]
"""Gets {phase, seconds, bytes} about twice a second; bytes may be None."""


def build_in_process(request: dict[str, Any], sign: Sign) -> dict[str, Any]:
    """Builds the request's one engine; returns what device/build_engine.py's `build` returns. With `parse_only` in the
    request the program is only read.

    Raises:
        ExportError: the package, the parser or the builder refused, or the builder's process died.
        FileError: the engine could not be written.
    """
    with tempfile.TemporaryFile() as errors:
        child = _start(errors)
        seen: dict[str, Any] = {}
        try:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                if not line.endswith("\n"):
                    break  # it was killed while it spoke
                message = json.loads(line)
                if "built" in message:
                    return message["built"]
                if "error" in message:
                    raise ExportError(message["error"])
                if "system" in message:
                    number, text, file = message["system"]
                    raise FileError(os_sentence(OSError(number, text, file)))
                seen = message
                sign(message)
            # Its stdout has ended without a result, so it is ending too: how, it shall say itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_SECONDS_TO_END)
        except BrokenPipeError:
            pass  # it died before it read the request
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                _close(pipe)
        raise ExportError(_death(child.returncode, seen, errors))


def _start(errors: IO[bytes]) -> "subprocess.Popen[str]":
    # -P: no module of the working folder may stand in for NVIDIA's.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lrkit.export.tensorrt.device.run_builder"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", env=child_environment(),
        start_new_session=True,  # Ctrl-C goes to the whole group of a terminal: the child is in another
    )  # fmt: skip


def child_environment() -> dict[str, str]:
    """That of a child that imports lrkit, which may be a checkout found by its path."""
    path = os.pathsep.join([str(_LRKIT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def _close(pipe: IO[str] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        pass  # what was not sent to a dead child


def _death(code: int, seen: dict[str, Any], errors: IO[bytes]) -> str:
    """Why a child ended without a result."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    last = f"; its last words: {one_line(lines[-1])}" if lines else ""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    held = f", holding {seen['bytes'] / 1e9:.1f} GB" if seen.get("bytes") else ""
    hint = "; the system kills a process so when memory runs out" if code == -9 else ""
    return f"the builder's process ended by {how} after {seen.get('seconds', 0):.0f} s{held}{last}{hint}"
