"""Ablations before their first run trains: what cannot be run, and results in the folder that are of another sweep."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import depth, routed_depth
from lrkit.errors import ConfigError, FileError, UserError
from lrkit.resources import find_recipe, find_sweep, resolve_checkpoint
from lrkit.train.ablate import Run, Sweep, load_sweep, run_one, run_sweep
from lrkit.train.recipe import as_written, load_recipe
from tests.ledger_base import write_ledger_base


def sweep(tmp_path: Path, *overrides: str) -> Sweep:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: two\nrecipe: smoke\nvariants: {with: [], without: [model.routing.depth=0]}\nseeds: [0, 3]\n"
        "sets: ['trail:main']\nsamples: 4\n"
    )
    return load_sweep(file, overrides)


def write_result(asked: Sweep, folder: Path, **changes: object) -> Run:
    """The result of the variant `with` under seed 3, as a run leaves it."""
    run = Run(asked, "with", 3, folder / "with-3")
    run.folder.mkdir(parents=True)
    result = {
        "variant": "with",
        "seed": 3,
        "overrides": ["seed=3"],
        "recipe": as_written(load_recipe(find_recipe("smoke"), run.overrides)),
        "mode": "latent",
        "samples": 4,
        "sets": {"trail:main": {"accuracy": 0.5}},
    }
    (run.folder / "result.json").write_text(json.dumps(result | changes))
    return run


def test_a_result_that_is_there_is_not_made_again(tmp_path):
    run = write_result(sweep(tmp_path), tmp_path / "runs")
    assert run_one(run)["sets"] == {"trail:main": {"accuracy": 0.5}}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["samples=8"], "samples: was 4, is 8"),
        (["common=[optimizer.lr=0.5]"], "overrides"),
        (["mode=cot"], "mode: was 'latent', is 'cot'"),
        (["sets=['trail:main', 'trail:long']"], "sets: are not trail:main, trail:long"),
    ],
)
def test_results_of_another_sweep_are_refused_before_anything_is_trained(tmp_path, overrides, says):
    """They were put into the new table, as if its variants had been trained so."""
    write_result(sweep(tmp_path), tmp_path / "runs")
    with pytest.raises(UserError, match="is the result of another sweep") as caught:
        run_sweep(sweep(tmp_path, *overrides), tmp_path / "runs")
    assert says in str(caught.value)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["with-3"]


def test_a_damaged_result_is_one_sentence(tmp_path):
    run = write_result(sweep(tmp_path), tmp_path / "runs")
    (run.folder / "result.json").write_text('{"sets": ')
    with pytest.raises(UserError, match=r"result\.json: is not valid JSON"):
        run_sweep(run.sweep, tmp_path / "runs")


def test_what_no_run_can_do_is_told_of_all_variants_together(tmp_path):
    variants = "variants={one: [optimizer.lr=-1], two: [model.nothing=3], three: []}"
    with pytest.raises(UserError) as caught:
        run_sweep(sweep(tmp_path, variants), tmp_path / "runs")
    told = str(caught.value)
    assert "variant one: " in told and "variant two: " in told and "variant three" not in told
    with pytest.raises(UserError, match="unknown sample set"):
        run_sweep(sweep(tmp_path, "sets=['trail:nowhere']"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seeds=[1, 1]", "name one of them twice"),
        ("seeds=[]", "seeds"),
        ("seeds=[-1]", "seeds"),
        ("sets=['trail:main', 'trail:main']", "name one of them twice"),
        ("variants={'../out': []}", "variants"),
        ("name='a/b'", "name"),
    ],
)
def test_values_that_would_collide_or_leave_the_folder_are_refused(tmp_path, override, says):
    """Two runs of one seed would train in one folder."""
    with pytest.raises(ConfigError, match=says):
        sweep(tmp_path, override)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match="file"):
        run_sweep(sweep(tmp_path), tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    "name",
    ["trail-ablation", "trail-options", "trail-depth", "trail-look-ups", "trail-replay-depth", "ledger-ablation"],
)
def test_shipped_sweeps_can_be_read(name):
    assert load_sweep(find_sweep(name)).variants


def test_variants_may_be_asked_in_a_mode_of_their_own(tmp_path):
    asked = sweep(tmp_path, "modes={without: cot}")
    assert [Run(asked, name, 0, tmp_path).mode for name in asked.variants] == ["latent", "cot"]
    with pytest.raises(ConfigError, match=r"modes names nobody, and the variants are with, without"):
        sweep(tmp_path, "modes={nobody: cot}")


def test_a_sweep_may_ask_for_some_lengths_alone(tmp_path):
    """What was trained on trails of two hops is not asked for eight."""
    asked = sweep(tmp_path, "lengths=[2, 3]", "samples=16")
    with pytest.raises(UserError, match="is the result of another sweep"):
        run_one(write_result(asked, tmp_path / "runs", samples=16))
    assert run_one(write_result(asked, tmp_path / "more", samples=16, lengths=[2, 3]))["samples"] == 16
    with pytest.raises(UserError, match=r"no sample of trail:main has 9 steps, but 1, 2, 3, 4; change lengths"):
        run_sweep(sweep(tmp_path, "lengths=[9]"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_a_sceptic_asks_for_is_trained_on_equal_batches():
    """The stages draw the same samples in the same order; only what is thought and said differs."""
    asked = load_sweep(find_sweep("trail-sceptic"))
    recipes = [as_written(load_recipe(find_recipe(asked.recipe), Run(asked, name, 0, Path()).overrides))
               for name in asked.variants]  # fmt: skip
    for recipe in recipes:
        recipe["model"].pop("think")
        for stage in recipe["stages"][1:]:
            stage.pop("latent_steps", None), stage.pop("spoken_steps", None)
    assert len(recipes) == 6 and all(recipe == recipes[0] for recipe in recipes)
    # A baseline for the mode would be asked in place of what was trained.
    assert recipes[0]["baselines"] == {}


@pytest.mark.long
def test_a_sweep_of_a_sceptic_runs(tmp_path):
    """One update each of all latents at once, and of words asked in their own mode."""
    budget = [f"stages.{stage}.updates={int(stage == 5)}" for stage in range(1, 6)]
    common = [*budget, "stages.5.batch_size=2", "stages.5.rehearse=[words]", "eval.samples=0", "baselines={}"]
    asked = load_sweep(find_sweep("trail-sceptic"), ["seeds=[0]", "samples=4", f"common={json.dumps(common)}"])
    few = asked.model_copy(update={"variants": {name: asked.variants[name] for name in ("terse", "parallel")}})
    table = run_sweep(few.model_copy(update={"modes": {"terse": "cot"}}), tmp_path / "runs")
    made = {run["variant"]: run for run in table["runs"]}
    assert {name: run["mode"] for name, run in made.items()} == {"terse": "cot", "parallel": "latent"}
    found = {name: run["sets"]["trail:main"] for name, run in made.items()}
    assert found["terse"]["latent_steps_mean"] == 0 and found["parallel"]["latent_steps_mean"] == 9


@pytest.mark.long
def test_a_sweep_of_depth_runs_and_its_passes_are_counted(tmp_path):
    """One update of each variant: routing alone takes extra passes, and a table shows how many."""
    asked = load_sweep(find_sweep("trail-depth"))
    common = [*asked.common, *(f"stages.{stage}.updates={int(stage == 5)}" for stage in range(1, 6))]
    common += ["stages.5.batch_size=2", "stages.5.rehearse=[words]"]
    variants = {"base": (), "few": (*asked.variants["rds"], "model.routing.alpha=4")}
    few = asked.model_copy(update={"common": tuple(common), "variants": variants, "samples": 8, "seeds": (1,)})
    table = run_sweep(few, tmp_path / "runs")
    shown = {row[0]: row for row in depth.rows(table)}
    assert len(depth.HEAD) == len(shown["few"]) == len(shown["base"])
    assert shown["base"][-1] == "0" and int(shown["few"][-1]) >= 4 * 2 * 2, "4 tokens, two parts, two layers"
    report = routed_depth.measure([str(tmp_path / "runs" / "few-1")], "trail:main", 2, "latent", [0.9])
    passes = {row["way"]: row["extra_passes"]["mean"] for row in report["rows"]}
    assert passes["no routing"] == 0 < passes["random tokens"] and passes["threshold 0.9"] < passes["as trained"]
    assert passes["as trained"] < passes["all tokens"] and routed_depth.render(report).count("\n| ") == 7


@pytest.mark.long
def test_the_sweeps_that_ask_for_depth_run(tmp_path):
    """One update of each: step encodings have moved by their own rate, and only what was trained is asked."""
    few = {
        "trail-look-ups": [
            "stages.0.updates=1",
            "batch_size=2",
            "eval.every=0",
            "eval.samples=0",
            "optimizer.warmup=0",
        ],
        "trail-replay-depth": [*(f"stages.{i}.updates={int(i == 5)}" for i in range(1, 6)), "stages.5.batch_size=2"],
    }
    for name, more in few.items():
        asked = load_sweep(find_sweep(name), ["samples=8", "seeds=[3]"])
        folder = tmp_path / name
        table = run_sweep(asked.model_copy(update={"common": (*asked.common, *more)}), folder)
        for run in table["runs"]:
            (found,) = run["sets"].values()
            assert found["samples"] == len(asked.lengths) and list(map(int, found["accuracy_by_steps"])) == list(
                asked.lengths
            )
            assert bool(sum(found["routed_depths_mean"])) == bool(run["recipe"]["model"].get("routing"))
    moved = load_file(resolve_checkpoint(tmp_path / "trail-look-ups" / "rds-3") / "lrkit.safetensors")
    assert moved["routers.0.step_encoding_RD"].abs().max() == pytest.approx(20 * 2e-3, rel=1e-3)


@pytest.mark.long
def test_the_sweep_on_ledgers_runs(tmp_path):
    """One update a stage, on a base of a few thousand weights; replay and routing are where a variant has them."""
    base = write_ledger_base(tmp_path / "base")
    few = [f"init={base}", "batch_size=2", *(f"stages.{i}.updates=1" for i in range(1, 3))]
    asked = load_sweep(find_sweep("ledger-ablation"), ["samples=6", "seeds=[0]", "sets=[ledger:main]"])
    table = run_sweep(asked.model_copy(update={"common": (*asked.common, *few)}), tmp_path / "runs")
    assert {run["variant"] for run in table["runs"]} == {"base", "rds", "scf", "both"}
    for run in table["runs"]:
        model = run["recipe"]["model"]
        assert bool(model.get("routing")) == (run["variant"] in ("rds", "both"))
        assert (model["replay"]["num_tokens"] > 0) == (run["variant"] in ("scf", "both"))
        assert run["sets"]["ledger:main"]["samples"] == 6
