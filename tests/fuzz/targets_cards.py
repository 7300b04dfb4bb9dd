"""Fuzzed: what a model card is written from: a card that is there, reports, what a checkpoint says of itself."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from lrkit.publish.card import is_unfilled_card, write_card
from lrkit.publish.card_facts import facts_of
from tests.fuzz import mutate

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "profiles" / "reports"
_work: list[Path] = []


def prepare(work: Path, bundle: Path) -> None:
    _work[:] = [work / "cards"]
    _work[0].mkdir(exist_ok=True)


@cache
def _told() -> dict[str, Any]:
    return json.loads((ROOT / "lrkit" / "assets" / "tiny" / "latent" / "reasoner.json").read_text())


@cache
def _reports() -> list[dict[str, Any]]:
    """Without the rows of every answer, which the card does not read."""
    found = [json.loads((REPORTS / name).read_text()) for name in ("tiny-eval.json", "tiny-int4-cpu.json")]
    found[1]["runs"], found[1]["examples"] = [], []
    return found


@cache
def _card() -> str:
    """With figures of this model and tags of its own."""
    (_work[0] / "whole.json").write_text(json.dumps(_reports()[0]))
    facts = facts_of("me/rooms", "checkpoint", _told(), _work[0], (_work[0] / "whole.json",), "mit")
    return write_card(facts, "---\ntags: [mine]\nbase_model: [owner/base]\nlibrary_name: peft\n---\n# Mine\n")


def _run_card(text: str) -> None:
    is_unfilled_card(text)
    write_card(facts_of("me/rooms", "checkpoint", _told(), _work[0], (), None), text)


def _run_report(content: bytes) -> None:
    file = _work[0] / "report-of-a-model.json"
    file.write_bytes(content)
    write_card(facts_of("me/rooms", "checkpoint", _told(), _work[0], (file,), None), _card())


def _run_told(told: Any) -> None:
    if isinstance(told, dict):  # as reading it makes sure
        for kind in ("checkpoint", "bundle"):
            write_card(facts_of("me/rooms", kind, told, _work[0], (), None), None)


TARGETS: dict[str, Any] = {
    "card": (3, lambda rng: mutate.text(_card(), rng), _run_card),
    "card-report": (2, lambda rng: mutate.json_file(rng.choice(_reports()), rng), _run_report),
    "card-told": (2, lambda rng: mutate.values(_told(), rng), _run_told),
}
"""Name -> weight, how a case is drawn, what is done with it."""
