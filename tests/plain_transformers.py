"""Asks a folder in plain transformers: `python plain_transformers.py ASKED.json`, in a process without lrkit.

ASKED.json: {folder, checkpoint (or null), questions: [{picture: file, question}], calls: [{mode, batch, ...}]}. Prints
for each call what was answered, by question, as one line of JSON. Pictures and prompts are prepared by transformers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

# AutoProcessor of Qwen2-VL asks for torchvision, which the tests do without: its parts, and what it does between them.
IMAGE, AROUND = "<|image_pad|>", ("<|vision_start|>", "<|vision_end|>")


def prepared(folder: str, questions: list[dict[str, str]], tokenizer: Any, pictures: Any) -> dict[str, Any]:
    seen = pictures([Image.open(one["picture"]).convert("RGB") for one in questions], return_tensors="pt")
    counts = (seen["image_grid_thw"].prod(1) // pictures.merge_size**2).tolist()
    texts = [
        f"{AROUND[0]}{IMAGE * count}{AROUND[1]}{one['question']}" for count, one in zip(counts, questions, strict=True)
    ]
    words = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    return {"input_ids": words.input_ids, "attention_mask": words.attention_mask, **seen}


def answers(model: Any, given: dict[str, Any], call: dict[str, Any]) -> list[dict[str, Any]]:
    options = {name: value for name, value in call.items() if name != "batch"}
    made = model.generate(**given, **options, return_dict_in_generate=True)
    start, end, pad = (
        given["input_ids"].shape[1],
        model.generation_config.eos_token_id,
        model.generation_config.pad_token_id,
    )
    ends = end if isinstance(end, list) else [end]
    found = []
    for index, row in enumerate(made.sequences.tolist()):
        assert row[:start] == given["input_ids"][index].tolist(), "the prompt begins what is returned"
        spoken = [token for token in row[start:] if token not in (*ends, pad)]
        steps = [] if made.get("replayed") is None else [step[index].tolist() for step in made.replayed]
        told = (
            {"latent_steps": made.latent_steps[index].item(), "halting": made.halting[index]}
            if steps or made.get("halting")
            else {}
        )
        found.append({"ids": spoken, "replayed": steps, **told})
    return found


def main(file: str) -> None:
    torch.set_num_threads(1)
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    folder = asked["folder"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tokenizer, pictures = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    for call in asked["calls"]:
        size, found = call["batch"], []
        for first in range(0, len(asked["questions"]), size):
            given = prepared(folder, asked["questions"][first : first + size], tokenizer, pictures)
            found += answers(model, given, call)
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
