"""What transformers has of a family, opened from a tiny checkpoint: model, processor, image processor."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from transformers import AutoImageProcessor, AutoTokenizer

from lrkit.model.open_backbone import no_progress_bars
from tests.families.cases import Peer


def open_model(peer: Peer, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The family's own model."""
    with no_progress_bars():
        return getattr(transformers, peer.model).from_pretrained(folder, dtype=dtype).eval()


def open_image_processor(folder: Path) -> Any:
    """The family's own, on Pillow, as the folder describes it."""
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def open_processor(peer: Peer, folder: Path) -> Any:
    """The family's own, without a video processor: that needs torchvision, and no video ever enters."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = _template(folder) or tokenizer.chat_template
    saved = folder / "processor_config.json"
    values: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    parts = ("image_processor", "video_processor", "processor_class", "image_processor_type", "chat_template")
    own = {key: value for key, value in values.items() if key not in parts}
    if template is not None:  # families that have none take no such argument
        own["chat_template"] = template
    return _without_video(peer.processor)(open_image_processor(folder), tokenizer, **own)


@cache
def _without_video(name: str) -> Any:
    family = getattr(transformers, name)
    parts = [part for part in family.get_attributes() if "video" not in part]
    made = type(family)(name, (family,), {})
    made.get_attributes = classmethod(lambda _: parts)
    return made


def _template(folder: Path) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    file = folder / "chat_template.json"
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.is_file() else None


def messages(question: str, pictures: Sequence[Image], system: str | None = None) -> list[dict[str, Any]]:
    """One turn of a user, pictures before the question."""
    shown: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    told = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return [*told, {"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def inputs_of(processor: Any, question: str, pictures: Sequence[Image] = ()) -> Any:
    """What the family's own processor makes of a question, as its model takes it: tensors by name, a batch of one.
    Where there is no chat template, as the family's documentation asks: the question, then its pictures."""
    if getattr(processor, "chat_template", None) is None:
        text = question + processor.image_token * len(pictures)
        return processor(text=[text], images=list(pictures) or None, return_tensors="pt")
    return processor.apply_chat_template(
        messages(question, pictures), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def conversation_ids(
    processor: Any, earlier: Sequence[tuple[str, str]], question: str, pictures: Sequence[Image]
) -> list[int]:
    """Ids of a question behind earlier ones with their answers, the pictures before the first."""
    first, *others = [*(asked for asked, _ in earlier), question]
    turns = messages(first, pictures)
    for (_, answer), following in zip(earlier, others, strict=True):
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        turns.append({"role": "user", "content": [{"type": "text", "text": following}]})
    made = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return made["input_ids"][0].tolist()
