"""`lrkit train --plan`: its report, what it refuses, and that it loads no weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrkit.data.hub.hub_data import HubData
from lrkit.data.ledger.ledger_source import LedgerData
from lrkit.errors import ConfigError, UserError
from lrkit.resources import list_resources
from lrkit.train.plan.opened import shapes_of_hub
from lrkit.train.plan.plan import plan_training, refuse_unfit
from lrkit.train.plan.timing import Assumptions
from lrkit.train.recipe import load_recipe
from tests.commands import lrkit
from tests.ledger_base import write_ledger_base

pytest.importorskip("sklearn")
RECIPES = [
    resource.name
    for resource in list_resources("recipe")
    if not isinstance(load_recipe(resource.path).data, HubData)  # tests/e2e/test_paper_recipes.py plans these
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def ledger_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ledger_base(tmp_path_factory.mktemp("ledger") / "base")


def start_of(name: str, ledger_base: Path) -> list[str]:
    """Recipes whose start is made by hand begin from a checkpoint that is here."""
    recipe = load_recipe(name)
    if not isinstance(recipe.init, str) or not recipe.init.startswith(("runs/", "bases/")):
        return []
    return [f"init={ledger_base if isinstance(recipe.data, LedgerData) else 'tiny/latent'}"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_has_a_plan(name: str, ledger_base: Path) -> None:
    report = plan_training(load_recipe(name, start_of(name, ledger_base)), "h100-sxm", devices=2)
    assert report["measured"] is False and report["memory"]["fits"] is True
    groups = report["parameters"]["trained_by_group"]
    assert 0 < report["parameters"]["trained"] == sum(groups.values()) <= report["parameters"]["total"]
    assert all(stage["updates"] > 0 and stage["flops"] > 0 for stage in report["stages"])
    low, high = report["total"]["sec"]
    assert 0 < low < high and report["total"]["flops"] == sum(stage["flops"] for stage in report["stages"])
    memory = report["memory"]
    assert memory["headroom"] == memory["device_bytes"] - memory["total"] > 0
    assert memory["communication"] == memory["gradients"] == 4 * report["parameters"]["trained"]


def test_the_papers_run_is_planned_without_its_weights() -> None:
    """Qwen2-VL-2B of the hub, read from the shipped shape: its published number of weights, LoRA of rank 64 beside."""
    recipe = load_recipe("m3cot-style", ["data.train=nowhere.jsonl"])
    report = plan_training(recipe, "h100-sxm", devices=16)
    assert "profiles/shapes/qwen2-vl-2b.json" in report["model"]["from"]
    groups = report["parameters"]["by_group"]
    published = sum(groups[name] for name in ("vision", "merger", "embedding", "layers"))
    assert published == 2_208_985_600 and groups["LoRA"] == 73_859_072
    assert report["stages"][0]["samples_per_update"] == 8 * 16, "as the paper's 16 devices, however many there are"
    latents = [stage["tokens_per_sample"]["latents"] for stage in report["stages"]]
    assert latents == [0, 33, 66, 99, 132], "32 replayed tokens and one latent a step"
    assert report["memory"]["with_gradient_checkpointing"] < report["memory"]["total"] / 2
    assert all(name in report["memory"] for name in ("weights", "optimizer", "prompt", "latents", "logits"))


def test_a_plan_follows_what_is_changed() -> None:
    """More samples, more updates; a smaller batch, less memory; more devices, less time for the same updates."""

    def plan(*changes: str, devices: int = 1, assume: dict[str, Any] | None = None) -> dict[str, Any]:
        recipe = load_recipe("m3cot-style", ["data.train=nowhere.jsonl", "init=tiny/base", *changes])
        return plan_training(recipe, "h100-sxm", devices, Assumptions.model_validate(assume or {}))

    base, less = plan(), plan("batch_size=2")
    assert less["memory"]["activations"] == pytest.approx(base["memory"]["activations"] / 4, rel=0.05)
    four = plan(devices=4)["total"]
    assert four["updates"] == base["total"]["updates"]
    assert four["flops"] == pytest.approx(base["total"]["flops"], rel=1e-3)
    assert four["sec"][0] < base["total"]["sec"][0] / 3.5
    shared = plan("accumulate=1", devices=4)["memory"]["activations"]
    assert shared == pytest.approx(base["memory"]["activations"] / 4, rel=0.05), "4 devices share a batch of 8"
    again = plan("gradient_checkpointing=true")["memory"]
    assert base["memory"]["with_gradient_checkpointing"] <= again["total"] < base["memory"]["total"]
    more = plan(assume={"data": {"samples": 20_000}})
    assert more["total"]["updates"] == pytest.approx(2 * base["total"]["updates"], rel=0.01)
    assert plan(assume={"launch_usec": (1.0, 2.0)})["total"]["sec"][1] < base["total"]["sec"][1]
    full = plan("trainable=full")
    assert full["memory"]["optimizer"] == 8 * full["parameters"]["total"]


def test_machines_are_planned_as_so_many_devices_that_are_further_apart() -> None:
    """2 x 8 devices compute as 16 of one machine do; what they send takes longer, most of all of whole weights."""

    def plan(
        *changes: str, devices: int = 8, machines: int = 1, assume: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        recipe = load_recipe("m3cot", list(changes))
        return plan_training(recipe, "h100-sxm", devices, Assumptions.model_validate(assume or {}), machines)

    near, far = plan(devices=16), plan(machines=2)
    assert near["devices"] == far["devices"] == 16 and (near["machines"], far["machines"]) == (1, 2)
    assert near["memory"]["total"] == far["memory"]["total"] and near["total"]["flops"] == far["total"]["flops"]
    assert near["communication"]["whole"]["between"] == 0 < far["communication"]["whole"]["between"]
    gradients = 4 * far["parameters"]["trained"]
    assert far["communication"]["whole"] == {"within": 2 * 7 / 8 * gradients, "between": gradients}
    slow, quick = (plan(machines=2, assume={"network_gb_per_sec": (rate, rate)})["stages"][-1] for rate in (1.0, 100.0))
    assert slow["communication_sec"][1] - quick["communication_sec"][1] == pytest.approx(0.99 * gradients / 1e9)
    assert quick["communication_share"][0] == 0 < slow["communication_share"][0] < slow["communication_share"][1] < 1
    assert far["stages"][0]["sharded"]["communication_share"][1] > far["stages"][0]["communication_share"][1]


def test_all_weights_of_7b_fit_in_parts_alone() -> None:
    """Every device holds all weights, their gradients and two means of each: more than any card has. In parts it fits;
    an adapter fits as it is."""
    adapter = plan_training(load_recipe("m3cot"), "h100-sxm", 8)
    assert adapter["memory"]["fits"] is True
    changes = ["trainable=full", "gradient_checkpointing=true"]
    full = load_recipe("m3cot", changes)
    for machines in (1, 2):
        report = plan_training(full, "h100-sxm", 8, machines=machines)
        assert report["memory"]["fits"] is False and report["memory"]["fits_sharded"] is True
        assert report["memory"]["fits_in_parts"] is True and report["shard"] is False
        assert report["memory"]["total"] > 16 * report["parameters"]["total"]
        with pytest.raises(UserError, match="would not fit, as every device holds all weights; set shard=true, or set"):
            refuse_unfit(report)
        parts = plan_training(load_recipe("m3cot", [*changes, "shard=true"]), "h100-sxm", 8, machines=machines)
        assert parts["memory"]["total"] == report["memory"]["with_shard"] and parts["memory"]["fits"] is True
        assert parts["memory"]["without_shard"] == report["memory"]["total"]
        assert parts["memory"]["with_sharding"] == report["memory"]["with_sharding"], "FSDP, however the recipe shards"
        sent = parts["communication"]
        assert sent == report["communication"] and sent["parts"]["within"] > sent["whole"]["within"] / 2
        assert parts["stages"][0]["communication_share"] == report["stages"][0]["parts"]["communication_share"]


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(
    ("shard", "precision", "bytes_of_weight"),
    [
        (False, "float32", lambda parts: 20),
        (False, "bfloat16", lambda parts: 20),
        (True, "float32", lambda parts: 8 + 12 / parts),
        (True, "bfloat16", lambda parts: 4 + 16 / parts),
    ],
)
def test_what_a_weight_takes_is_what_the_page_says(
    shard: bool, precision: str, bytes_of_weight: Callable[[int], float], devices: int
) -> None:
    """The table of docs/decisions/sharding.md, for updates of several batches."""
    changes = ["trainable=full", f"shard={str(shard).lower()}", f"precision={precision}", "accumulate=32"]
    report = plan_training(load_recipe("m3cot", changes), "h100-sxm", devices)
    names = ("weights", "masters", "gradients", "arriving", "optimizer", "copies")
    taken = sum(report["memory"][name] for name in names) / report["parameters"]["trained"]
    # Gradients of the tower, 8% of these weights, are handed over as they come.
    assert taken == pytest.approx(bytes_of_weight(devices), rel=0.02)


def test_the_plan_says_how_many_devices_share(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ((), "shard: true, and one device, which keeps all; --devices and --machines say how many share"),
        (("--devices", "2", "--machines", "2"), "shard: true on 4 devices (--devices, --machines): each keeps 1/4 of"),
    ):
        assert lrkit("train", "smoke", "shard=true", "--plan", *words) == 0
        assert said in " ".join(capsys.readouterr().out.split())


PUBLISHED = json.loads((Path(__file__).parents[2] / "profiles/reports/published-plans.json").read_text())


def test_plans_are_as_near_to_what_others_published_as_the_page_says() -> None:
    """Each figure lies in the plan's range, or as far outside as docs/plans.md says, with a reason where it is far."""
    timed = [row for row in PUBLISHED["rows"] if row["tokens_per_sec"]["published"] is not None]
    assert len(PUBLISHED["rows"]) >= 13 and len(timed) >= 11
    for row in PUBLISHED["rows"]:
        for what, factor in (("memory_gb", 1.4), ("tokens_per_sec", 1.15)):
            if (ratio := row[what]["ratio"]) is not None:
                assert 1 / factor < ratio < factor, (row["name"], row["source"], what)
                assert 0.87 < ratio < 1.15 or row["differs"], (row["name"], row["source"], what)
    low, high = Assumptions().utilisation
    for row in timed:
        assert low < row["utilisation"][0] < high * 1.05, "what is assumed is what others reach"
    assert {row["source"] for row in PUBLISHED["rows"]} == set(PUBLISHED["sources"])


def test_fresh_sizes_are_planned_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("train", "smoke", "--plan", "--json", tmp_path / "plan.json") == 0
    said = capsys.readouterr().out
    assert "nothing was run or measured" in said and "random weights" in said and "not counted" in said
    report = json.loads((tmp_path / "plan.json").read_text())
    assert {row["name"] for row in report["by_device"]} == {one.name for one in list_resources("device")}
    assert [stage["name"] for stage in report["stages"]] == ["look", "say", "think"]


def test_a_run_that_does_not_fit_is_refused_with_what_to_change() -> None:
    recipe = load_recipe("m3cot-style", ["data.train=nowhere.jsonl"])
    report = plan_training(recipe, "l4")
    assert report["memory"]["fits"] is False and 0 < report["memory"]["largest_batch"] < 8
    with pytest.raises(UserError, match=r"needs about .* GB in stage .*l4 has 24 GB.*set batch_size="):
        refuse_unfit(report)
    smaller = [f"batch_size={report['memory']['largest_batch']}", "data.train=nowhere.jsonl"]
    assert plan_training(load_recipe("m3cot-style", smaller), "l4")["memory"]["fits"] is True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["smoke", "--plan", "--datasheet", "h100"], "unknown device 'h100'.*h100-sxm"),
        (["smoke", "--plan", "--devices", "0"], "--devices is 0; a run takes 1 device or more"),
        (["smoke", "--plan", "--devices", "-2"], "--devices is -2"),
        (["smoke", "--plan", "--machines", "0"], "--machines is 0; a run takes 1 machine or more"),
        (
            ["smoke", "--plan", "--devices", "60000", "--machines", "2"],
            "2 machines of 60000 devices are 120,000 devices",
        ),
        (["smoke", "--machines", "2"], "--machines belongs to --plan"),
        (["smoke", "--plan", "--resume"], "--plan trains and checks nothing"),
        (["smoke", "--datasheet", "h100-sxm"], "--datasheet belongs to --plan"),
        (["smoke", "--plan", "-o", "nowhere"], "--plan writes no run, so -o has nothing to name; leave it out, or"),
        (["smoke", "--plan", "--assume", "utilisation=[0.6,0.2]"], r"give the smaller one first"),
        (["smoke", "--plan", "--assume", "data.sample=3"], "data.sample.*samples"),
        (["m3cot-style", "init=hub:Nobody/nothing", "--plan"], "Nobody/nothing is not on this machine.*Qwen2-VL-2B"),
        (["m3cot-style", "init=nowhere", "--plan"], "nowhere"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit("train", *arguments) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said) and len(said.strip().splitlines()) == 1


def test_shapes_are_found_by_the_id_of_the_hub() -> None:
    shapes = [resource.name for resource in list_resources("shape")]
    assert sorted(shapes_of_hub().values()) == shapes
    assert shapes_of_hub()["facebook/chameleon-7b"] == "chameleon-7b"


def test_assumptions_are_checked() -> None:
    with pytest.raises(ConfigError, match="utilisation"):
        from lrkit.config import load_config

        load_config(Assumptions, {}, ["utilisation=[0.0,2.0]"])
