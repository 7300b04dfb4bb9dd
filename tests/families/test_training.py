"""A family is trained by the command line for five updates, goes on after a stop as if there had been none, and is
validated and asked; the loss of what is spoken reaches the prompt through the latents."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit import Reasoner
from lrkit.families.table import read_layout
from lrkit.runtime.encode.processor import Processor
from lrkit.train import keeper
from tests.commands import lrkit
from tests.families.cases import FamilyCase
from tests.families.conftest import pictures_of
from tests.families.reasoners import batch_of, rich_reasoner, sample_of, settings_of
from tests.lab import run_steps
from tests.published import write_drawn_samples
from tests.runs import curve

RECIPE = """
name: family
description: five updates
init: base
trainable: lora
model:
  think: {max_latent_steps: 2, halting: fixed}
  replay: {num_tokens: REPLAY}
  distill: {weight: DISTILL, window: 2}
  routing: {depth: ROUTING, alpha: 4}
  lora: {rank: 4, alpha: 8.0}
data: {kind: jsonl, train: data/samples.jsonl, validation: data/samples.jsonl}
batch_size: 2
eval: {every: 0, samples: 2, batch_size: 2, max_new_tokens: 3, show: 0}
save_every: 1
log_every: 1
stages:
  - {name: say, latent_steps: 0, updates: 2}
  - {name: think, latent_steps: all, updates: 3}
"""


def recipe_of(case: FamilyCase) -> str:
    """With what has no meaning for the family left out."""
    on = {"REPLAY": ("replay", "4"), "DISTILL": ("distill", "1.0"), "ROUTING": ("routing", "1")}
    text = RECIPE
    for word, (part, value) in on.items():
        text = text.replace(word, "0" if part in case.cannot else value)
    return text


@dataclass(frozen=True)
class Home:
    """A working folder in which the family was trained into `run`."""

    case: FamilyCase
    place: Path


@pytest.fixture(scope="module")
def home(case: FamilyCase, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "base").symlink_to(folder)
        write_drawn_samples(place / "data", 4)
        (place / "mine.yaml").write_text(recipe_of(case), encoding="utf-8")
        assert lrkit("train", "mine.yaml", "-o", "run", *case.training) == 0
        yield Home(case, place)


def updates(folder: Path) -> list[dict[str, Any]]:
    """What was logged of each update, but the time it took."""
    kept = [one for one in curve(folder) if one["kind"] == "train"]
    return [{name: value for name, value in one.items() if "sec" not in name} for one in kept]


def test_five_updates_distil_and_a_resumed_run_goes_on_as_if_never_stopped(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = updates(home.place / "run")
    assert len(done) == 5 and all(one["loss"] > 0 for one in done)
    assert all((one["distill"] > 0) is ("distill" not in home.case.cannot) for one in done[2:])
    write, seen = keeper.save_state, list[object]()

    def stop_in_the_second_stage(*given: Any) -> None:
        write(*given)
        seen.append(given)
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(keeper, "save_state", stop_in_the_second_stage)
    assert lrkit("train", "mine.yaml", "-o", "again", *home.case.training) == 130
    monkeypatch.setattr(keeper, "save_state", write)
    assert lrkit("train", "mine.yaml", "-o", "again", "--resume", *home.case.training) == 0
    assert updates(home.place / "again") == done


def test_what_was_trained_is_whole_and_answers(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("validate", "run") == 0
    reasoner = Reasoner.from_checkpoint("run", dtype="float32")
    pictures = pictures_of(home.case, 2)
    answer = reasoner.ask(pictures, home.case.question, max_new_tokens=3)
    assert answer.latent_steps == 2 and answer.spoken_tokens > 0
    assert (answer.replayed_tokens == 8) is ("replay" not in home.case.cannot)
    for region in (region for step in answer.regions for region in step):
        left, top, right, bottom = region.box
        wide, high = pictures[region.image].size
        assert 0 <= left < right <= wide + 1e-6 and 0 <= top < bottom <= high + 1e-6
    capsys.readouterr()
    assert lrkit("ask", "run", "--mode", "cot", "--image", "data/0.png", home.case.question, "--max-new-tokens", 3) == 0
    assert capsys.readouterr().out.strip()


def test_parts_without_a_meaning_are_refused_by_name(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is silently left out."""
    asked = {
        "replay": "model.replay.num_tokens=4",
        "distill": "model.distill.weight=1",
        "routing": "model.routing.depth=1",
    }
    for part, sentence in home.case.cannot.items():
        if part in asked:
            assert lrkit("train", "mine.yaml", "-o", "other", "--dry-run", asked[part]) == 2
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert said.startswith("error: ") and re.search(sentence, said), said


def test_what_is_spoken_reaches_the_prompt_through_every_latent(case: FamilyCase, folder: Path) -> None:
    """In the method's released code the gradient through latents is exactly zero."""
    processor = Processor.from_folder(folder)
    reasoner = rich_reasoner(folder, settings_of(case), processor, "lora")
    batch = batch_of(processor, [sample_of(case, pictures_of(case, 1))], [2])
    steps = run_steps(reasoner, batch)  # pyright: ignore
    assert len(steps.sources) == 2
    for source in steps.sources:
        source.retain_grad()
    torch.nn.functional.cross_entropy(steps.speech_BSW[0, 1:2], batch.speech_ids[0, 1:2]).backward()
    assert all(source.grad is not None and bool(source.grad.any()) for source in steps.sources)
    reached = {
        name: p.grad is not None and bool(p.grad.any()) for name, p in reasoner.named_parameters() if p.requires_grad
    }
    untouched = {name for name, touched in reached.items() if not touched}
    assert all(name.startswith(("token_sr.", "latent.")) for name in untouched), untouched
    assert sum("lora_" in name for name in reached) == 2 * len(read_layout(folder).adapted)


def test_distillation_reaches_what_chooses_and_never_the_tower(case: FamilyCase, folder: Path) -> None:
    if "distill" in case.cannot:
        pytest.skip("there is no distillation")
    processor = Processor.from_folder(folder)
    reasoner = rich_reasoner(folder, settings_of(case), processor, "lora")
    batch = batch_of(processor, [sample_of(case, pictures_of(case, 1))], [2])
    made = reasoner(batch)
    made.distill.backward()
    reached = {name for name, p in reasoner.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("lora_" in name for name in reached) and any(name.startswith("token_sr.") for name in reached)
    parts = {name: reasoner.backbone.part_of(name) for name in reached if name.startswith("model.")}
    assert not {"vision", "merger"} & set(parts.values())
