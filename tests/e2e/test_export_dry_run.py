"""`lrkit export --dry-run`: what would stop an export is said, nothing is written."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lrkit.resources import resolve_checkpoint
from tests.commands import lrkit


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_would_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("export", "tiny", "--int4", "--samples", "2", "--dry-run", "--json", "plan.json") == 0
    said = capsys.readouterr().out
    for part in ("latent (", "cot (", "direct (", "int4", "max_new_tokens 256", "would be written to tiny-cpu-int4"):
        assert part in said
    plan = json.loads(Path("plan.json").read_text())
    assert plan["samples"] == 2 and set(plan["programs"]) == {"latent", "cot", "direct"}
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_without_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("export", "tiny", "--samples", "0", "--allow-unproven", "--no-baselines", "--dry-run") == 0
    assert "cot (" not in capsys.readouterr().out


def _broken(name: str) -> None:
    tiny = resolve_checkpoint("tiny").parent
    for part in ("base", "latent", "cot", "direct"):
        shutil.copytree(tiny / part, Path("mine") / part)
    (Path("mine") / name).unlink()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("Qwen/Qwen3-VL-2B-Instruct",), "put its files into"),
        (("mine/latent",), "cot: has no lrkit.safetensors"),
        (("tiny", "limits.max_prompt_tokens=8"), "8"),
        (("tiny", "-o", "taken"), "taken exists and is no bundle"),
        (("tiny", "--samples", "0"), "--samples is 0"),
    ],
)
def test_what_would_stop_it(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    _broken("cot/lrkit.safetensors")
    Path("taken").mkdir()
    Path("taken", "file").write_text("mine")
    before = sorted(path.as_posix() for path in Path().rglob("*"))
    asked = words if "--samples" in words else (*words, "--samples", "1")
    assert lrkit("export", *asked, "--dry-run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert says in line
    assert sorted(path.as_posix() for path in Path().rglob("*")) == before


@pytest.mark.parametrize("flags", [("--dry-run",), ()])
def test_latents_that_are_taken_at_once_are_refused_first(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run found nothing wrong, and the export was refused only once the tower had been traced."""
    shutil.copytree(resolve_checkpoint("tiny").parent, "mine")
    info = json.loads(Path("mine/latent/reasoner.json").read_text())
    info["settings"]["think"] |= {"latents": "parallel", "halting": "fixed", "max_latent_steps": 2}
    Path("mine/latent/reasoner.json").write_text(json.dumps(info))
    extras = load_file("mine/latent/lrkit.safetensors")
    extras["latent.constant_TD"] = extras["latent.head_row_D"].repeat(2, 1)
    save_file(extras, "mine/latent/lrkit.safetensors")
    assert lrkit("export", "mine/latent", "--samples", "1", *flags) == 2
    assert "a program knows fed_back, pause: train with one of these" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["mine"]
