"""Plans of `lrkit train --plan` beside what others have published of the same sizes: memory and tokens a second.

    python -m benchmarks.published_plans --json profiles/reports/published-plans.json

Nothing is run. The figures of others, with their sources, are in benchmarks/published_training.yaml. For each row a
plan is made of a language model of its sizes, as lrkit would build and train it, of text alone: one token of prompt and
the rest supervised. Sharded rows take what the plan says of sharded weights, which lrkit does not offer.

A plan is a range. `ratio` is the nearer end of it over the published figure: 1 where the figure lies inside.

Beside them stand plans of the recipe `m3cot` with 7B, on eight H100 and on two machines of eight.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan_tables import published_rows, run_rows
from lrkit.config import load_yaml
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import LrkitError
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.table import DEFAULT, fresh_models
from lrkit.files import check_writable
from lrkit.model.backbone import Backbone
from lrkit.model.open_backbone import backbone_loader
from lrkit.profile.ceilings.devices import load_sheet
from lrkit.train.plan.batches import BatchSizes, StageSizes
from lrkit.train.plan.model import planned_model
from lrkit.train.plan.opened import Opened
from lrkit.train.plan.plan import plan_training
from lrkit.train.plan.planned_run import PlannedRun
from lrkit.train.plan.spread import Spread
from lrkit.train.plan.timing import Assumptions
from lrkit.train.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "published_training.yaml"
WAYS = {"none": (False,), "full": (True,), "selective": (False, True)}
"""Checkpointing of a row -> the plans that bound it: whether layers run once more."""
Report = dict[str, Any]
Span = tuple[float, float]


def backbone_of(sizes: dict[str, int]) -> Backbone:
    """A language model of these sizes without weights, in the default family's class, with the smallest of towers."""
    models = fresh_models(DEFAULT)
    geometry = models.geometry(patch_size=8, merge_size=2, min_pixels=256, max_pixels=65_536, plain=True)
    whole = ModelSizes(
        **sizes, tied_embeddings=False, vision_depth=1, vision_width=16, vision_heads=2, vision_mlp_ratio=2,
        rope_theta=10_000.0,
    )  # fmt: skip
    tokens = ModelTokens(image=5, eos=1, pad=0, unused=4, picture_start=2, picture_end=3)
    with torch.device("meta"):
        return backbone_loader(DEFAULT)(models.model(models.config(whole, geometry, tokens)))


def recipe_of(row: Report, again: bool) -> Recipe:
    """lrkit's own recipe of the paper without latents, replay and routing, at the row's batch."""
    total = row["devices"] * row["machines"]
    return load_recipe(
        "m3cot-style",
        [
            *("data.train=none.jsonl", f"trainable={row['trainable']}", f"batch_size={row['batch']}"),
            *(f"accumulate={row['rounds'] * total}", f"gradient_checkpointing={str(again).lower()}"),
            *("model.distill.weight=0", "model.routing.depth=0", "model.lora.dropout=0"),
            "stages=[{name: say, latent_steps: 0, updates: 100}]",
        ],
    )


def planned(row: Report, sizes: dict[str, int], again: bool) -> PlannedRun:
    """The run that lrkit would make of a row."""
    recipe = recipe_of(row, again)
    settings: ReasonerSettings = recipe.model
    model = planned_model(backbone_of(sizes), recipe, settings, DEFAULT, half=True)
    text = BatchSizes(row["batch"], 1, 0.0, 0.0, 0.0, 0, 0.0, row["sequence"], padded=False)
    stages = [StageSizes(recipe.stages[0], (text,), None, measured=False)]
    opened = Opened(model, stages, 0, "sizes", "assumed", None)
    sheet = load_sheet(row["device"])
    return PlannedRun(recipe, opened, row["device"], sheet, Spread(row["devices"], row["machines"]), Assumptions())


def plan_row(row: Report, sizes: dict[str, int]) -> Report:
    """Memory of a device in GB and its tokens a second, as ranges, beside what was published."""
    memory, seconds, shares, flops = [], [], [], []
    for again in WAYS[row["checkpointing"]]:
        plan = planned(row, sizes, again)
        stage = plan.opened.stages[0]
        part = plan.part(stage.batches[0])
        bytes_needed = plan.sharded_peak(part) if row["sharded"] else plan.peak(part)
        memory.append((bytes_needed + plan.runtime) / 1e9)
        work = plan.work(stage)
        time = plan.time(work, is_sharded=row["sharded"])
        assert time is not None
        seconds += time.update
        shares += time.share
        flops.append(work.flops)
    tokens = row["sequence"] * row["batch"] * row["rounds"]
    found: Report = {name: row[name] for name in ("name", "source", "size", "device", "devices", "machines", "note")}
    found |= {name: row[name] for name in ("trainable", "sharded", "sequence", "batch", "rounds", "checkpointing")}
    found["differs"] = row.get("differs")
    found["waiting_share"] = [min(shares), max(shares)]
    rate = load_sheet(row["device"]).rates.flops_per_sec
    assert rate is not None
    reached = (row.get("tokens_per_sec") or 0) / tokens / rate
    found["utilisation"] = [count * reached for count in (min(flops), max(flops))] if reached else None
    for what, span in (
        ("memory_gb", (min(memory), max(memory))),
        ("tokens_per_sec", (tokens / max(seconds), tokens / min(seconds))),
    ):
        published = row.get(what)
        found[what] = {"plan": list(span), "published": published, "ratio": ratio(span, published)}
    return found


def ratio(span: Span, published: float | None) -> float | None:
    """The nearer end of the plan over what was published; 1 inside; None where nothing was."""
    if published is None:
        return None
    return min(max(span[0], published), span[1]) / published


RUNS = {
    "LoRA": (),
    "LoRA, checkpointing": ("gradient_checkpointing=true",),
    "all weights, checkpointing": ("trainable=full", "gradient_checkpointing=true"),
}
"""How 7B trains -> changes of the recipe `m3cot`."""
NETWORKS = {(8, 1): {"NVLink": None}, (8, 2): {"8 x 400 Gb/s": (160.0, 320.0), "one of 100 Gb/s": (5.0, 10.0)}}
"""Devices of a machine and machines -> what is between machines: 0.4 to 0.8 of its bandwidth."""


def plan_runs() -> list[Report]:
    """The recipe's last stage on H100: memory of a device, seconds of an update, and what of it waits."""
    found: list[Report] = []
    for way, changes in RUNS.items():
        recipe = load_recipe("m3cot", [*changes])
        for (devices, machines), networks in NETWORKS.items():
            for network, gb_per_sec in networks.items():
                assumed = Assumptions() if gb_per_sec is None else Assumptions(network_gb_per_sec=gb_per_sec)
                report = plan_training(recipe, "h100-sxm", devices, assumed, machines)
                memory, stage = report["memory"], report["stages"][-1]
                found.append({
                    "way": way, "devices": devices, "machines": machines, "network": network,
                    "trained": report["parameters"]["trained"], "stage": stage["name"],
                    "memory_gb": memory["total"] / 1e9, "fits": memory["fits"],
                    "sharded_memory_gb": memory["with_sharding"] / 1e9, "fits_sharded": memory["fits_sharded"],
                    "parts_memory_gb": memory["with_shard"] / 1e9, "fits_in_parts": memory["fits_in_parts"],
                    "update_sec": stage["update_sec"], "waiting_share": stage["communication_share"],
                    "sharded": stage["sharded"], "parts": stage["parts"], "sec": report["total"]["sec"],
                })  # fmt: skip
    return found


def plans(most: int | None = None) -> Report:
    """The report of the first rows, or of all."""
    table = load_yaml(TABLE)
    rows = [plan_row(row, table["sizes"][row["size"]]) for row in table["rows"][:most]]
    return {
        "kind": "published-plans", "measured": False, "command": "python -m benchmarks.published_plans",
        "assumed": Assumptions().model_dump(mode="json"), "sources": table["sources"], "rows": rows,
        "runs": plan_runs()[:most],
    }  # fmt: skip


def show(report: Report) -> None:
    """A line a row."""
    for cells in (*published_rows(report), *run_rows(report)):
        print(" | ".join(cells[:9]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="the first two rows: whether it runs")
    options = parser.parse_args()
    try:
        if options.json:
            check_writable(options.json)
    except LrkitError as error:
        parser.error(str(error))
    report = plans(2 if options.smoke else None)
    show(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
