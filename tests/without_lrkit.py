"""Runs tests/plain_transformers.py in a process that cannot import lrkit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("plain_transformers.py")
PROGRAM = (
    "import runpy, sys\n"
    "sys.modules['lrkit'] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def ask_without_lrkit(asked: dict[str, Any], file: Path, **environment: str) -> list[list[dict[str, Any]]]:
    """What is said to each call of `asked`, question by question. `file` is where the process reads it."""
    file.write_text(json.dumps(asked))
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(SCRIPT), str(file)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
