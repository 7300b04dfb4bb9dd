"""How soon a pretrained language model binds what stands in a table, by the positions that visual tokens have.

    lrkit fetch-base smollm2-135m base
    python -m benchmarks.visual_positions base --schemes sequence 8,12,12 1,6,25 --updates 40

The tower is left out: a visual token is the embedding of the word that it would say, as a tower without fault
would make it. LoRA then learns to answer questions of one and two steps about drawn ledgers, several about each table.
A scheme is `sequence` (visual tokens count on like text) or sections of M-RoPE (rows and columns on axes of their
own); the same tables in the same order for each. Accuracy counts names and digits of answers.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from lrkit.contract.settings import LoraSettings
from lrkit.data.ledger.ledger_picture import CELL, TYPEFACES, draw_ledger_picture
from lrkit.data.ledger.ledger_questions import draw_question
from lrkit.data.ledger.ledger_rows import draw_ledger
from lrkit.data.ledger.ledger_words import LABELS
from lrkit.errors import LrkitError
from lrkit.families.common.mrope import mrope_positions
from lrkit.model.checkpoint import load_checkpoint
from lrkit.model.lora import Adapter
from lrkit.provenance import collect
from lrkit.runtime.encode.processor import Processor

_ROWS, _MOST, _STEPS = (4, 5, 6), 20, (1, 2)


class Tables:
    """Conversations about drawn tables as ids, positions (3, P) and which ids are learned."""

    def __init__(self, processor: Any, scheme: str, questions: int) -> None:
        self.processor, self.scheme, self.questions = processor, scheme, questions
        self.words = [processor.one_token(word) for word in LABELS]

    def draw(self, rng: np.random.Generator) -> tuple[list[int], np.ndarray, list[bool]]:
        """One table and its questions."""
        ledger = draw_ledger(rng, _ROWS, _MOST)
        drawn = draw_ledger_picture(ledger, "test", rng, TYPEFACES)
        width, height = drawn.picture.size
        ids = self._ids("<|im_start|>user\n")
        before, grid = len(ids), (1, 2 * height // CELL, 2 * width // CELL)
        ids += [self.words[label] for label in drawn.labels]
        image = [False] * before + [True] * (len(ids) - before)
        learned = [False] * len(ids)
        for _ in range(self.questions):
            asked = draw_question(ledger, int(rng.choice(_STEPS)), rng)
            question = self._ids(f"{asked.question}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._ids("".join(f" {step.result}" for step in asked.steps) + "<|im_end|>")
            ids += question + answer
            learned += [False] * len(question) + [True] * len(answer)
        image += [False] * (len(ids) - len(image))
        return ids, self._positions(image, grid), learned

    def _positions(self, image: list[bool], grid: tuple[int, int, int]) -> np.ndarray:
        if self.scheme == "sequence":
            return np.tile(np.arange(len(image)), (3, 1))
        return mrope_positions([int(one) for one in image], 1, [grid], 2)

    def _ids(self, text: str) -> list[int]:
        return list(self.processor.tokenizer.encode(text, add_special_tokens=False).ids)


def learn(base: str, scheme: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """Trains LoRA under one scheme; the loss and the accuracy of each tenth of the updates."""
    torch.manual_seed(args.seed)
    loaded, processor = load_checkpoint(base), Processor.from_folder(Path(base))
    tables, rng = Tables(processor, scheme, args.questions), np.random.default_rng(args.seed)
    inner: Any = loaded.reasoner.model.get_submodule("model.language_model")
    if scheme != "sequence":
        inner.config.rope_parameters["mrope_section"] = [int(part) for part in scheme.split(",")]
    rows = inner.embed_tokens.weight.detach().float()
    inner.to(args.dtype).train()
    Adapter.create(loaded.reasoner.backbone, LoraSettings(rank=16, alpha=16.0, dropout=0.0))
    trained = [weight for weight in inner.parameters() if weight.requires_grad]
    for weight in trained:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0)
    common = torch.tensor([processor.one_token(" "), processor.eos_id])
    seen: list[tuple[float, float]] = []
    for update in track(range(args.updates), scheme, console=Console(stderr=True)):
        optimizer.param_groups[0]["lr"] = args.lr * min(1.0, (update + 1) / 10)
        logits, wanted = _logits(inner, rows, [tables.draw(rng) for _ in range(args.batch)])
        loss = functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        telling = ~torch.isin(wanted, common)
        seen.append((float(loss.detach()), float((logits.detach().argmax(-1) == wanted)[telling].float().mean())))
    size = max(1, args.updates // 10)
    means = (np.mean(seen[start : start + size], 0) for start in range(0, len(seen), size))
    return [{"loss": float(loss), "accuracy": float(right)} for loss, right in means]


def _logits(
    model: Any, rows_TD: Tensor, batch: list[tuple[list[int], np.ndarray, list[bool]]]
) -> tuple[Tensor, Tensor]:
    """Logits of the learned tokens (L, T), and their ids (L,)."""
    longest = max(len(ids) for ids, _, _ in batch)
    ids_BP = torch.zeros(len(batch), longest, dtype=torch.long)
    positions, mask_BP, learned_BP = torch.zeros(3, *ids_BP.shape, dtype=torch.long), ids_BP.clone(), ids_BP.bool()
    for row, (ids, places, learned) in enumerate(batch):
        ids_BP[row, : len(ids)], mask_BP[row, : len(ids)] = torch.tensor(ids), 1
        positions[:, row, : len(ids)], learned_BP[row, : len(ids)] = torch.tensor(places), torch.tensor(learned)
    dtype = next(model.parameters()).dtype
    hidden = model(inputs_embeds=rows_TD[ids_BP].to(dtype), position_ids=positions, attention_mask=mask_BP)
    before = hidden.last_hidden_state[:, :-1][learned_BP[:, 1:]]
    return before.float() @ rows_TD.T, ids_BP[:, 1:][learned_BP[:, 1:]]


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except LrkitError as error:
        print(f"visual_positions.py: error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: argparse.Namespace) -> None:
    """Trains under one scheme after the other, and writes the report after each."""
    torch.set_num_threads(args.threads)
    asked = {name: str(value) for name, value in vars(args).items() if name != "json"}
    rows: dict[str, list[dict[str, float]]] = {}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    for scheme in args.schemes:
        rows[scheme] = learn(args.base, scheme, args)
        print(f"{scheme:>10}: " + " ".join(f"{one['accuracy']:.2f}" for one in rows[scheme]), flush=True)
        report = {"schema": 1, "kind": "visual-positions", "asked": asked, "rows": rows, "provenance": collect()}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")  # schemes take minutes


def _scheme(text: str) -> str:
    if text != "sequence" and not re.fullmatch(r"\d+,\d+,\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither sequence nor three sections, as in 8,12,12")
    return text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder that lrkit fetch-base made")
    parser.add_argument("--schemes", nargs="+", type=_scheme, default=["sequence", "8,12,12", "1,6,25"])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4, help="tables of an update")
    parser.add_argument("--questions", type=int, default=8, help="about each table")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", dest="dtype", action="store_const", const=torch.float32, default=torch.bfloat16)
    parser.add_argument("--json", type=Path, default=Path("visual-positions.json"))
    parser.add_argument("--smoke", action="store_true", help="two updates of two schemes")
    args = parser.parse_args()
    if args.smoke:
        args.updates, args.batch, args.questions, args.schemes = 2, 2, 2, ["sequence", args.schemes[-1]]
    return args


if __name__ == "__main__":
    main()
