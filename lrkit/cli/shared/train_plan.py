"""`lrkit train --plan`: the tables of a plan, and what it rests on.

Place in the pipeline: lrkit/train/plan/plan.py -> `show_plan`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrkit.cli.shared.console import beside_json
from lrkit.cli.shared.tables import write_json

_PARTS = {
    "weights": "weights",
    "masters": "their float32 numbers",
    "gradients": "gradients, summed",
    "arriving": "gradients of one batch",
    "optimizer": "optimizer's means",
    "copies": "copies of weights in bfloat16",
    "prompt": "kept of the prompt",
    "latents": "kept of latent steps and their keys",
    "speech": "kept of the speech",
    "tower": "vision tower",
    "logits": "logits",
    "pictures": "pictures of batches",
    "communication": "gradients on their way between devices",
    "tables": "gradients of head and embedding, added up",
    "scratch": "matrices as kernels lay them out",
    "runtime": "CUDA and its libraries",
}


_WAYS = {
    "whole": "whole on every device (DDP)",
    "parts": "in parts (shard: true)",
    "sharded": "sharded, FSDP (not offered)",
}
_TOKENS = ("text", "pictures", "latents", "speech")


def run_plan(
    recipe: Any, device: str | None, counts: tuple[int, int], assume: list[str], json_file: Path | None
) -> None:
    """Plans, prints, writes; then refuses a run that does not fit on the device that was named. `counts`: devices of a
    machine, and machines.

    Raises:
        UserError: see `plan_training`, `refuse_unfit`.
    """
    from lrkit.config import load_config
    from lrkit.train.plan.plan import plan_training, refuse_unfit
    from lrkit.train.plan.timing import Assumptions

    assumed = load_config(Assumptions, {}, assume, label="--assume")
    report = plan_training(recipe, device, counts[0], assumed, counts[1])
    write_json(json_file, report)
    show_plan(report, beside_json(json_file))
    refuse_unfit(report)


def show_plan(report: dict[str, Any], console: Console) -> None:
    """Tables of parameters, memory, stages and devices, and the assumptions in words."""
    console.print("A plan: nothing was run or measured; every figure is an estimate.")
    console.print(f"model: {report['model']['from']}; samples: {report['data_from']}; {report['precision']}")
    if report["shard"]:
        console.print(_parts(report))
    for table in (_parameters(report), _memory(report), _stages(report)):
        console.print(table)
    if report["devices"] > 1:
        console.print(_sending(report))
    if "by_device" in report:
        console.print(_devices(report))
    for line in _words(report):
        console.print(line)


def _parts(report: dict[str, Any]) -> str:
    """How many devices share out what trains."""
    if report["devices"] == 1:
        return "shard: true, and one device, which keeps all; --devices and --machines say how many share"
    count = f"{report['devices']:,}"
    return f"shard: true on {count} devices (--devices, --machines): each keeps 1/{count} of what the optimizer needs"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _parameters(report: dict[str, Any]) -> Table:
    values = report["parameters"]
    table = _table(f"{report['recipe']}: parameters", "group", "all", "trained")
    for name, count in values["by_group"].items():
        table.add_row(name, f"{count:,}", f"{values['trained_by_group'].get(name, 0):,}")
    table.add_row("together", f"{values['total']:,}", f"{values['trained']:,}")
    return table


def _memory(report: dict[str, Any]) -> Table:
    values = report["memory"]
    table = _table(f"memory of one device at its most, in stage {values['stage']}", "part", "GB")
    for name, words in _PARTS.items():
        if values[name]:
            table.add_row(words, _gb(values[name]))
    table.add_row("at most at once", _gb(values["total"]))
    if values["device_bytes"] is not None:
        table.add_row(f"{report['device']['name']} has", _gb(values["device_bytes"]))
        table.add_row("headroom", _gb(values["headroom"]))
    table.add_row("with gradient_checkpointing: true", _gb(values["with_gradient_checkpointing"]))
    if report["devices"] > 1:
        if report["shard"]:
            table.add_row("with shard: false", _gb(values["without_shard"]))
        elif values["with_shard"] is not None:
            table.add_row("with shard: true", _gb(values["with_shard"]))
        table.add_row("with sharded weights, FSDP (not offered)", _gb(values["with_sharding"]))
    return table


def _stages(report: dict[str, Any]) -> Table:
    several = "" if report["devices"] == 1 else "s"
    where = f" in {report['machines']} machines" if report["machines"] > 1 else ""
    table = _table(
        f"{report['devices']} device{several}{where}; tokens are means of a sample: text+pictures+latents+speech",
        "stage", "updates", "samples each", "tokens", "TFLOP", "time in all",
    )  # fmt: skip
    for stage in report["stages"]:
        tokens = "+".join(f"{stage['tokens_per_sample'][name]:.0f}" for name in _TOKENS)
        table.add_row(
            stage["name"], f"{stage['updates']:,}", f"{stage['samples_per_update']:,}", tokens,
            _tera(stage["flops_per_update"]), _time(stage["sec"]),
        )  # fmt: skip
    total = report["total"]
    table.add_row("together", f"{total['updates']:,}", "", "", _tera(total["flops"]), _time(total["sec"]))
    return table


def _sending(report: dict[str, Any]) -> Table:
    """What crosses between devices for one update, and how much of the update waits for it."""
    table = _table(
        "sent for one update, and what of the update that is", "weights",
        "a device in its machine, GB", "a machine to others, GB", *(stage["name"] for stage in report["stages"]),
    )  # fmt: skip
    for way, words in _WAYS.items():
        sent = report["communication"][way]
        shares = [_percents(stage.get(way, {}).get("communication_share")) for stage in report["stages"]]
        table.add_row(words, _gb(sent["within"]), _gb(sent["between"]), *shares)
    return table


def _percents(span: list[float] | None) -> str:
    return "unknown" if span is None else f"{span[0]:.1%}-{span[1]:.1%}"


def _devices(report: dict[str, Any]) -> Table:
    table = _table("by datasheet, one device of each", "device", "memory, GB", "fits", "time in all")
    fits = {True: "yes", False: "no", None: "unknown"}
    for row in report["by_device"]:
        held = "buyer's choice" if row["memory_gb"] is None else f"{row['memory_gb']:.0f}"
        table.add_row(row["name"], held, fits[row["fits"]], _time(row["sec"]))
    return table


def _words(report: dict[str, Any]) -> Iterator[str]:
    assumed = report["assumed"]
    (low, high), (quick, slow) = assumed["utilisation"], assumed["launch_usec"]
    yield (
        f"assumed: {low:.0%} to {high:.0%} of the datasheet's arithmetic and bandwidth are reached; a pass through "
        f"a layer is {assumed['kernels_of_a_pass']} kernels, each of {quick:g} to {slow:g} microseconds at least"
    )
    if report["devices"] > 1:
        yield from _links(report, assumed)
    if (data := assumed["data"]) is not None:
        width, height = data["picture"]
        yield (
            f"assumed of a sample: {data['pictures']:g} pictures of {width} x {height}, {data['question_tokens']} "
            f"tokens of question, {data['steps']} steps of {data['step_tokens']} tokens, {data['answer_tokens']} of "
            f"answer; {data['samples']:,} samples (--assume data.samples=... changes them)"
        )
    yield f"not counted: {'; '.join(report['not_counted'])}"


def _links(report: dict[str, Any], assumed: dict[str, Any]) -> Iterator[str]:
    if (link := assumed["link_gb_per_sec"]) is not None:
        yield f"assumed: {link[0]:g} to {link[1]:g} GB a second between devices of a machine"
    if report["machines"] > 1:
        slow, fast = assumed["network_gb_per_sec"]
        yield f"assumed: {slow:g} to {fast:g} GB a second between machines"
    yield "assumed: at best, what is sent hides behind the computation; at worst, nothing of it does"


def _gb(count: float) -> str:
    return f"{count / 1e9:,.3f}" if abs(count) < 1e9 else f"{count / 1e9:,.1f}"


def _tera(count: float) -> str:
    value = count / 1e12
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(span: list[float] | None) -> str:
    if span is None:
        return "unknown"
    unit, size = next(((u, s) for u, s in (("days", 86400), ("h", 3600), ("min", 60)) if span[1] >= 2 * s), ("s", 1))
    return f"{span[0] / size:.3g}-{span[1] / size:.3g} {unit}"
