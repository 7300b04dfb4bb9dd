"""One prompt and one spoken token on OpenVINO: lrkit's program with latents off, against OpenVINO GenAI.

    pip install openvino-genai nncf
    python -m benchmarks.peer_genai
    python -m benchmarks.peer_genai --model tiny --precision fp32 int4 --hint f32 bf16 --threads 1 2
    python -m benchmarks.peer_genai --model random:qwen2-vl-2b --layers 6 --json profiles/reports/peer-genai-2b.json

Both have the same weights, the same OpenVINO, threads, precision of products and number of tokens, and read the same
random words: GenAI's pipeline for language models takes no picture. No token ends an answer. They are loaded in one
process and interleaved as in peer.py, which says more. In float32 both must say the same tokens, or the exit code is 1.

In int4 both have symmetric blocks of the same size and an int8 embedding and head, and may round activations to int8:
OpenVINO's own default, which the peer has. NNCF rounds the peer's matrices, so tokens may differ. Keys and values are
held as each has them: lrkit's as floats; the peer's paged, in the type that OpenVINO chooses (int8 by default).
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peer import SMOKE, Lrkit, compare, export_lrkit, sentence, sliced
from benchmarks.peer_genai_model import Genai, export_genai, rounded
from lrkit.cli.shared.export_subject import open_subject
from lrkit.export.targets.target import Int4, Target
from lrkit.provenance import collect, installed_version
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.openvino.compiled import compile_graph
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions

PACKAGES = ("openvino", "openvino-genai", "nncf")


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for model in args.model:
        with tempfile.TemporaryDirectory() as work:
            rows += measure(model, Path(work), args)
    versions = {name: installed_version(name) for name in PACKAGES}
    report = {
        "schema": 1, "kind": "peer-genai", "rows": rows, "tokens": args.tokens, "repeats": args.repeats,
        "block": args.block, "versions": versions, "provenance": collect(cpus=os.cpu_count()),
    }  # fmt: skip
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if any((row["precision"], row["hint"]) == ("fp32", "f32") and not row["same_tokens"] for row in rows):
        sys.exit("in float32 the two said different tokens")


def measure(model: str, work: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each precision, hint and number of threads."""
    name = sliced(model, work, args)
    subject, _, _ = open_subject(name, None, 1, Target(dialect="standard"))
    origin = subject.origins(False)["latent"]
    source, reasoner = origin.source(), origin.reasoner()
    weights = sum(parameter.numel() for parameter in reasoner.model.parameters())
    prompt = words(args.prompt, source.dimensions.vocabulary, {subject.processor.image_id, source.latent_id})
    export_genai(reasoner, (source.latent_id, *source.dimensions.never_spoken), work / "peer-fp32")
    del reasoner, source
    gc.collect()
    rows: list[dict[str, Any]] = []
    for precision in args.precision:
        made = export_lrkit(name, target_of(precision, args.block), work / f"lrkit-{precision}", args.tokens + 1)
        if precision == "int4":
            rounded(work / "peer-fp32", work / "peer-int4", args.block)
        for hint in args.hint:
            for threads in args.threads:
                numbers = Numbers(hint, int8_activations=True)
                session = compile_graph(made, None, OpenVinoOptions(threads=threads), numbers)
                peer = Genai(work / f"peer-{precision}", hint, threads)
                pair: dict[str, Any] = {"lrkit": Lrkit(made, subject, session), "peer": peer}
                row = {"model": model, "layers": args.layers, "weights": weights, "precision": precision}
                row |= {"hint": hint, "threads": threads, "prompt_tokens": len(prompt.ids)}
                row |= {"bytes": {who: one.bytes for who, one in pair.items()}}
                rows.append(row | compare(pair, prompt, args))
                print(f"{hint}: {sentence(rows[-1])}", flush=True)
                del pair, peer, session
                gc.collect()
    return rows


def words(count: int, vocabulary: int, without: set[int]) -> EncodedPrompt:
    """A prompt of random words."""
    drawn = np.random.default_rng(0).integers(10, vocabulary, 2 * count).tolist()
    return EncodedPrompt([token for token in drawn if token not in without][:count], None, [])


def target_of(precision: str, block: int) -> Target:
    """What the peer has too: an embedding and a head in int8."""
    if precision == "fp32":
        return Target(dialect="standard", scenes=False)
    how = Int4(block=block, head="int8", embedding="int8")
    return Target(precision="int4", dialect="standard", scenes=False, int4=how)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny"], help="checkpoints or random:SHAPE, of Qwen2-VL")
    parser.add_argument("--layers", type=int, help="layers of a shape's language model, fewer than it has")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "int4"], default=["fp32", "int4"])
    parser.add_argument("--hint", nargs="+", choices=["f32", "bf16"], default=["f32"], help="precision of products")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of both (default 1)")
    parser.add_argument("--prompt", type=int, default=64, help="words of the prompt (default 64)")
    parser.add_argument("--tokens", type=int, default=32, help="spoken tokens that are timed (default 32)")
    parser.add_argument("--repeats", type=int, default=11, help="turns of both (default 11)")
    parser.add_argument("--block", type=int, default=128, help="int4: weights per scale (default 128)")
    parser.add_argument("--json", type=Path, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    args.tower_layers = 1 if args.layers else None  # the peer has none
    if args.smoke:
        args.model, args.precision, args.tokens, args.repeats, args.prompt = [SMOKE], ["fp32"], 3, 2, 8
    return args


if __name__ == "__main__":
    main()
