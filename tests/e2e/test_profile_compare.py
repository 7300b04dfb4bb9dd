"""Two sessions on one machine: the same thing is called the same, a mode that was slowed down is found."""

import json
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from lrkit.profile.measure import rounds as loop
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from tests.commands import lrkit

FEW = ("samples.0.count=6", "max_new_tokens=6", "phase_samples=0", "gallery=0")


def session(bundle: Path, folder: Path, repeats: int) -> Path:
    given = ("--runs", "latent,cot", f"repeats={repeats}", "--threads", 1, "-o", folder)
    assert lrkit("profile", bundle, *FEW, *given) == 0
    return folder / "report.json"


def compared(before: Path, after: Path) -> dict[str, Any]:
    file = after.parent / "compared.json"
    assert lrkit("compare", before, after, "--json", file) == 0
    return json.loads(file.read_text())["runs"]


def test_a_deliberately_slowed_mode_is_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = session(bundle, tmp_path / "before", 3)
    generate, late = ProgramEngine.generate, [0.0]

    def slowly(self: ProgramEngine, prompts: Any, options: AskOptions, on_token: Any = None) -> Any:
        late[0] += options.mode == "cot"
        return generate(self, prompts, options, on_token)

    # The clock that answers are timed by goes on by a second with each of them, which no other work can hide.
    clock = SimpleNamespace(perf_counter=lambda: perf_counter() + late[0])
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(ProgramEngine, "generate", slowly)
    found = compared(before, session(bundle, tmp_path / "after", 3))
    assert found["cot"]["verdict"] == "slower" and found["cot"]["latency_ratio"]["low"] > 2
    assert found["latent"]["latency_ratio"]["value"] < found["cot"]["latency_ratio"]["low"]
    assert "| cot | slower |" in capsys.readouterr().out


@pytest.mark.slow
def test_two_sessions_of_the_same_agree_within_what_they_report(bundle: Path, tmp_path: Path) -> None:
    """Marked slow: a machine that begins other work between the sessions is slower, and then it is right to say so."""
    files = [session(bundle, tmp_path / name, 40) for name in ("one", "two")]
    assert {row["verdict"] for row in compared(*files).values()} == {"same"}
