"""`trainable: tower`: the vision tower learns alone, and its checkpoint holds it in place of the base's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lrkit.data.sources import load_samples
from lrkit.errors import ConfigError
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import load_checkpoint
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.train import run
from lrkit.train.recipe import Recipe, load_recipe
from lrkit.train.vision import VisionObjective, collate_vision

LOOK = {
    "name": "look",
    "objective": "vision",
    "readouts": {"token_digits": {"classes": 10, "tied": True, "pull": 1.0}},
    "updates": 2,
}


def recipe(**changes: object) -> Recipe:
    values = {
        "name": "tower",
        "init": "tiny/base",
        "trainable": "tower",
        "batch_size": 4,
        "eval": {"samples": 4, "batch_size": 4, "show": 0, "max_new_tokens": 8},
        "stages": [LOOK, {"name": "say", "tasks": {"brief": 1.0}, "lengths": [1], "updates": 2}],
    }
    return load_recipe({**values, **changes})


def test_the_tower_learns_alone_and_the_base_stays_where_it_is(tmp_path: Path):
    folder = run.train(recipe(), tmp_path / "run", quiet=True)
    base = load_checkpoint(resolve_checkpoint("tiny/base")).reasoner.model.state_dict()
    trained = load_checkpoint(folder)
    changed = {name for name, now in trained.reasoner.model.state_dict().items() if not torch.equal(now, base[name])}
    assert changed and all("visual" in name for name in changed)
    assert changed <= set(trained.checked.replaced)
    assert not (folder / "model.safetensors").exists()  # a few megabytes, however large the language model

    with safe_open(folder / "lrkit.safetensors", "numpy") as file:
        assert any("visual" in name for name in list(file.keys()))


def test_an_adapter_on_such_a_checkpoint_keeps_the_tower(tmp_path: Path):
    tower = run.train(recipe(stages=[LOOK]), tmp_path / "tower", quiet=True)
    stages = [{"name": "say", "tasks": {"brief": 1.0}, "lengths": [1], "updates": 1}]
    adapted = run.train(recipe(init=str(tower), trainable="lora", stages=stages), tmp_path / "adapter", quiet=True)
    before, after = (load_checkpoint(folder).reasoner.model.state_dict() for folder in (tower, adapted))
    assert all(torch.equal(after[name], value) for name, value in before.items() if "visual" in name)


def test_the_pull_is_the_squared_distance_as_a_share_of_the_words_square():
    processor = Processor.from_folder(resolve_checkpoint("tiny/base"))
    reasoner = load_checkpoint(resolve_checkpoint("tiny/base")).reasoner
    asked = recipe(stages=[LOOK])
    samples = load_samples("trail:main", 2)
    batch = collate_vision(processor, samples, ["token_digits"])
    losses = [
        float(VisionObjective(reasoner, processor, readouts, 0, asked.data.label_words)(batch).total)
        for pull in (0.0, 1.0)
        for readouts in [{"token_digits": asked.stages[0].readouts["token_digits"].model_copy(update={"pull": pull})}]
    ]
    backbone = reasoner.backbone
    rows = backbone.embedding_rows()[[processor.tokenizer.token_to_id(str(digit)) for digit in range(10)]]
    tokens = backbone.encode_images(batch.pixel_values, batch.grids)
    labels = batch.labels["token_digits"]
    off = (tokens - rows[labels]).square().sum(-1)[labels >= 0] / rows[labels[labels >= 0]].square().sum(-1).mean()
    assert losses[1] - losses[0] == pytest.approx(float(off.detach().mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": {"num_layers": 2}, "stages": [LOOK]}, "trainable: tower on random weights learns nothing"),
        ({"trainable": "lora", "stages": [LOOK]}, "objective vision trains the vision tower; set trainable: full or"),
        ({"stages": [{**LOOK, "tasks": {"reed": 1.0}}]}, r"tasks: 'reed' is none of the data's.*did you mean 'read'"),
        (
            {"stages": [{**LOOK, "readouts": {"token_digits": {"classes": 40, "tied": True}}}]},
            "tied needs a word for each class, and 12 of its classes have one",
        ),
        (
            {"stages": [{**LOOK, "readouts": {"token_digits": {"classes": 10, "pull": 1.0}}}]},
            "pull needs the words of tied: true",
        ),
    ],
)  # fmt: skip
def test_recipes_that_ask_too_much_of_a_tower(changes: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        recipe(**changes)


def test_nothing_but_the_tower_wants_a_gradient():
    loaded = load_checkpoint(resolve_checkpoint("tiny/base"))
    reasoner = build_reasoner(
        loaded.reasoner.backbone, loaded.reasoner.settings, loaded.checked.latent_id, None, "tower"
    )
    trained = [name for name, weight in reasoner.named_parameters() if weight.requires_grad]
    assert trained and all("visual" in name for name in trained)
    assert sum(np.prod(dict(reasoner.named_parameters())[name].shape) for name in trained) < 200_000
