"""One training step: lrkit's (KV cache, SDPA, one saliency row) against a naive one (naive_step.py) of the same model.

    OMP_NUM_THREADS=1 python -m benchmarks.training_step [--pairs 15] [--json FILE]

A step is forward and backward of the loss on one batch, without the optimizer. Both sides first show the same loss and
the same gradients; then they run alternately, each in its own process on one thread, so that peak memory is each
side's own and a slow moment of the machine meets both. The report holds the median and quartiles of each and of the
ratio within pairs, by the clock and by the CPU time of the process, which other work on the machine affects less.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Shape:
    """What is timed."""

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 8
    vocabulary: int = 512
    batch: int = 4
    visual_tokens: int = 100
    text_tokens: int = 20
    latent_steps: int = 4
    replayed_tokens: int = 32
    routed_tokens: int = 32
    depth: int = 1
    spoken_tokens: int = 5
    lora_rank: int = 16


SMOKE = Shape(
    hidden_size=32, num_layers=2, num_heads=4, vocabulary=64, batch=2, visual_tokens=12, text_tokens=5,
    latent_steps=2, replayed_tokens=4, routed_tokens=4, spoken_tokens=3, lora_rank=2,
)  # fmt: skip


def build(shape: Shape):  # type: ignore[no-untyped-def]
    """The reasoner and a batch, the same in every process."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from lrkit.contract.settings import ReasonerSettings
    from lrkit.families.qwen2_vl.backbone import Qwen2VLBackbone
    from lrkit.model.build import build_reasoner
    from tests.tiny import EOS, IMAGE, LATENT, PAD, VISION_END, VISION_START

    torch.manual_seed(0)
    half = shape.hidden_size // shape.num_heads // 2
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": shape.vocabulary, "hidden_size": shape.hidden_size,
            "intermediate_size": 3 * shape.hidden_size, "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_heads // 2,
            "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": EOS,
            "pad_token_id": PAD,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
            },
        },
        vision_config={
            "depth": 2, "embed_dim": 64, "hidden_size": shape.hidden_size, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=IMAGE, video_token_id=shape.vocabulary - 1, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "embed_tokens" in name else shape.hidden_size**-0.5)
    settings = ReasonerSettings.model_validate(
        {
            "think": {"max_latent_steps": shape.latent_steps},
            "replay": {"num_tokens": shape.replayed_tokens},
            "routing": {"depth": shape.depth, "alpha": shape.routed_tokens},
            "lora": {"rank": shape.lora_rank, "alpha": 2.0 * shape.lora_rank, "dropout": 0.0},
        }
    )
    reasoner = build_reasoner(Qwen2VLBackbone(model), settings, LATENT, trainable="lora")
    for name, parameter in reasoner.named_parameters():
        if "lora_B" in name or "step_encoding" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return reasoner.train(), draw_batch(shape)


def draw_batch(shape: Shape):  # type: ignore[no-untyped-def]
    """Random prompts with one picture each, and what is to be said after the latents."""
    import torch

    from tests.tiny import EOS, GEOMETRY, Prompt, batch

    side = next(s for s in range(int(shape.visual_tokens**0.5), 0, -1) if shape.visual_tokens % s == 0)
    grid = (1, 2 * side, 2 * (shape.visual_tokens // side))
    prompts = []
    for _ in range(shape.batch):
        text = tuple(torch.randint(8, shape.vocabulary - 1, (shape.text_tokens,)).tolist())
        patches = torch.randint(256, (4 * shape.visual_tokens, GEOMETRY.patch_bytes), dtype=torch.uint8)
        prompts.append(Prompt((grid,), text, patches.numpy()))
    words = min(500, shape.vocabulary - 1)
    speech = [[*torch.randint(8, words, (shape.spoken_tokens - 1,)).tolist(), EOS] for _ in prompts]
    return batch(prompts, num_latents=[shape.latent_steps] * shape.batch, speech=speech)


class Worker:
    """One side in this process: a step per request, answered by what it took; `check` adds loss and gradient norms."""

    def __init__(self, which: str, shape: Shape) -> None:
        self.reasoner, self.batch = build(shape)
        if which == "lrkit":
            self.step: Callable[[], Any] = lambda: self.reasoner(self.batch).total
        else:
            from benchmarks.naive_step import NaiveStep

            naive = NaiveStep(self.reasoner)
            self.step = lambda: naive.loss(self.batch)

    def ask(self, request: str) -> dict[str, object]:
        self.reasoner.zero_grad(set_to_none=True)
        started, cpu_started = time.perf_counter(), time.process_time()
        loss = self.step()
        loss.backward()
        answer: dict[str, object] = {
            "step_sec": time.perf_counter() - started,
            "cpu_sec": time.process_time() - cpu_started,
        }
        answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if request == "check":
            answer["loss"] = float(loss.detach())
            answer["gradient_norms"] = {
                name: float(p.grad.norm()) for name, p in self.reasoner.named_parameters() if p.grad is not None
            }
        return answer

    def close(self) -> None:
        pass


def work(which: str) -> None:
    """One side's process: requests line by line, answers as one JSON line each."""
    import torch

    torch.set_num_threads(1)
    worker = Worker(which, Shape())
    for line in sys.stdin:
        print(json.dumps(worker.ask(line.strip())), flush=True)


class Side:
    """One side in its own process."""

    def __init__(self, which: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training_step", "--work", which]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: str) -> dict[str, object]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def check_equal(ours: dict, naive: dict) -> float:  # type: ignore[type-arg]
    """The largest relative difference of the gradients' norms, after the same loss to 1e-4.

    Raises:
        SystemExit: the two sides do not compute the same step.
    """
    mine, theirs = ours["gradient_norms"], naive["gradient_norms"]
    worst = max(abs(mine[name] - theirs[name]) / (abs(theirs[name]) + 1e-6) for name in theirs)
    if mine.keys() != theirs.keys() or abs(ours["loss"] - naive["loss"]) > 1e-4 or worst > 1e-2:
        raise SystemExit(f"the two steps differ: loss {ours['loss']} and {naive['loss']}, gradients by {worst:.2g}")
    return worst


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def measure(pairs: int, warmup: int = 2, smoke: bool = False) -> dict[str, object]:
    """Runs both sides alternately and returns the report; `smoke` runs a small shape, both in this process."""
    shape = SMOKE if smoke else Shape()
    names = ("lrkit", "naive")
    sides: dict[str, Any] = {which: Worker(which, shape) if smoke else Side(which) for which in names}
    checks = {which: side.ask("check") for which, side in sides.items()}
    worst = check_equal(checks["lrkit"], checks["naive"])
    seconds: dict[str, dict[str, list[float]]] = {
        clock: {which: [] for which in sides} for clock in ("step_sec", "cpu_sec")
    }
    peak: dict[str, float] = {}
    for number in range(warmup + pairs):
        for which in sorted(sides, reverse=bool(number % 2)):
            answer = sides[which].ask("step")
            for clock in seconds if number >= warmup else ():
                seconds[clock][which].append(float(answer[clock]))  # type: ignore[arg-type]
            peak[which] = float(answer["peak_bytes"])  # type: ignore[arg-type]
    for side in sides.values():
        side.close()
    ratios = {
        clock: [naive / ours for ours, naive in zip(both["lrkit"], both["naive"], strict=True)]
        for clock, both in seconds.items()
    }
    return {
        "shape": asdict(shape),
        "pairs": pairs,
        "threads": 1,
        **{clock: {which: spread(values) for which, values in both.items()} for clock, both in seconds.items()},
        "speedup": spread(ratios["step_sec"]),
        "speedup_cpu": spread(ratios["cpu_sec"]),
        "peak_bytes": peak,
        "gradient_norms_differ_by": worst,
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cpu": cpu_name()},
        "versions": versions(),
    }


def cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft")}


def show(report: dict) -> None:  # type: ignore[type-arg]
    print(f"{'side':8} {'step (s)':>10} {'quartiles':>16} {'CPU time (s)':>13} {'peak (MiB)':>11}")
    for which, row in report["step_sec"].items():
        quartiles = f"{row['quartile_low']:.3f} - {row['quartile_high']:.3f}"
        cpu, peak = report["cpu_sec"][which]["median"], report["peak_bytes"][which] / 2**20
        print(f"{which:8} {row['median']:>10.3f} {quartiles:>16} {cpu:>13.3f} {peak:>11.0f}")
    for name, ratio in (("speedup", report["speedup"]), ("in CPU time", report["speedup_cpu"])):
        print(f"{name:12} {ratio['median']:.2f} ({ratio['quartile_low']:.2f} - {ratio['quartile_high']:.2f})")
    print(f"{report['pairs']} pairs, 1 thread, {report['machine']['cpu']}, torch {report['versions']['torch']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    parser.add_argument("--work", choices=["lrkit", "naive"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("--pairs must be 2 or more: one pair has no spread")
    if options.work:
        work(options.work)
        return
    report = measure(2, warmup=0, smoke=True) if options.smoke else measure(options.pairs)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
