"""Asks a folder in plain transformers: `python plain_transformers.py ASKED.json`, in a process without lrkit.

ASKED.json: {folder, questions: [{picture: file, question}], calls: [{batch, what `generate` is given, and
trusted_at_loading where the folder's `generate` is put on by loading}]}. Prints for each call what was answered, by
question, as one line of JSON. Pictures and prompts are prepared by transformers.
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


def answers(model: Any, given: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    """What was said without the prompt and the end token, and where latents were asked for, how they went."""
    made = model.generate(**given, **options, return_dict_in_generate=True)
    start, config = given["input_ids"].shape[1], model.generation_config
    silent = {
        config.pad_token_id,
        *([config.eos_token_id] if isinstance(config.eos_token_id, int) else config.eos_token_id),
    }
    found: list[dict[str, Any]] = []
    for index, row in enumerate(made.sequences.tolist()):
        assert row[:start] == given["input_ids"][index].tolist(), "the prompt begins what is returned"
        found.append({"ids": [token for token in row[start:] if token not in silent]})
        if "halting" in made:
            found[-1]["latent_steps"], found[-1]["halting"] = made.latent_steps[index].item(), made.halting[index]
            found[-1]["replayed"] = [step[index].tolist() for step in made.get("replayed") or ()]
    return found


def main(file: str) -> None:
    torch.set_num_threads(1)
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    folder = asked["folder"]
    tokenizer, pictures = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    models = {
        trusted: AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trusted)
        for trusted in {call.get("trusted_at_loading", False) for call in asked["calls"]}
    }
    for call in asked["calls"]:
        options = {name: value for name, value in call.items() if name not in ("batch", "trusted_at_loading")}
        found: list[dict[str, Any]] = []
        for first in range(0, len(asked["questions"]), call["batch"]):
            given = prepared(folder, asked["questions"][first : first + call["batch"]], tokenizer, pictures)
            if "custom_generate" not in call:  # that one finds out by itself
                image_id = models[False].config.image_token_id
                given["mm_token_type_ids"] = (given["input_ids"] == image_id).long()
            found += answers(models[call.get("trusted_at_loading", False)], given, options)
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
