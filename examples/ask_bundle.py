"""A small app around the SDK: the same question about every picture of a folder, from several threads.

    lrkit export tiny --int4 -o rooms-bundle
    python examples/ask_bundle.py rooms-bundle pictures/ answers/ "Take 4 hops. Which room are you in? Start in room 3"

Leaves answers.jsonl and, per picture, a drawing of where the model looked in each latent step. Needs the base install
only: no torch is imported.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lrkit import LrkitError, Reasoner

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def main() -> int:
    args = parse_args()
    try:
        # One reasoner serves all threads; each answer runs on one thread of ONNX Runtime, so that they do not compete.
        reasoner = Reasoner.load(args.bundle, threads=1)
    except LrkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pictures = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() in PICTURES)
    args.answers.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.workers) as pool:
        rows = list(pool.map(lambda picture: answer_one(reasoner, picture, args.question, args.answers), pictures))
    with (args.answers / "answers.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    failed = [row for row in rows if "error" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} pictures answered, see {args.answers}")
    return 1 if failed else 0


def answer_one(reasoner: Reasoner, picture: Path, question: str, folder: Path) -> dict[str, object]:
    """One row of answers.jsonl; a picture that cannot be used becomes a row that says why."""
    try:
        answer = reasoner.ask(picture, question)
        answer.save_trace(folder / f"{picture.stem}.trace.png")
    except LrkitError as error:
        return {"picture": picture.name, "error": str(error)}
    return {
        "picture": picture.name,
        "answer": str(answer),
        "latent_steps": answer.latent_steps,
        "ar_steps": answer.ar_steps,
        "seconds": round(answer.timings["total"], 4),
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask a bundle the same question about every picture of a folder.")
    parser.add_argument("bundle", type=Path, help="a folder that `lrkit export` wrote")
    parser.add_argument("pictures", type=Path, help="a folder of pictures")
    parser.add_argument("answers", type=Path, help="where answers.jsonl and the traces go")
    parser.add_argument("question")
    parser.add_argument("--workers", type=int, default=2, help="pictures answered at once (default 2)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
