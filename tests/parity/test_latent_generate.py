"""Latents in plain transformers, held equal to lrkit's engine: a folder as it is published, its `custom_generate`, and
a process that cannot import lrkit.

Tokens, latent steps, why each stopped and what was replayed are compared, question by question. Pictures and prompts
are prepared by transformers there and by lrkit here.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image

from lrkit import Reasoner, load_samples, save_pretrained
from lrkit.contract.generated import Generated
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.protocol import AskOptions
from tests.without_lrkit import ask_without_lrkit

COUNT = 24
MOST = 60
"""Words of the mode cot take half the time of the test where they are not cut."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained("tiny", tmp_path_factory.mktemp("published") / "whole", merge=True)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Hops of every number and pictures of two sizes, so that the samples of a batch stop apart and are padded."""
    place, found = tmp_path_factory.mktemp("pictures"), []
    sets = [load_samples(name, COUNT // 2) for name in ("trail:main", "trail:faint")]
    for number, sample in enumerate(sample for pair in zip(*sets, strict=True) for sample in pair):
        (picture,) = sample.images
        assert isinstance(picture, Image)
        picture.save(place / f"{number}.png")
        found.append({"picture": str(place / f"{number}.png"), "question": sample.question})
    return found


def in_transformers(
    place: Path, questions: Sequence[dict[str, str]], calls: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """What tests/plain_transformers.py says, for each call."""
    asked = {
        "folder": str(place),
        "questions": questions,
        "calls": [{"max_new_tokens": MOST, **call} for call in calls],
    }
    return ask_without_lrkit(asked, place.with_suffix(".asked.json"))


def latents_of(place: Path, **call: Any) -> dict[str, Any]:
    """A call of the function that lies in the folder."""
    return {"custom_generate": str(place), "trust_remote_code": True, **call}


def in_lrkit(reasoner: Reasoner, questions: Sequence[dict[str, str]], **options: Any) -> list[Generated]:
    prompts = [reasoner.processor.encode_prompt([one["picture"]], one["question"]) for one in questions]
    return reasoner.engine.generate(prompts, AskOptions(max_new_tokens=MOST, **options))


def assert_alike(found: Sequence[dict[str, Any]], expected: Sequence[Generated], marker: Sequence[int] = ()) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        replayed = [[index for index in step if index >= 0] for step in one["replayed"][: other.latent_steps]]
        assert one["ids"] == [*marker, *other.token_ids]
        assert (one["latent_steps"], one["halting"]) == (other.latent_steps, other.halting)
        assert replayed == [[token.index for token in step] for step in other.replayed]


def test_the_published_folder_answers_in_plain_transformers_as_lrkit_does(
    whole: Path, questions: list[dict[str, str]]
) -> None:
    """In all modes, in batches and alone, with halting and limits other than the model's own."""
    mine = partial(latents_of, whole)
    calls = [
        mine(mode="latent", batch=8), mine(mode="cot", batch=8), mine(mode="direct", batch=8),
        mine(batch=8, max_latent_steps=2), mine(batch=8, halting="fixed"), mine(batch=1),
        {"batch": 8, "trusted_at_loading": True}, {"batch": 8},
    ]  # fmt: skip
    found = in_transformers(whole, questions, calls)
    reasoner = Reasoner.from_checkpoint("tiny")
    latent = in_lrkit(reasoner, questions)
    assert {answer.latent_steps for answer in latent} == set(range(8)), "questions of every length"
    assert_alike(found[0], latent)
    words = in_lrkit(reasoner, questions, mode="cot")
    assert_alike(found[1], words)
    assert_alike(found[2], in_lrkit(reasoner, questions, mode="direct"), reasoner.processor.answer_prefix_ids)
    assert_alike(found[3], in_lrkit(reasoner, questions, max_latent_steps=2))
    assert_alike(found[4], in_lrkit(reasoner, questions, halting="fixed"))
    assert_alike(found[5], latent)
    assert_alike(found[6], latent)
    assert [one["ids"] for one in found[7]] == [answer.token_ids for answer in words], "plain generate answers in words"


VARIANTS: dict[str, dict[str, Any]] = {
    "several tokens": {"replay": {"num_tokens": 5, "weighting": "softmax"}},
    "all tokens, and then none": {"replay": {"num_tokens": 17, "weighting": "none"}},
    "one mixed token": {"replay": {"num_tokens": 6, "formation": "soft_mix", "positions": "shared"}},
    "no replay, unscaled": {"replay": {"num_tokens": 0}, "think": {"latent_scale": "none"}},
    "learned scale": {"replay": {"num_tokens": 2}, "think": {"latent_scale": "learned"}},
}


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_of_replaying_is_the_same(name: str, tmp_path: Path, questions: list[dict[str, str]]) -> None:
    """Of a model that was not trained so: its latents still have to be the same ones."""
    source = resolve_checkpoint("tiny")
    loaded = load_checkpoint(source)
    settings = loaded.reasoner.settings.model_dump(mode="json")
    changed = {section: {**settings[section], **values} for section, values in VARIANTS[name].items()}
    again = load_checkpoint(source, settings=type(loaded.reasoner.settings).model_validate({**settings, **changed}))
    save_checkpoint(tmp_path / "c", again.reasoner, Processor.from_folder(source), again.base, {})
    whole = save_pretrained(tmp_path / "c", tmp_path / "whole", merge=True)
    (found,) = in_transformers(whole, questions[:8], [latents_of(whole, batch=4, halting="fixed", max_latent_steps=4)])
    reasoner = Reasoner.from_checkpoint(tmp_path / "c")
    assert_alike(found, in_lrkit(reasoner, questions[:8], halting="fixed", max_latent_steps=4))


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("routing", {"depth": 1}, "routed tokens"),
        ("prune", {"after_layer": 1, "keep": 0.5}, "pruned visual tokens"),
        ("replay", {"source": "fine"}, "replay of the full picture"),
        ("think", {"latents": "pause"}, "latents that are not fed back"),
    ],
)
def test_what_the_file_does_not_do_is_refused_by_name(
    section: str, values: dict[str, Any], says: str, whole: Path, tmp_path: Path
) -> None:
    from lrkit.publish.latent_generate import Method

    told = json.loads((whole / "reasoner.json").read_text())
    told["settings"][section] = {**told["settings"].get(section, {}), **values}
    (tmp_path / "reasoner.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=f"{says}.*ask it with lrkit"):
        Method.read(str(tmp_path), {}, None)


@torch.no_grad()
def test_the_published_folder_is_a_checkpoint_of_lrkit_too(whole: Path, questions: list[dict[str, str]]) -> None:
    one, other = Reasoner.from_checkpoint("tiny"), Reasoner.from_checkpoint(whole)
    assert [answer.token_ids for answer in in_lrkit(one, questions)] == [
        answer.token_ids for answer in in_lrkit(other, questions)
    ]
