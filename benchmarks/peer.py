"""One prompt and one spoken token: lrkit's program with latents off, against the same model by transformers.exporters.

    python -m benchmarks.peer
    python -m benchmarks.peer --model tiny --precision fp32 int4 --threads 1 2
    python -m benchmarks.peer --model random:qwen2-vl-2b --layers 6 --tower-layers 4 --json profiles/reports/peer.json

optimum's exporter to ONNX cannot be installed beside transformers 5; transformers.exporters took its place. It writes
the plain model in several graphs, which a loop on the host drives (peer_model.py). lrkit's program has the loop inside.

Both have the same weights, ONNX Runtime, threads, picture, prompt and number of tokens, and no token ends an answer.
They are loaded in one process and interleaved: each repeat runs both, and the order alternates, so that other work on
the machine affects both alike. Ratios (peer over lrkit) are taken within each repeat. In float32 both must say the same
tokens, or the exit code is 1. In int4 both have blocks of the same size, rounded to nearest, in layers and head, and a
float tower and embedding.

A token of lrkit's is the time of an answer of N + 1 tokens less that of one token, over N.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.peer_model import Peer, export_peer, rounded
from lrkit.cli.shared.export_subject import open_subject
from lrkit.contract.bundle.manifest import Limits
from lrkit.data.shapes import load_shape
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.program import build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.tower_writer import write_tower
from lrkit.export.subject import Subject
from lrkit.export.targets.target import Int4, Target, limits_of
from lrkit.families.protocols import Geometry
from lrkit.provenance import collect
from lrkit.resources import random_shape
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.programs.feed import build_feed


def in_onnxruntime(file: Path, threads: int) -> Any:
    """A session of the program."""
    import onnxruntime as ort  # after lrkit, which tells it to report nothing

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class Lrkit:
    """A program, asked to speak at once."""

    def __init__(self, file: Path, subject: Subject, session: Any) -> None:
        """`session` runs `file`."""
        self.processor, self.session = subject.processor, session
        self.bytes = sum(part.stat().st_size for part in file.parent.iterdir())

    def answer(self, prompt: EncodedPrompt, tokens: int) -> tuple[float, float, list[int]]:
        """As `Peer.answer`."""
        first, _ = self._run(prompt, 1)
        both, said = self._run(prompt, tokens + 1)
        return first, (both - first) / max(tokens, 1), said

    def _run(self, prompt: EncodedPrompt, tokens: int) -> tuple[float, list[int]]:
        feed = build_feed(
            prompt.ids, prompt.grids, prompt.patches, image_id=self.processor.image_id,
            geometry=self.processor.geometry, think=False, fixed_latents=False, max_latent_steps=0,
            max_new_tokens=tokens,
        )  # fmt: skip
        started = time.perf_counter()
        said, count = self.session.run(["token_ids", "num_tokens"], feed)
        seconds = time.perf_counter() - started
        assert int(count) == tokens, "no token ends an answer"
        return seconds, said[:tokens].tolist()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for model in args.model:
        with tempfile.TemporaryDirectory() as work:
            rows += measure(model, Path(work), args)
    report = {
        "schema": 1, "kind": "peer", "rows": rows, "tokens": args.tokens, "repeats": args.repeats,
        "block": args.block, "accuracy_level": args.accuracy_level,
        "provenance": collect(cpus=os.cpu_count()),
    }  # fmt: skip
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if any(row["precision"] == "fp32" and not row["same_tokens"] for row in rows):
        sys.exit("in float32 the two said different tokens")


def measure(model: str, work: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each precision and number of threads."""
    name, plain = sliced(model, work, args), Target()
    subject, samples, _ = open_subject(name, None, 1, plain)
    prompt = subject.processor.encode_prompt(samples[0].images, samples[0].question)
    geometry: Geometry = subject.processor.geometry
    reasoner = subject.origins(False)["latent"].reasoner()
    host = export_peer(reasoner, prompt, geometry, work / "peer-fp32")
    weights = sum(parameter.numel() for parameter in reasoner.model.parameters())
    del reasoner
    gc.collect()
    rows: list[dict[str, Any]] = []
    for precision in args.precision:
        made = export_lrkit(name, target_of(precision, args), work / f"lrkit-{precision}", args.tokens + 1)
        if precision == "int4":
            rounded(work / "peer-fp32", work / "peer-int4", args.block, args.accuracy_level)
        for threads in args.threads:
            peer = Peer(work / f"peer-{precision}", host, threads)
            pair: dict[str, Any] = {"lrkit": Lrkit(made, subject, in_onnxruntime(made, threads)), "peer": peer}
            row = {"model": model, "layers": args.layers, "tower_layers": args.tower_layers, "weights": weights}
            row |= {"precision": precision, "threads": threads, "prompt_tokens": len(prompt.ids)}
            row |= {"patches": sum(map(geometry.num_patches, prompt.grids))}
            row |= {"bytes": {who: one.bytes for who, one in pair.items()}}
            rows.append(row | compare(pair, prompt, args))
            print(sentence(rows[-1]), flush=True)
            del pair, peer
            gc.collect()
    return rows


SMOKE = "smoke"
"""A shape that is as small as one can be; it is written to a file where it is asked for."""
SMALLEST = {
    "description": "a few thousand weights", "hidden_size": 32, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 32, "vocabulary": 256, "tied_embeddings": True, "vision_depth": 1, "vision_width": 32,
    "vision_heads": 2, "vision_mlp_ratio": 2, "patch_size": 8, "merge_size": 2, "image_size": [32, 48],
}  # fmt: skip


def sliced(model: str, work: Path, args: argparse.Namespace) -> str:
    """The name of the model with fewer layers, where that was asked of a shape."""
    if model == SMOKE:
        file = work / "smoke.json"
        file.write_text(json.dumps(SMALLEST), encoding="utf-8")
        return f"random:{file}"
    shape = random_shape(model)
    if shape is None or not (args.layers or args.tower_layers):
        return model
    published = load_shape(shape).model_dump(mode="json")
    config = published["config"]
    text, tower = config.get("text_config", config), config["vision_config"]
    text["num_hidden_layers"] = args.layers or text["num_hidden_layers"]
    text.pop("layer_types", None)
    tower["depth"] = args.tower_layers or tower["depth"]
    file = work / f"{shape}.json"
    file.write_text(json.dumps(published), encoding="utf-8")
    return f"random:{file}"


def target_of(precision: str, args: argparse.Namespace) -> Target:
    """What the peer has too: a float tower and embedding, the head rounded as the layers; no looks."""
    if precision == "fp32":
        return Target(scenes=False)
    how = Int4(block=args.block, accuracy_level=args.accuracy_level, head="int4", embedding="float", vision="float")
    return Target(precision="int4", scenes=False, int4=how)


def export_lrkit(name: str, target: Target, folder: Path, tokens: int) -> Path:
    """The program of the latent reasoner; it ends at no token that there is."""
    subject, _, _ = open_subject(name, None, 1, target)
    origin = subject.origins(False)["latent"]
    source, geometry = origin.source(), subject.processor.geometry
    limits: Limits = limits_of(target, origin.settings.think.max_latent_steps, geometry)
    limits = limits.model_copy(update={"max_new_tokens": tokens})
    dialect = writer_for(target, source.weight, source.dimensions.recipe.norm)
    tower = write_tower(source, geometry, dialect)
    program = build_program(Stack(source, dialect, limits, geometry), (source.dimensions.vocabulary,), tower)
    folder.mkdir(parents=True)
    ir.save(program.model, folder / "latent.onnx", external_data="latent.onnx.data")
    return folder / "latent.onnx"


def compare(pair: dict[str, Any], prompt: EncodedPrompt, args: argparse.Namespace) -> dict[str, Any]:
    """Both interleaved: seconds of each, and ratios within each turn."""
    seen: dict[str, dict[str, list[float]]] = {who: {"prompt": [], "token": []} for who in pair}
    said = {who: one.answer(prompt, args.tokens)[2] for who, one in pair.items()}  # not timed: the first run is slow
    for turn in range(args.repeats):
        for who in sorted(pair, reverse=bool(turn % 2)):
            first, each, _ = pair[who].answer(prompt, args.tokens)
            seen[who]["prompt"].append(first)
            seen[who]["token"].append(each)
    # What else the machine did meanwhile: processes that ran or waited, these two among them.
    made: dict[str, Any] = {"same_tokens": said["lrkit"] == said["peer"], "load": os.getloadavg()[0]}
    for what in ("prompt", "token"):
        for who in pair:
            made[f"{what}_sec_{who}"] = spread(seen[who][what])
        ratios = np.divide(seen["peer"][what], seen["lrkit"][what]).tolist()
        made[f"{what}_ratio"] = spread(ratios)
    return made


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and all values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "values": values}


def sentence(row: dict[str, Any]) -> str:
    parts = [f"{row['model']}, {row['precision']}, {row['threads']} threads, prompt of {row['prompt_tokens']}:"]
    for what in ("prompt", "token"):
        ours, theirs, ratio = (row[f"{what}_{name}"] for name in ("sec_lrkit", "sec_peer", "ratio"))
        parts.append(
            f"{what} {1e3 * ours['median']:.2f} ms, the peer's {1e3 * theirs['median']:.2f} ms, "
            f"ratio {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f});"
        )
    return " ".join([*parts, "same tokens" if row["same_tokens"] else "other tokens"])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["tiny"], help="checkpoints or random:SHAPE, of Qwen2-VL")
    parser.add_argument("--layers", type=int, help="layers of a shape's language model, fewer than it has")
    parser.add_argument("--tower-layers", type=int, help="layers of a shape's tower")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "int4"], default=["fp32", "int4"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of both (default 1)")
    parser.add_argument("--tokens", type=int, default=32, help="spoken tokens that are timed (default 32)")
    parser.add_argument("--repeats", type=int, default=11, help="turns of both (default 11)")
    parser.add_argument("--block", type=int, default=32, help="int4: weights per scale (default 32)")
    parser.add_argument("--accuracy-level", type=int, default=4, help="int4: of MatMulNBits (default 4)")
    parser.add_argument("--json", type=Path, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    if args.smoke:
        args.model, args.precision, args.tokens, args.repeats = [SMOKE], ["fp32"], 3, 2
    return args


if __name__ == "__main__":
    main()
