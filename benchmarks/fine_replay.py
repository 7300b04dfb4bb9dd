"""What coarse first, then closer is worth on boards whose signs a small picture does not show.

    python benchmarks/woven_base.py runs/woven
    python -m benchmarks.fine_replay                          # trains what runs/fine-replay lacks, then reports
    python -m benchmarks.fine_replay --seeds 0 --only full taught
    python -m benchmarks.fine_replay --report                 # of what is there, without training
    python -m benchmarks.fine_replay --report --times runs/fine-replay/full-0,runs/fine-replay/taught-0

Every condition trains from the same weights with each seed, as many updates as `--updates` says, and answers the same
boards, whose scans no training has seen. All but `full` read a picture of half the size (10 visual tokens of 40):

    full      reads the whole picture finely (recipe trail-full: 350 updates); nobody says where to look
    taught    replays windows of the full picture; the model of `full` with the same seed says where to look
    labels    the same; labels of the data say where to look
    untaught  the same; nobody says where to look
    random    the same windows, but chosen at random, in training and in use
    own       replays visual tokens of the small picture itself, which show no sign
    direct    answers from the small picture at once
    cot       answers from the small picture in words

Models that choose their windows are asked once more with random ones. `--times` asks two models, checkpoints or
bundles, interleaved; a report without it keeps the times it has. It goes on where it stopped. The JSON is the source;
the Markdown beside it is rendered from it.
"""

import argparse
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import lrkit.model.replay as replaying
from benchmarks import fine_replay_times
from benchmarks.fine_replay_times import measure
from lrkit import Reasoner, Sample
from lrkit.contract.generated import Mode
from lrkit.contract.scoring import accuracy, answers_match, compare_paired
from lrkit.data.sources import load_samples
from lrkit.data.trail import HOPS
from lrkit.files import read_json, write_json, write_text
from lrkit.provenance import collect
from lrkit.resources import find_recipe
from lrkit.summary import summarize
from lrkit.train.recipe import load_recipe
from lrkit.train.run import train

SMALL_PIXELS = 80 * 32
"""Of a board at half the size, as fine replay reads it."""
SMALL = ("model.replay.source=prompt", "model.distill.pointing=0", f"max_pixels={SMALL_PIXELS}")
DATA = "trail:woven"
GO_ON = "the same command goes on from the last saved update"


@dataclass(frozen=True)
class Condition:
    """One way to train and to ask."""

    name: str
    """In the table."""
    changes: tuple[str, ...] = ()
    recipe: str = "trail-fine"
    mode: Mode = "latent"
    chooses: bool = False
    """Its windows are chosen by saliency."""
    random: bool = False
    """Its windows are drawn, in training too."""


CONDITIONS: dict[str, Condition] = {
    "full": Condition("the whole picture, finely", recipe="trail-full"),
    "taught": Condition("small, then windows; taught by the model above", ("teacher={full}",), chooses=True),
    "labels": Condition("small, then windows; taught by labels", chooses=True),
    "untaught": Condition("small, then windows; not taught", ("model.distill.pointing=0",), chooses=True),
    "random": Condition("small, then random windows", ("model.distill.pointing=0",), random=True),
    "own": Condition("small, its own tokens replayed", SMALL),
    "direct": Condition(
        "small, direct", (*SMALL, "stages.0.latent_steps=0", "stages.0.spoken_steps=none"), mode="direct"
    ),
    "cot": Condition(
        "small, in words",
        (*SMALL, "stages.0.latent_steps=0", "stages.0.spoken_steps=rest", "stages.0.tasks={short: 1.0}"),
        mode="cot",
    ),
}  # fmt: skip


@contextmanager
def random_windows(seed: int) -> Generator[None]:
    """Replay draws its tokens instead of choosing them by saliency."""
    by_saliency, generator = replaying.select, torch.Generator().manual_seed(seed)

    def drawn(score_BV: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return by_saliency(torch.rand(score_BV.shape, generator=generator), *rest)

    replaying.select = drawn
    try:
        yield
    finally:
        replaying.select = by_saliency


def run_one(key: str, seed: int, folder: Path, samples: Sequence[Sample], changes: Sequence[str]) -> dict[str, Any]:
    """Trains a condition with one seed, asks it, and keeps the result beside its checkpoint."""
    condition, file = CONDITIONS[key], folder / f"{key}-{seed}" / "result.json"
    if file.is_file():
        return read_json(file)
    teacher = folder / f"full-{seed}"
    own = [change.format(full=teacher) for change in condition.changes]
    recipe = load_recipe(find_recipe(condition.recipe), [*own, "eval.samples=0", f"seed={seed}", *changes])
    with random_windows(seed) if condition.random else nullcontext():
        checkpoint = train(recipe, file.parent, resume=True, quiet=True, go_on=GO_ON)
        reasoner = Reasoner.from_checkpoint(checkpoint)
        result = {"updates": sum(stage.updates or 0 for stage in recipe.stages), **ask(reasoner, condition, samples)}
    if condition.chooses:
        with random_windows(seed):
            result["with_random_windows"] = ask(reasoner, condition, samples)
    write_json(file, result)
    return result


def ask(reasoner: Reasoner, condition: Condition, samples: Sequence[Sample]) -> dict[str, Any]:
    """Right (1) or wrong (0) for each sample, and mean counts of tokens."""
    asked = [(sample.images, sample.question) for sample in samples]
    answers = [
        answer
        for start in range(0, len(asked), 40)
        for answer in reasoner.ask_batch(asked[start : start + 40], condition.mode, max_new_tokens=24)
    ]
    right = [
        answer.answer is not None and answers_match(answer.answer, sample.answer)
        for answer, sample in zip(answers, samples, strict=True)
    ]
    image_id = reasoner.processor.image_id
    prompts = [reasoner.processor.encode_prompt(*one).ids.count(image_id) for one in asked]
    means = {
        "prompt_visual_tokens": prompts,
        "replayed_tokens": [answer.replayed_tokens for answer in answers],
        "prefilled_tokens": [answer.prefilled_tokens for answer in answers],
        "latent_steps": [answer.latent_steps for answer in answers],
    }
    return {
        "right": [int(one) for one in right],
        **{name: summarize(values).mean for name, values in means.items()},
    }


def report_of(folder: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    """Of every run that has a result, whatever seeds were asked for now."""
    seeds = sorted({int(file.parent.name.rpartition("-")[2]) for file in folder.glob("*-*/result.json")})
    found = {
        key: {seed: read_json(file) for seed in seeds if (file := folder / f"{key}-{seed}" / "result.json").is_file()}
        for key in CONDITIONS
    }
    hops = [int(sample.info["hops"]) for sample in samples]
    rows = [_row(key, runs, found, hops) for key, runs in found.items() if runs]
    return {
        "schema": 1, "kind": "fine-replay", "data": DATA, "split": "test", "samples": len(samples), "rows": rows,
        "provenance": collect(),
    }  # fmt: skip


Runs = dict[int, dict[str, Any]]


def _row(key: str, runs: Runs, found: dict[str, Runs], hops: Sequence[int]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "condition": key,
        "name": CONDITIONS[key].name,
        "seeds": list(runs),
        "updates": next(iter(runs.values()))["updates"],
        **_scored([run["right"] for run in runs.values()], hops),
        **{
            name: summarize(run[name] for run in runs.values()).mean
            for name in ("prompt_visual_tokens", "replayed_tokens", "prefilled_tokens", "latent_steps")
        },
        "minus": {other: _minus(runs, found[other]) for other in ("full", "random", "own") if other != key},
    }
    if CONDITIONS[key].chooses:
        drawn = {seed: run["with_random_windows"] for seed, run in runs.items()}
        row["with_random_windows"] = _scored([run["right"] for run in drawn.values()], hops)
        row["minus"]["itself_with_random_windows"] = _minus(runs, drawn)
    return row


def _scored(runs: Sequence[Sequence[int]], hops: Sequence[int]) -> dict[str, Any]:
    """Accuracy of each seed, of all, and by the length of the trail."""
    whole = [right for run in runs for right in run]
    lengths = {
        str(length): accuracy([bool(r) for run in runs for r, hop in zip(run, hops, strict=True) if hop == length])
        for length in HOPS["woven"]
        if length in hops
    }
    return {
        "accuracy_by_seed": [sum(run) / len(run) for run in runs],
        "accuracy": accuracy([bool(right) for right in whole]).to_dict(),
        "accuracy_by_hops": {length: found.value for length, found in lengths.items()},
    }


def _minus(runs: Runs, others: Runs) -> dict[str, Any] | None:
    """The paired difference on the same boards, over the seeds that both have."""
    both = [seed for seed in runs if seed in others]
    first, second = ([bool(right) for seed in both for right in one[seed]["right"]] for one in (runs, others))
    return {**compare_paired(first, second).to_dict(), "seeds": both} if both else None


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    made = report["provenance"]
    lines = [
        "# Coarse first, then closer",
        "",
        f"{report['samples']} boards of `{report['data']}` that training has not seen, the same for all; intervals of",
        "95% over boards. `python -m benchmarks.fine_replay` makes it; its first lines say what the conditions are.",
        "Visual tokens: those of the prompt, and those replayed in an answer. The JSON beside this file is the source.",
        f"torch {made['packages']['torch']}, {made['cpu']}, {made['time_utc'][:10]}.",
        "",
        *table(HEAD, [row_of(row) for row in report["rows"]]),
        "",
        "By the number of hops, in percent:",
        "",
        *table(("the prompt reads", *report["rows"][0]["accuracy_by_hops"]), [_by_hops(row) for row in report["rows"]]),
        *_times(report.get("times", [])),
    ]
    return "\n".join(lines) + "\n"


def _times(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    said = f"Medians of {rows[0]['questions']} questions one by one, both models interleaved:"
    return ["", said, "", *table(fine_replay_times.HEAD, [fine_replay_times.row_of(row) for row in rows])]


HEAD = (
    "the prompt reads", "updates", "seeds", "right", "each seed", "asked with random windows", "salient minus random",
    "visual tokens",
)  # fmt: skip


def row_of(row: dict[str, Any]) -> list[str]:
    """The cells of `HEAD`."""
    drawn, minus = row.get("with_random_windows"), row["minus"].get("itself_with_random_windows")
    return [
        row["name"], str(row["updates"]), str(len(row["seeds"])), _share(row["accuracy"]),
        ", ".join(f"{100 * each:.1f}" for each in row["accuracy_by_seed"]),
        _share(drawn["accuracy"]) if drawn else "-",
        f"{100 * minus['difference']:+.1f} ({100 * minus['low']:.1f} to {100 * minus['high']:.1f})" if minus else "-",
        f"{row['prompt_visual_tokens']:.0f} + {row['replayed_tokens']:.1f}",
    ]  # fmt: skip


def _by_hops(row: dict[str, Any]) -> list[str]:
    return [row["name"], *(f"{100 * share:.0f}" for share in row["accuracy_by_hops"].values())]


def _share(found: dict[str, Any]) -> str:
    return f"{found['value']:.1%} ({100 * found['low']:.1f}-{100 * found['high']:.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    samples = load_samples(DATA, args.samples)
    if not args.report:
        for seed in args.seeds:
            for key in args.only:
                result = run_one(key, seed, args.folder, samples, [*args.budget[CONDITIONS[key].recipe], *args.changes])
                share = sum(result["right"]) / len(samples)
                Console(stderr=True).print(f"{key}, seed {seed}: {share:.1%}", highlight=False)
    report = report_of(args.folder, samples)
    before = read_json(args.json, missing_ok=True).get("times", [])
    report["times"] = measure(args.times, samples[: args.questions]) if args.times else before
    write_json(args.json, report)
    text = render(report)
    write_text(args.json.with_suffix(".md"), text)
    Console(width=200).print(text, markup=False, highlight=False)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-replay"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--updates", type=int, default=300, help="of every condition but full")
    parser.add_argument("--changes", nargs="*", default=[], help="KEY=VALUE of every recipe")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--times", nargs="*", default=[], metavar="WHOLE,CLOSER", help="checkpoints or bundles")
    parser.add_argument("--questions", type=int, default=80, help="of the times")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/fine-replay.json"))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs")
    args = parser.parse_args()
    args.budget = {"trail-full": [], "trail-fine": [f"stages.0.updates={args.updates}"]}
    if args.smoke:
        args.budget = {"trail-full": ["stages.0.updates=1", "stages.1.updates=1"], "trail-fine": ["stages.0.updates=1"]}
        args.seeds, args.samples, args.only = args.seeds[:1], 8, ["full", "taught", "random"]
        args.changes = ["init=tiny/latent", "batch_size=2"]
        args.times, args.questions = [f"{args.folder}/full-0,{args.folder}/taught-0"], 2
    return args


if __name__ == "__main__":
    main()
