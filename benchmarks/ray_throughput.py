"""What Ray costs: lines answered by one worker of Ray against the plain loop with as many threads, in turns.

    python -m benchmarks.ray_throughput my-bundle --json profiles/reports/ray-throughput.json

Both write shards and join them. A rate counts from the first shard that is done to the last, so loading the model and
starting a cluster are left out; `start_sec` tells them apart. Processor time is that of this process and of all below
it: of the plain loop its own, of Ray the leader's, the worker's and that of Ray's services. On a machine that does
other things too, the ratio of processor times says more than that of rates.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from lrkit.batch.answer_lines import answer_lines
from lrkit.batch.job import AskedModel, LineOptions
from lrkit.data.trail import trail_set
from lrkit.files import write_json
from lrkit.provenance import collect, installed_version
from lrkit.summary import summarize

_TICK = os.sysconf("SC_CLK_TCK")
WAYS = ("plain", "ray")


def write_lines(folder: Path, count: int, pictures: int) -> Path:
    """Questions about boards of the test split."""
    samples = trail_set("main", "test", min(count, pictures))
    for number, sample in enumerate(samples):
        picture: Any = sample.images[0]
        picture.save(folder / f"{number}.png")
    with (folder / "lines.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(count):
            of = number % len(samples)
            line = {"image": f"{of}.png", "question": samples[of].question, "id": f"line {number + 1}"}
            stream.write(json.dumps(line) + "\n")
    return folder / "lines.jsonl"


def processor_sec() -> float:
    """Of this process and of all processes below it that live, and of those that have ended and were waited for."""
    found: dict[int, tuple[int, int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = place.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(place.parent.name)] = int(values[1]), sum(map(int, values[11:15]))
    own, ticks = {os.getpid()}, found[os.getpid()][1]
    while more := {pid for pid, (parent, _) in found.items() if parent in own} - own:
        ticks += sum(found[pid][1] for pid in more)
        own |= more
    return ticks / _TICK


def measured(way: str, model: AskedModel, lines: Path, folder: Path, options: LineOptions) -> dict[str, float]:
    """One run of a way: rows per second and processor seconds per row behind the first shard."""
    began, marks = time.perf_counter(), list[tuple[int, float, float]]()

    def mark(done: int, total: int) -> None:
        if not marks or done == total:
            marks.append((done, time.perf_counter(), processor_sec()))

    how: Any = {"on_ray": True, "workers": 1} if way == "ray" else {}
    answer_lines(model, str(lines), folder, options, **how, on_progress=mark)
    (first, at, used), (last, end, all_used) = marks[0], marks[-1]
    rows = last - first
    return {
        "rows_per_sec": rows / (end - at),
        "processor_sec_per_row": (all_used - used) / rows,
        "start_sec": at - began,
        "rows": rows,
    }


def main() -> None:
    """The command line; exits with 1 where the two ways wrote other rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle")
    parser.add_argument("--lines", type=int, default=1024)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--shard-lines", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="one round of few lines: whether it runs")
    asked = parser.parse_args()
    if asked.smoke:
        asked.lines, asked.pictures, asked.shard_lines, asked.batch_size, asked.rounds = 12, 2, 4, 4, 1
    options = LineOptions(shard_lines=asked.shard_lines, batch_size=asked.batch_size)
    model = AskedModel(model=asked.model, threads=asked.threads)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as made:
        lines = write_lines(Path(made), asked.lines, asked.pictures)
        for turn in range(asked.rounds):
            for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                runs[way].append(measured(way, model, lines, Path(made) / f"{way}-{turn}", options))
                print(f"round {turn + 1}, {way}: {runs[way][-1]}", flush=True)
            plain, ray = ((Path(made) / f"{way}-{turn}" / "answers.jsonl").read_bytes() for way in WAYS)
            if plain != ray:
                raise SystemExit("the rows of Ray are not those of the plain loop")
    report = report_of(asked, runs)
    print(json.dumps({name: report[name]["median"] for name in ("rate_ratio", "processor_ratio")}))
    if asked.json is not None:
        write_json(asked.json, report)


def report_of(asked: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Ratios are of pairs: above 1, Ray is the better."""
    pairs = list(zip(runs["plain"], runs["ray"], strict=True))
    summed = {
        way: {name: summarize(run[name] for run in found).to_dict() for name in found[0]} for way, found in runs.items()
    }
    settings = {name: getattr(asked, name) for name in ("lines", "shard_lines", "batch_size", "threads", "rounds")}
    return {
        "schema": 1,
        "kind": "ray-throughput",
        **settings,
        "ways": summed,
        "rate_ratio": summarize(ray["rows_per_sec"] / plain["rows_per_sec"] for plain, ray in pairs).to_dict(),
        "processor_ratio": summarize(
            plain["processor_sec_per_row"] / ray["processor_sec_per_row"] for plain, ray in pairs
        ).to_dict(),
        "runs": runs,
        "provenance": collect(ray=installed_version("ray")),
    }


if __name__ == "__main__":
    main()
