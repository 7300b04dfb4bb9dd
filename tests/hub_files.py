"""Files in the schemas of published data sets, as their publishers write them, with small pictures."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from tests.pictures import photograph

RATIONALE = "The map has a legend. Green stands for 3.5 m, i.e. low land. So the answer is B."
PUBLISHED_SPLITS = ("train", "validation", "test")


def encoded(seed: int, size: tuple[int, int] = (48, 32), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    photograph(seed, size).save(file, kind)
    return file.getvalue()


def m3cot(number: int) -> dict[str, Any]:
    return {
        "id": f"geography-{number}", "category": "maps", "image_id": str(number), "question": "Which land is low?",
        "choices": ["the blue one", "the green one", "none"], "context": "" if number % 2 else "Look at the map.",
        "answer": "B", "rationale": RATIONALE, "split": "train",
        "image": {"bytes": encoded(number), "path": f"{number}.png"}, "domain": "social", "topic": "geography",
    }  # fmt: skip


M3COT = {name: datasets.Value("string") for name in m3cot(0)} | {
    "choices": datasets.List(datasets.Value("string")),
    "image": datasets.Image(),
}


def scienceqa(number: int) -> dict[str, Any]:
    pictured = {"bytes": encoded(number), "path": None} if number % 2 else None
    return {
        "image": pictured, "question": "What is it?", "choices": ["a bird", "a plane"], "answer": number % 2,
        "hint": "", "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "biology",
        "category": "animals", "skill": "name it", "lecture": "Birds have feathers.",
        "solution": "It has feathers.\n\nSo it is a bird." if number % 2 else "",
    }  # fmt: skip


SCIENCEQA = {name: datasets.Value("string") for name in scienceqa(0)} | {
    "image": datasets.Image(),
    "choices": datasets.List(datasets.Value("string")),
    "answer": datasets.Value("int8"),
}


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None) -> Path:
    """One parquet file; with `features` it says which columns are pictures, as `datasets` writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {name: [] for name in features or {}}
    made = datasets.Dataset.from_dict(columns, None if features is None else datasets.Features(features))
    made.to_parquet(str(file))
    return file


def write_m3cot(folder: Path, counts: Sequence[int] = (6, 3, 3)) -> Path:
    """A folder as the hub has it: a parquet file a split."""
    for split, count in zip(PUBLISHED_SPLITS, counts, strict=True):
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", [m3cot(n) for n in range(count)], M3COT)
    return folder


def write_json(file: Path, values: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def write_gqa(folder: Path) -> Path:
    """Questions in JSON, pictures beside them, as the publisher packs them."""
    (folder / "images").mkdir(parents=True)
    photograph(1, (40, 40)).save(folder / "images" / "n161313.jpg")
    operations = [
        {"operation": "select", "argument": "bowl (412)", "dependencies": []},
        {"operation": "query", "argument": "color", "dependencies": [0]},
    ]
    row = {
        "question": "What color is the bowl?",
        "imageId": "n161313",
        "answer": "red",
        "semantic": operations,
        "fullAnswer": "The bowl is red.",
        "semanticStr": "select: bowl (412)->query: color [0]",
        "isBalanced": True,
    }
    return write_json(folder / "train_balanced_questions.json", {"02930152": row, "07333408": row})


def write_tabmwp(folder: Path) -> Path:
    """Problems of our own in the published layout."""
    (folder / "tables").mkdir(parents=True)
    free = {
        "question": "How many cups are there?",
        "choices": None,
        "answer": "1,012",
        "unit": "cups",
        "table_title": "Cups in two shops",
        "table": "Shop | Cups\nHill | 1,000\nLake | 12",
        "solution": "Read the table.\n\n1,000 + 12 = 1,012\n\nThere are 1,012 cups.",
        "grade": 3,
    }
    chosen = {
        "question": "Are there more cups?",
        "choices": ["yes", "no"],
        "answer": "no",
        "unit": None,
        "table_title": None,
        "table": "Shop | Cups\nHill | 12",
        "solution": "There are fewer. So, no.",
        "grade": 2,
    }
    problems = {"17": free, "23": chosen, "42": free}
    for name in problems:
        photograph(int(name), (60, 30)).save(folder / "tables" / f"{name}.png")
    return write_json(folder / "problems_test.json", problems)


def write_onethinker(folder: Path) -> Path:
    """Rows of both kinds: conversations for tuning, problems for reinforcement."""
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (30, 30), "red").save(folder / "pictures" / "a.jpg")
    asked = "<image>What is red?\nPlease answer this question based on the visual content.Provide your thinking ..."
    said = "<think>The square is one colour. It is red.</think>\n<answer>the square</answer>"
    talk = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    problem = {
        "problem_id": 7,
        "problem": "Which colour?",
        "data_type": "image",
        "problem_type": "multiple choice",
        "options": ["A. red", "B. blue"],
        "process": "",
        "solution": "<answer>A</answer>",
    }
    rows = [{**talk, "images": ["./pictures/a.jpg"]}, {**problem, "images": ["pictures/a.jpg"]}]
    return write_json(folder / "onethinker_sft_image.json", rows)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "m3cot": write_m3cot,
    "scienceqa": lambda folder: write_parquet(folder / "test.parquet", [scienceqa(n) for n in range(4)], SCIENCEQA),
    "gqa": write_gqa,
    "onethinker": write_onethinker,
    "tabmwp": write_tabmwp,
}  # fmt: skip
"""Schema -> what writes a data set in it; gives the name that lrkit takes."""
