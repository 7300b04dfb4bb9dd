"""The tables of README.md and docs/, rendered from the reports in profiles/reports.

    python -m benchmarks.tables           # writes every marked region
    python -m benchmarks.tables --check   # names the stale ones, writes nothing; exit code 1 where there are any
    python -m benchmarks.tables --list    # the names there are, and what each is read from

A region is what stands between two lines of a Markdown file:

    <!-- table: NAME -->
    ...
    <!-- end -->

The pages beside the reports (profiles/reports/*.md) are rendered whole. The JSON is the source and nobody edits a
region or such a page by hand. A table that shows one row per machine reads every report that
matches its pattern, so a measurement on another device needs a file and no code.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import depth, plan_tables, probe_table, sceptic, shape_tables

ROOT = Path(__file__).resolve().parent.parent
REPORTS = Path("profiles/reports")
PAGES = ("README.md", "CONTRIBUTING.md", "*/README.md", "docs/**/*.md", "profiles/reports/*.md")
REGION = re.compile(
    r"^(?P<open><!-- table: (?P<name>[\w-]+) -->)\n(?P<body>.*?)^(?P<close><!-- end -->)$", re.DOTALL | re.MULTILINE
)
OPENING = re.compile(r"^<!-- table:.*$", re.MULTILINE)
DIALECT_COUNTS = ("spoken tokens", "latent steps", "replayed tokens", "extra passes")

WHOLE = {
    "profile": "lrkit.profile.pages.markdown:render_markdown",
    "ablation": "lrkit.train.ablate:render",
    "probe": "lrkit.probe.probe_markdown:render",
    "dialects": "benchmarks.dialects:render",
    "pruning": "benchmarks.pruning:render",
    "routed-depth": "benchmarks.routed_depth:render",
    "step-encodings": "benchmarks.step_encodings:render",
    "quantization": "lrkit.export.phases.quantization_page:render",
    "fine-replay": "benchmarks.fine_replay:render",
}
"""Kind of report -> what renders the page beside it."""

Report = dict[str, Any]
Rows = Iterable[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """One table that a page can show."""

    pattern: str
    """The reports that it is read from, in profiles/reports; one row or more for each."""
    head: tuple[str, ...]
    rows: Callable[[Report], Rows]
    """The rows of one report."""

    def files(self, root: Path) -> list[Path]:
        """The shortest name first: a report without a suffix is the one that the others are compared with."""
        return sorted((root / REPORTS).glob(self.pattern), key=lambda file: (len(file.stem), file.stem))

    def render(self, root: Path) -> str:
        """Markdown: the table, and a line that says with what, when and from which file it was measured."""
        files = self.files(root)
        if not files:
            raise SystemExit(f"no report matches {REPORTS / self.pattern}; measure one, or remove the table")
        reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        rows = [self.head, ["---"] * len(self.head), *(row for report in reports for row in self.rows(report))]
        lines = [f"| {' | '.join(cells)} |" for cells in rows]
        sources = [_source(file, report) for file, report in zip(files, reports, strict=True)]
        return "\n".join([*lines, "", f"<sub>{'; '.join(sources)}.</sub>"])


def _source(file: Path, report: Report) -> str:
    made = report.get("provenance", {})
    versions = [f"{name} {made['packages'][name]}" for name in ("torch", "onnxruntime") if made.get("packages")]
    day = report.get("days") or made.get("time_utc", "")[:10]
    return ", ".join(part for part in (f"`{(REPORTS / file.name).as_posix()}`", day, *versions) if part)


def _tiny(report: Report) -> Rows:
    """Accuracy, steps and time of the three modes, one row per set of pictures."""
    for name, found in report["sets"].items():
        modes = found["modes"]
        ratios = found["cot_over_latent"]
        yield (
            f"`{name}`", *(_accuracy(modes[mode]) for mode in ("latent", "cot", "direct")),
            f"{modes['cot']['ar_steps_mean']:.1f} / {modes['latent']['ar_steps_mean']:.1f}",
            f"{ratios['ar_steps']:.1f}x", f"{ratios['latency']:.1f}x",
        )  # fmt: skip


def _seed(report: Report) -> Rows:
    """One run of the latent stage with another seed."""
    sets = report["sets"]
    yield (
        f"`{Path(report['model']).name}`",
        *(_accuracy(sets[f"trail:{kind}"]["modes"]["latent"]) for kind in ("main", "faint", "wide")),
    )


def _accuracy(mode: Report) -> str:
    low, high = 100 * mode["accuracy_low"], 100 * mode["accuracy_high"]
    return f"{100 * mode['accuracy']:.1f}% ({low:.1f}-{high:.1f})"


def _headline(report: Report) -> Rows:
    """What latents buy over words on one processor: times of one answer, steps, the two ratios, and the accuracies."""
    runs = {run["id"]: run["summary"] for run in report["runs"]}
    pair = next(pair for pair in report["pairs"] if (pair["run"], pair["reference"]) == ("cot", "latent"))
    latent, words = runs["latent"], runs["cot"]
    yield (
        _cpu(report["provenance"]), str(report["models"][0]["threads"] or "all"),
        _ms(latent["latency_sec"]["median"]), _ms(words["latency_sec"]["median"]),
        f"{pair['ar_steps_ratio']['value']:.1f}", _interval(pair["time_ratio"]), _interval(pair["latency_ratio"]),
        f"{latent['accuracy']['value']:.1%} / {words['accuracy']['value']:.1%}",
    )  # fmt: skip


def _engines(report: Report) -> Rows:
    """Torch and the two programs, one question at a time; medians with quartiles over turns."""
    milliseconds, ratios = report["milliseconds"], report["ratios"]
    for name, engine in (("torch, fp32", "torch"), ("program, fp32", "fp32"), ("program, int4", "int4")):
        program = engine if engine == "torch" else f"{engine} program"
        times = [_quartiles(milliseconds[f"{engine} {mode}"]) for mode in ("latent", "cot")]
        against = "1" if engine == "torch" else _quartiles(ratios[f"torch / {program}, latent"])
        yield _cpu(report["provenance"]), name, *times, _quartiles(ratios[f"in words / latent, {program}"]), against


def _dialects(report: Report) -> Rows:
    """The dialect standard, on each engine that runs it here, against the one for ONNX Runtime, variant by variant."""
    count = report["samples"]
    for name, found in report["variants"].items():
        for who, against in found["against_ort"].items():
            yield (
                name, "ONNX Runtime" if who == "standard" else who,
                *(f"{against['same'][kind]} of {count}" for kind in DIALECT_COUNTS),
                *(f"{against['largest_error'][kind]:.1e}" for kind in ("prefill_logits", "latent_states")),
                *(f"{found['right'][one] / count:.1%}" for one in ("ort", who)),
            )  # fmt: skip


def _ablation(report: Report) -> Rows:
    """Mean accuracy in percent with its standard deviation over seeds, one row per variant."""
    for name, sets in report["rows"].items():
        found = [sets[kind] for kind in ("trail:main", "trail:faint", "trail:long")]
        yield name, *(f"{100 * each['mean']:.1f} +- {100 * (each['stdev'] or 0):.1f}" for each in found)


def _fine_replay(report: Report) -> Rows:
    """Accuracy and visual tokens of the whole picture, of windows, and of the small picture alone."""
    # Not at the top: that script needs torch, and these tables need none.
    row_of = import_module("benchmarks.fine_replay").row_of
    return [row_of(row) for row in report["rows"]]


def _training(report: Report) -> Rows:
    """One training step as lrkit takes it, against the plain way."""
    for who, name in (("lrkit", "lrkit"), ("naive", "token by token, uncached")):
        peak = report["peak_bytes"]
        seconds = report["step_sec"][who]
        yield name, _spread(seconds), f"{peak[who] / 1e6:.0f}", f"{peak[who] / peak['lrkit']:.2f}"


def _peer(report: Report) -> Rows:
    """lrkit's program against the same model by transformers.exporters, one row per precision and number of threads."""
    for row in report["rows"]:
        cut = f", {row['layers']} + {row['tower_layers']} layers" if row["layers"] else ""
        times = [
            cell
            for what in ("prompt", "token")
            for cell in (
                " / ".join(_ms(row[f"{what}_sec_{who}"]["median"]) for who in ("lrkit", "peer")),
                _quartiles([row[f"{what}_ratio"][name] for name in ("low", "median", "high")]),
            )
        ]
        sizes = " / ".join(f"{row['bytes'][who] / 1e6:,.1f}" for who in ("lrkit", "peer"))
        yield (
            f"`{row['model']}`{cut}", row["precision"], str(row["threads"]), *times, sizes,
            "yes" if row["same_tokens"] else "no", f"{row['load']:.1f}",
        )  # fmt: skip


def _genai(report: Report) -> Rows:
    """lrkit's program on OpenVINO against OpenVINO GenAI's pipeline."""
    for row in report["rows"]:
        cut = f", {row['layers']} layers" if row["layers"] else ""
        times = [
            cell
            for what in ("prompt", "token")
            for cell in (
                " / ".join(_ms(row[f"{what}_sec_{who}"]["median"]) for who in ("lrkit", "peer")),
                _quartiles([row[f"{what}_ratio"][name] for name in ("low", "median", "high")]),
            )
        ]
        same = "yes" if row["same_tokens"] else "no"
        yield f"`{row['model']}`{cut}", row["precision"], row["hint"], str(row["threads"]), *times, same


def _support(report: Report) -> Rows:
    return [[row[key] for key in ("engine", "device", "precision", "form", "built", "run")] for row in report["rows"]]


def _cpu(made: Report) -> str:
    return made["cpu"] or "unknown"


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _interval(found: Report) -> str:
    return f"{found['value']:.1f} ({found['low']:.1f}-{found['high']:.1f})"


def _quartiles(found: Sequence[float]) -> str:
    low, middle, high = found
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _spread(found: Report) -> str:
    return f"{found['median']:.2f} ({found['quartile_low']:.2f}-{found['quartile_high']:.2f})"


TABLES = {
    "tiny": Table(
        "tiny-eval.json",
        ("pictures", "latent", "in words", "direct", "steps, words / latent", "fewer steps", "faster"),
        _tiny,
    ),
    "tiny-seeds": Table("tiny-latent-seed?-eval.json", ("checkpoint", "`main`", "`faint`", "`wide`"), _seed),
    "probe": Table("tiny*-probe*.json", probe_table.HEAD, probe_table.rows),
    "headline": Table(
        "tiny-int4-cpu*.json",
        (
            "CPU", "threads", "latent, ms", "in words, ms", "fewer steps", "words / latent, time in all",
            "question by question", "right, latent / words",
        ),
        _headline,
    ),
    "engines": Table(
        "engines*.json",
        ("CPU", "`tiny`", "latent, ms", "in words, ms", "in words / latent", "latent: torch / this"),
        _engines,
    ),
    "dialects": Table(
        "dialects.json",
        (
            "variant", "standard in", "same answer", "same latent steps", "same replayed tokens", "same extra passes",
            "logits", "latent states", "right, ort", "right",
        ),
        _dialects,
    ),
    "shapes-gpu": Table("qwen2-vl-*-gpu*.json", shape_tables.TORCH_HEAD, shape_tables.torch_rows),
    "shapes-cpu": Table("qwen2-vl-*-cpu*.json", shape_tables.TORCH_HEAD, shape_tables.torch_rows),
    "shape-bundles": Table("*-bundle-cpu.json", shape_tables.PROGRAM_HEAD, shape_tables.program_rows),
    "ablation": Table("trail-ablation.json", ("variant", "`main`", "`faint`", "`long`"), _ablation),
    "sceptic": Table("trail-sceptic.json", sceptic.HEAD, sceptic.rows),
    "depth": Table("trail-depth.json", depth.HEAD, depth.rows),
    "fine-replay": Table(
        "fine-replay.json",
        (
            "the prompt reads", "updates", "seeds", "right", "each seed", "asked with random windows",
            "salient minus random", "visual tokens",
        ),
        _fine_replay,
    ),
    "training-step": Table(
        "training-step.json", ("training step", "seconds, quartiles", "peak MB", "memory / lrkit"), _training
    ),
    "peer": Table(
        "peer*.json",
        (
            "model", "precision", "threads", "prompt, ms: lrkit / peer", "peer / lrkit", "token, ms: lrkit / peer",
            "peer / lrkit", "MB: lrkit / peer", "same tokens", "load",
        ),
        _peer,
    ),
    "openvino-genai": Table(
        "openvino-genai*.json",
        (
            "model", "weights", "products", "threads", "prompt, ms: lrkit / peer", "peer / lrkit",
            "token, ms: lrkit / peer", "peer / lrkit", "same tokens",
        ),
        _genai,
    ),
    "published-plans": Table("published-plans.json", plan_tables.PUBLISHED_HEAD, plan_tables.published_rows),
    "planned-runs": Table("published-plans.json", plan_tables.RUN_HEAD, plan_tables.run_rows),
    "shard-memory": Table("shard-memory.json", plan_tables.SHARD_HEAD, plan_tables.shard_rows),
    "answer-costs": Table("answer-costs.json", plan_tables.COST_HEAD, plan_tables.cost_rows),
    "answer-costs-check": Table("answer-costs.json", plan_tables.CHECK_HEAD, plan_tables.cost_check_rows),
    "support": Table("support.json", ("engine", "device", "precision", "form", "built", "run"), _support),
}  # fmt: skip
"""By the name that a region gives."""


def rendered(text: str, root: Path = ROOT) -> str:
    """A page with its regions written from the reports.

    Raises:
        SystemExit: a region without an end or of no known name.
    """

    def write(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise SystemExit(f"no table is called {name!r}; there are {', '.join(TABLES)}")
        return f"{found['open']}\n{TABLES[name].render(root)}\n{found['close']}"

    written, count = REGION.subn(write, text)
    if count != len(OPENING.findall(text)) or any(OPENING.search(found["body"]) for found in REGION.finditer(text)):
        raise SystemExit("a line <!-- table: NAME --> has no <!-- end --> of its own; add it")
    return written


def pages(root: Path = ROOT) -> list[Path]:
    """Markdown files that may hold regions."""
    return sorted({file for pattern in PAGES for file in root.glob(pattern)})


def fresh(page: Path, root: Path = ROOT) -> str:
    """The page as the reports have it: whole beside a report, its regions elsewhere."""
    report = page.with_suffix(".json")
    if page.parent != root / REPORTS or not report.is_file():
        return rendered(page.read_text(encoding="utf-8"), root)
    values = json.loads(report.read_text(encoding="utf-8"))
    module, _, name = WHOLE[values["kind"]].partition(":")
    return getattr(import_module(module), name)(values)


def stale(root: Path = ROOT) -> list[Path]:
    """Pages that differ from what the reports say."""
    return [page for page in pages(root) if fresh(page, root) != page.read_text(encoding="utf-8")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="name stale pages and write nothing")
    parser.add_argument("--list", action="store_true", help="the tables there are")
    args = parser.parse_args()
    if args.list:
        for name, table in TABLES.items():
            print(f"{name:16} {REPORTS / table.pattern}")
        return
    found = stale()
    for page in found:
        print(f"{page.relative_to(ROOT)} is stale" if args.check else f"wrote {page.relative_to(ROOT)}")
        if not args.check:
            page.write_text(fresh(page), encoding="utf-8")
    sys.exit(1 if args.check and found else 0)


if __name__ == "__main__":
    main()
