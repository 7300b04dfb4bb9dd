"""A training that a scheduler stops, through the command line: the exit code, and how it goes on."""

import json
import signal
from pathlib import Path

import pytest

from lrkit.train.display import Display
from tests.commands import lrkit
from tests.runs import curve, two_stages

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_scheduler_stops_a_run_twice_and_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = two_stages(tmp_path)
    assert lrkit("train", recipe, "-o", tmp_path / "whole") == 0
    advance, waiting = Display.advance, {2: signal.SIGUSR1, 4: signal.SIGTERM}
    count = 0

    def advanced(self: Display, done: int) -> None:
        nonlocal count
        count += 1
        advance(self, done)
        if (number := waiting.pop(count, None)) is not None:
            signal.raise_signal(number)
            signal.raise_signal(number)

    monkeypatch.setattr(Display, "advance", advanced)
    command = ["train", recipe, "-o", tmp_path / "run", "--resume", "auto"]
    assert lrkit(*command) == 75
    assert "stopped in stage say after 2 of 3 updates; the same command with --resume goes on" in " ".join(
        capsys.readouterr().err.split()
    )
    assert lrkit(*command) == 75
    assert lrkit(*command) == 0
    assert curve(tmp_path / "run") == curve(tmp_path / "whole") and not waiting
    assert json.loads((tmp_path / "run" / "run.json").read_text())["done"]
