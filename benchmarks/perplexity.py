"""Perplexity of checkpoints and of programs on the same tokens of a text.

    python benchmarks/perplexity.py smollm smollm-int4 --text held-out.txt --tokens 6144 --json perplexity.json

Each model is a checkpoint, a plain Hugging Face folder, or a bundle; the JSON is {"name": perplexity}. The text is cut
into windows of 512 tokens, and every token but the first of a window is predicted from those before it in the window.

A program gives logits behind the last token of a call only. So its tokens are asked one after the other, each behind
the keys that the calls before it left, as a question is asked behind a look at a picture: the program itself is
measured, and no other graph. It takes as long as speaking the text does.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.bundle.io_spec import LEFT, PAST
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import LrkitError, UserError
from lrkit.files import read_text, write_json
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.programs.feed import build_feed, no_past
from lrkit.runtime.engines.table import EngineChoice, open_engine

WINDOW = 512
Logits = Callable[[list[int]], Iterator[np.ndarray]]
"""Ids of a window -> the logits (W,) behind each of them but the last."""


def perplexity(logits: Logits, windows: Sequence[list[int]], said: str = "") -> float:
    """exp of the mean negative log likelihood of every token but the first of its window."""
    lost: list[float] = []
    for number, ids in enumerate(windows, start=1):
        for row, token in zip(logits(ids), ids[1:], strict=True):
            wide = row.astype(np.float64)
            lost.append(float(np.logaddexp.reduce(wide) - wide[token]))
        if said:
            print(f"{said}: {number} of {len(windows)} windows, {np.exp(np.mean(lost)):.3f}", flush=True)
    return float(np.exp(np.mean(lost)))


def windows_of(processor: Processor, text: str, tokens: int, window: int) -> list[list[int]]:
    """The first `tokens` ids of a text in windows.

    Raises:
        UserError: the text has fewer.
    """
    ids = list(processor.tokenizer.encode(text).ids)
    if len(ids) < tokens:
        raise UserError(f"the text has {len(ids)} tokens, and {tokens} were asked for; give fewer with --tokens")
    return [ids[start : min(start + window, tokens)] for start in range(0, tokens, window) if tokens - start > 1]


def of_torch(folder: Path) -> tuple[Processor, Logits]:
    """A checkpoint in float32, its adapter merged."""
    import torch

    from lrkit.model.checkpoint import load_checkpoint

    reasoner = load_checkpoint(folder, dtype=torch.float32).reasoner
    _refuse_choosing(folder, reasoner.settings)
    reasoner.merge_adapter()

    def logits(ids: list[int]) -> Iterator[np.ndarray]:
        with torch.inference_mode():
            yield from reasoner.backbone.model(input_ids=torch.tensor([ids[:-1]])).logits[0].float().numpy()

    return Processor.from_folder(folder), logits


def of_program(folder: Path, threads: int | None) -> tuple[Processor, Logits]:
    """The first program of a bundle, in the engine that it is meant for."""
    engine: Any = open_engine(folder, EngineChoice.of(None, {}, threads=threads))
    spec, processor = engine.entry.spec, engine.processor
    _refuse_choosing(folder, engine.settings)
    if not any(one.name.startswith(LEFT) for one in spec.outputs):
        raise UserError(f"{folder}: its program takes no keys of an earlier call; export it with scenes=true")
    session, empty = engine.sessions.of(engine.role), no_past(spec)
    names = [one.name for one in spec.outputs if one.name in ("prefill_logits", f"{LEFT}keys")]

    def logits(ids: list[int]) -> Iterator[np.ndarray]:
        past = dict(empty)
        for count in range(1, len(ids)):
            feed = build_feed(
                ids[:count], [], None, geometry=processor.geometry, image_id=processor.image_id, think=False,
                fixed_latents=False, max_latent_steps=0, max_new_tokens=1, spec=spec, past=past,
            )  # fmt: skip
            out = dict(zip(names, session.run(names, feed), strict=True))
            past[f"{PAST}keys"] = np.concatenate([past[f"{PAST}keys"], out[f"{LEFT}keys"]], axis=3)
            if f"{PAST}ids" in past:
                past[f"{PAST}ids"] = np.asarray(ids[:count], np.int64)
            yield out["prefill_logits"]

    return processor, logits


def _refuse_choosing(folder: Path, settings: ReasonerSettings) -> None:
    if settings.routing.depth or settings.prune.active:
        raise UserError(
            f"{folder}: what it routes or prunes depends on how many tokens are read at once, so that its perplexity "
            "is not one number; give its base, or a model without routing and pruning"
        )


def measure(models: Sequence[str], text: str, tokens: int, window: int, threads: int | None) -> dict[str, float]:
    """Name of a model's folder -> its perplexity.

    Raises:
        LrkitError: a model that cannot be read or has no single perplexity, or too short a text.
    """
    found = dict[str, float]()
    for model in models:
        bundle = is_bundle(model)
        processor, logits = of_program(Path(model), threads) if bundle else of_torch(resolve_checkpoint(model))
        found[Path(model).name] = perplexity(logits, windows_of(processor, text, tokens, window), model)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints, plain folders, bundles")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--threads", type=int, help="of a program")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    try:
        found = measure(asked.models, read_text(asked.text, UserError), asked.tokens, asked.window, asked.threads)
        if asked.json is not None:
            write_json(asked.json, found)
    except LrkitError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
