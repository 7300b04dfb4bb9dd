"""What a million answers cost: in words, with latents, and bare; measured where lrkit has run, else by datasheet.

    python -m benchmarks.answer_costs --json profiles/reports/answer-costs.json
    python -m benchmarks.answer_costs --prices mine.yaml
    python -m benchmarks.answer_costs devices.l4.usd_per_hour=0.9 usd_per_kwh=0.3

Prices, watts and what is assumed are in benchmarks/answer_prices.yaml. Work (bytes and operations of each phase) is
that of measured profiles of a model of 2B with random weights: about a picture of 448 x 448 pixels, four latent steps
with 32 replayed tokens each and seven tokens of answer; 107 tokens in words; or the answer alone.

A phase takes the longer of its bytes by the device's bandwidth and its operations by its arithmetic, and every pass
waits for the host. A batch reads the weights once for all its answers. Measured reports are put through the same sum,
as a check: `ratio` is the nearer end of the estimate over what was measured.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from benchmarks.plan_tables import cost_check_rows, cost_rows
from lrkit.config import Config, load_config
from lrkit.errors import LrkitError, UserError
from lrkit.files import check_writable
from lrkit.profile.ceilings.devices import load_sheet

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "profiles" / "reports"
PRICES = ROOT / "benchmarks" / "answer_prices.yaml"
MODES = {"latent": "latent", "words": "cot", "direct": "direct"}
"""How it answers -> the run of a report."""
WORK = {"int4": "2b-openvino-bundle-cpu", "fp16": "qwen2-vl-2b-gpu"}
"""Number type of the weights -> the report whose work counts."""
MILLION, HOUR, YEAR_HOURS = 1_000_000, 3600.0, 8766.0
_Positive = Annotated[float, Field(gt=0.0, le=1e9)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Some = Annotated[float, Field(ge=0.0, le=1e6)]
Report = dict[str, Any]


class Like(Config):
    """A datasheet for what was measured."""

    sheet: str | None = None
    memory_gb_per_sec: _Positive | None = None
    tflops: _Positive | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.sheet is None and None in (self.memory_gb_per_sec, self.tflops):
            raise ValueError("give a sheet, or memory_gb_per_sec and tflops")
        return self


class Price(Config):
    """What an hour costs: rented, or bought and fed."""

    usd_per_hour: _Positive | None = None
    """Rented, energy and all."""
    usd_to_buy: _Positive | None = None
    years: _Positive | None = None
    """In which what was bought is used up, busy all the time."""
    source: str
    as_of: str
    unconfirmed: str = ""
    """What no page of the seller says."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.usd_per_hour is None) == (self.usd_to_buy is None) or (self.usd_to_buy and self.years is None):
            raise ValueError("give usd_per_hour, or usd_to_buy with years")
        return self

    def per_hour(self, watts: float, usd_per_kwh: float) -> float:
        """Dollars of an hour of work."""
        if self.usd_per_hour is not None:
            return self.usd_per_hour
        assert self.usd_to_buy is not None and self.years is not None
        return self.usd_to_buy / self.years / YEAR_HOURS + watts / 1000 * usd_per_kwh


class Priced(Price):
    """A device by its datasheet."""

    sheet: str


class Measured(Price):
    """A report of `lrkit profile`."""

    report: str
    watts: _Positive
    like: Like


class Waits(Config):
    """Milliseconds that a pass waits for the host."""

    step: tuple[_Some, _Some]
    """One token or latent."""
    prompt: tuple[_Some, _Some]
    """The picture, and the prompt."""


class Prices(Config):
    """All that is not counted."""

    usd_per_kwh: _Some
    memory_share: tuple[_Share, _Share]
    compute_share: tuple[_Share, _Share]
    host_ms: Waits
    batches: tuple[Annotated[int, Field(ge=1, le=4096)], ...]
    devices: dict[str, Priced]
    measured: dict[str, Measured]


@dataclass(frozen=True)
class Phase:
    """One phase of one answer."""

    passes: float
    weight_bytes: float
    """Read once for a batch, however many answers."""
    own_bytes: float
    flops: float
    prompt: bool


@dataclass(frozen=True)
class Rate:
    """A device's datasheet."""

    bytes_per_sec: float
    flops_per_sec: float
    waits: bool


def phases_of(report: Mapping[str, Any], run_id: str) -> list[Phase]:
    """Work of a measured run; the weights of a pass are told apart from what each answer reads for itself."""
    run = next(run for run in report["runs"] if run["id"] == run_id)
    size, summary = report["models"][run["model"]]["weight_bytes"], run["summary"]
    latents = summary["latent_steps"]["mean"] or 0.0
    passes = {"vision": 1.0, "prefill": 1.0, "think": latents, "speak": summary["ar_steps"]["mean"] - latents}
    found: list[Phase] = []
    for name, work in run["ceilings"].items():
        each = size["vision"] if name == "vision" else size["layers"] + size["head"]
        weights = min(work["bytes"], passes[name] * each)
        prompt = name in ("vision", "prefill")
        found.append(Phase(passes[name], weights, work["bytes"] - weights, work["flops"], prompt))
    return found


def seconds(phases: Sequence[Phase], rate: Rate, prices: Prices, batch: int) -> list[float]:
    """Least and most seconds of one answer of a batch."""
    found: list[float] = []
    for end, best in ((0, 1), (1, 0)):
        total = 0.0
        for phase in phases:
            moved = (phase.weight_bytes + batch * phase.own_bytes) / rate.bytes_per_sec / prices.memory_share[best]
            computed = batch * phase.flops / rate.flops_per_sec / prices.compute_share[best]
            host = (prices.host_ms.prompt if phase.prompt else prices.host_ms.step)[end] / 1000 * rate.waits
            total += max(moved, computed) + host * phase.passes
        found.append(total / batch)
    return found


def costs(sec: Sequence[float], usd_per_hour: float, watts: float) -> Report:
    """Of a million answers, one after the other."""
    hours = [one * MILLION / HOUR for one in sec]
    return {
        "sec": list(sec),
        "usd": [one * usd_per_hour for one in hours],
        "kwh": [one * watts / 1000 for one in hours],
    }


def by_datasheet(name: str, priced: Priced, prices: Prices, type_: str, batch: int) -> Report:
    """A device that nothing was run on."""
    rate, sheet = _of_sheet(priced.sheet), load_sheet(priced.sheet)
    if sheet.watts is None:
        raise UserError(f"the datasheet {priced.sheet} states no watts; add them, or price another device")
    report = _report(WORK[type_])
    hour = priced.per_hour(sheet.watts, prices.usd_per_kwh)
    modes = {
        mode: costs(seconds(phases_of(report, run), rate, prices, batch), hour, sheet.watts)
        for mode, run in MODES.items()
    }
    return {
        "name": name, "description": sheet.description, "measured": False, "type": type_, "batch": batch,
        "usd_per_hour": hour, "watts": sheet.watts, "modes": modes,
    }  # fmt: skip


def as_measured(name: str, measured: Measured, prices: Prices) -> Report:
    """A device that was measured, with what the same sum would have said of it."""
    report = _report(measured.report)
    hour = measured.per_hour(measured.watts, prices.usd_per_kwh)
    rate = _rate(measured.like)
    modes: Report = {}
    for mode, run_id in MODES.items():
        median = next(run for run in report["runs"] if run["id"] == run_id)["summary"]["latency_sec"]["median"]
        estimate = seconds(phases_of(report, run_id), rate, prices, 1)
        nearer = min(max(estimate[0], median), estimate[1])
        modes[mode] = costs([median, median], hour, measured.watts) | {"estimate": estimate, "ratio": nearer / median}
    model = report["models"][0]
    return {
        "name": name, "description": _device(report), "measured": True, "report": measured.report,
        "type": model["precision"], "batch": 1, "usd_per_hour": hour, "watts": measured.watts, "modes": modes,
    }  # fmt: skip


def _rate(like: Like) -> Rate:
    if like.sheet is not None:
        return _of_sheet(like.sheet)
    assert like.memory_gb_per_sec is not None and like.tflops is not None, "Like has seen to it"
    return Rate(like.memory_gb_per_sec * 1e9, like.tflops * 1e12, False)


def _of_sheet(name: str) -> Rate:
    """Raises `UserError` for a datasheet without arithmetic."""
    sheet = load_sheet(name)
    if sheet.rates.flops_per_sec is None:
        raise UserError(f"the datasheet {name} does not state how fast it computes; price another device")
    return Rate(sheet.rates.bytes_per_sec, sheet.rates.flops_per_sec, sheet.kind != "cpu")


def _device(report: Mapping[str, Any]) -> str:
    model, gpus = report["models"][0], report["machine"]["gpus"]
    if model["device"] != "cpu":
        return f"{gpus[0]['name']}, {model['engine']}"
    return f"two cores of an {report['provenance']['cpu']}, {model['engine']}"


def _report(name: str) -> Report:
    file = REPORTS / f"{name}.json"
    if not file.is_file():
        raise UserError(f"there is no report {name} in profiles/reports; name one of `lrkit profile`")
    return json.loads(file.read_text(encoding="utf-8"))


def all_costs(prices: Prices) -> Report:
    """The report."""
    rows = [as_measured(name, one, prices) for name, one in prices.measured.items()]
    rows += [
        by_datasheet(name, one, prices, type_, batch)
        for name, one in prices.devices.items()
        for type_ in WORK
        for batch in prices.batches
    ]
    return {
        "kind": "answer-costs", "command": "python -m benchmarks.answer_costs", "model": "2B, random weights",
        "prices": prices.model_dump(mode="json"), "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes of the prices, by dotted path")
    parser.add_argument("--prices", type=Path, default=PRICES, help="a file like benchmarks/answer_prices.yaml")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="as it is: nothing is run")
    options = parser.parse_args()
    try:
        if options.json:
            check_writable(options.json)
        report = all_costs(load_config(Prices, options.prices, options.changes))
    except LrkitError as error:
        parser.error(str(error))
    for cells in (*cost_rows(report), *cost_check_rows(report)):
        print(" | ".join(cells))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
