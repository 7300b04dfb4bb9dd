"""One spoken token and one prompt in int4: lrkit's program against onnxruntime-genai's model of the same shape.

    lrkit export random:qwen2-vl-2b --int4 int4.vision=int4 int4.block=32 -o lrkit-int4
    python -m onnxruntime_genai.models.builder -m QWEN2 -o genai-int4 -p int4 -e cpu --extra_options block_size=32
    python benchmarks/int4_decode.py lrkit-int4 genai-int4 --threads 1 2 --prompt 128 256

QWEN2 is a folder with the text part of that shape (random weights will do). Both models are loaded in one process, with
the same number of threads, and interleaved: each repeat runs both, and the order alternates, so that other work on the
machine affects both alike. The ratio is taken within each repeat.

lrkit's loop is inside its program, so a token is the time of an answer of N + 1 tokens less that of one token, over N;
onnxruntime-genai is timed from token to token. Its prompt is `append_tokens`; lrkit's is the answer of one token, which
also runs the vision tower on the smallest picture there is.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lrkit.provenance import collect
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine
from lrkit.runtime.engines.programs.feed import build_feed

FIRST_WORD, LAST_WORD = 8, 40
"""Ids that are words and nothing else in both models."""


class Timed(Protocol):
    """A model that can be timed."""

    def answer(self, ids: Sequence[int], tokens: int) -> tuple[float, float]:
        """(seconds of the prompt, seconds of each of `tokens` further tokens)."""
        ...


class Lrkit:
    """The latent program of a bundle, asked to speak at once."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.engine = OrtEngine.from_bundle(folder, threads=threads, verify=False)
        self.session: Any = self.engine.sessions.of("latent")

    def answer(self, ids: Sequence[int], tokens: int) -> tuple[float, float]:
        prompt, spoken = self._run(ids, 1)
        assert spoken == 0, "the first token comes with the prompt"
        both, spoken = self._run(ids, tokens + 1)
        assert spoken == tokens, f"the program stopped after {spoken} tokens: it said its end token"
        return prompt, (both - prompt) / tokens

    def _run(self, ids: Sequence[int], tokens: int) -> tuple[float, int]:
        processor = self.engine.processor
        feed = build_feed(
            ids, [], None, image_id=processor.image_id, geometry=processor.geometry, think=False,
            fixed_latents=False, max_latent_steps=0,
            max_new_tokens=tokens,
        )  # fmt: skip
        started = time.perf_counter()
        (spoken,) = self.session.run(["spoken_steps"], feed)
        return time.perf_counter() - started, int(spoken)


class Genai:
    """A model that onnxruntime-genai's builder wrote."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as og  # pyright: ignore[reportMissingImports]

        self.og: Any = og
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)

    def answer(self, ids: Sequence[int], tokens: int) -> tuple[float, float]:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(ids) + tokens + 2, do_sample=False)
        generator = self.og.Generator(self.model, params)
        started = time.perf_counter()
        generator.append_tokens(np.array(ids, np.int32))
        generator.generate_next_token()  # the choice from the prompt's logits
        read = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        done = time.perf_counter()
        assert not generator.is_done(), "the model said its end token"
        return read - started, (done - read) / tokens


def main() -> None:
    args = parse_args()
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        pair: dict[str, Timed] = {"lrkit": Lrkit(args.bundle, threads)}
        if args.genai is not None:
            pair["genai"] = Genai(args.genai, threads)
        for length in args.prompt:
            rows.append({"threads": threads, "prompt_tokens": length, **compare(pair, length, args)})
            print(sentence(rows[-1]), flush=True)
        pair.clear()
        gc.collect()
    if args.json is not None:
        args.json.write_text(json.dumps(report(args, rows), indent=2) + "\n", encoding="utf-8")


def compare(pair: dict[str, Timed], length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians, quartiles and ratios of one prompt length."""
    draw = np.random.default_rng(length)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in pair}
    for repeat in range(args.repeats + 1):
        ids = draw.integers(FIRST_WORD, LAST_WORD, length).tolist()
        for name in sorted(pair, reverse=bool(repeat % 2)):
            times = pair[name].answer(ids, args.tokens)
            if repeat:  # the first warms up
                seen[name].append(times)
    made: dict[str, Any] = {}
    for place, what in enumerate(("prompt", "token")):
        for name, times in seen.items():
            made[f"{what}_sec_{name}"] = spread([each[place] for each in times])
        if "genai" in seen:
            ratios = [ours[place] / theirs[place] for ours, theirs in zip(seen["lrkit"], seen["genai"], strict=True)]
            made[f"{what}_ratio"] = spread(ratios)
    return made


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and all values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "values": values}


def sentence(row: dict[str, Any]) -> str:
    parts = [f"{row['threads']} threads, prompt of {row['prompt_tokens']}:"]
    for what in ("token", "prompt"):
        parts.append(f"{what} {1e3 * row[f'{what}_sec_lrkit']['median']:.1f} ms;")
        if f"{what}_ratio" in row:
            theirs, ratio = row[f"{what}_sec_genai"], row[f"{what}_ratio"]
            parts[-1] = parts[-1].rstrip(";") + (
                f", onnxruntime-genai {1e3 * theirs['median']:.1f} ms, "
                f"ratio {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f});"
            )
    return " ".join(parts).rstrip(";")


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from importlib.metadata import version

    manifest = OrtEngine.from_bundle(args.bundle, verify=False).sessions.bundle.manifest
    entry = manifest.programs["latent"]
    names = ["onnxruntime"] + (["onnxruntime-genai"] if args.genai is not None else [])
    versions = {name: version(name) for name in names}
    genai = None if args.genai is None else sum(file.stat().st_size for file in args.genai.glob("model.onnx*"))
    return {
        "schema": 1, "kind": "int4_decode", "rows": rows, "tokens": args.tokens, "repeats": args.repeats,
        "lrkit": {"block": manifest.target.get("int4", {}).get("block"), "accuracy_level": entry.accuracy_level,
                  "bytes_by_part": entry.bytes_by_part},
        "genai": {"bytes": genai},
        "provenance": collect(cpus=os.cpu_count(), versions=versions),
    }  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="int4: lrkit's program against onnxruntime-genai's model.")
    parser.add_argument("bundle", type=Path, help="a bundle of a shape")
    parser.add_argument("genai", type=Path, nargs="?", help="a folder that its builder wrote; without: lrkit alone")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of both (default 1 and 2)")
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 256], help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=24, help="spoken tokens that are timed (default 24)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of both (default 7)")
    parser.add_argument("--json", type=Path, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    if args.smoke:
        args.threads, args.prompt, args.tokens, args.repeats = [1], [12], 2, 2
    return args


if __name__ == "__main__":
    main()
