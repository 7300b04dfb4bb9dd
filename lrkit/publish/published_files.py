"""Which files of a checkpoint or a bundle are published, and which stay behind, each with the reason. Torch-free.

Weights are safetensors or what bundle.json lists. A pickle runs code where it is opened, so none is ever sent: state.pt
of a run, and .bin or .pt files that somebody put there.

Place in the pipeline: push.py asks for `parts_of`; pull.py takes `CHECKPOINT_PATTERNS`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from lrkit.checkpoints.checkpoint_folder import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    EXTRAS_FILE,
    INFO_FILE,
    base_of,
    is_plain,
    read_info,
    read_settings,
)
from lrkit.checkpoints.whole_weights import check_weights
from lrkit.contract.bundle.bundle_folder import is_bundle, open_bundle
from lrkit.contract.bundle.manifest import BUNDLE_FILE
from lrkit.errors import BundleError, CheckpointError, UserError, clean
from lrkit.pretrained import is_hub_id

CARD_FILE = "README.md"
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "prompt.json",
)  # fmt: skip
GENERATE_FILE = "custom_generate/generate.py"
GENERATE_SOURCE = Path(__file__).with_name("latent_generate.py")
REPORTS = ("eval.json", "report.json")
"""What the card is written from, where it lies in the folder; it is not sent."""
_OWN_FILES = (
    CONFIG_FILE, "generation_config.json", ADAPTER_FILE, ADAPTER_WEIGHTS, EXTRAS_FILE, INFO_FILE, "model.safetensors",
    "model.safetensors.index.json", "model-*-of-*.safetensors",
)  # fmt: skip
_BY_HAND = ("LICENSE*", "NOTICE*")
CHECKPOINT_PATTERNS = (*_OWN_FILES, *PROCESSOR_FILES, *_BY_HAND, CARD_FILE, GENERATE_FILE)
"""All that a published checkpoint may hold. A pickle fits none of these."""
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".mar", ".npy", ".npz")
"""Endings of files that may run code where they are opened."""
_WHY = {
    "state.pt": "training state, a pickle",
    "heartbeat.json": "of a training run",
    "metrics.jsonl": "of a training run",
    "run.json": "of a training run",
    "recipe.yaml": "of a training run",
    "events.out.tfevents.*": "TensorBoard",
    "*.gguf": "no safetensors",
}
Kind = Literal["checkpoint", "bundle"]


@dataclass(frozen=True)
class Part:
    """A file that is published."""

    name: str
    """Where it stands, with forward slashes."""
    content: Path | bytes
    """A file as it is, or what is sent in its place."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Left:
    """A file or folder that stays behind."""

    name: str
    why: str


@dataclass(frozen=True)
class Parts:
    """What a folder is, and what of it is published."""

    kind: Kind
    folder: Path
    sent: tuple[Part, ...]
    """Without the card."""
    left: tuple[Left, ...]

    @property
    def names(self) -> set[str]:
        """Of the files that are sent."""
        return {part.name for part in self.sent}


def parts_of(folder: Path) -> Parts:
    """What of a folder is published.

    Raises:
        BundleError, CheckpointError: it is damaged, or not complete where others have nothing but the hub.
        UserError: it is neither a checkpoint nor a bundle.
    """
    if is_bundle(folder):
        return _of_bundle(folder)
    if not (folder / INFO_FILE).is_file() and not is_plain(folder):
        seen = "is neither a checkpoint nor a bundle" if folder.is_dir() else "is no folder"
        raise UserError(
            f"{clean(str(folder))} {seen}; give what `lrkit train` or `lrkit export` wrote, or a shipped name"
        )
    return _of_checkpoint(folder)


def is_own(name: str) -> bool:
    """Whether lrkit may have put a file of that name into a repository, and so may take it away again."""
    return any(fnmatch(name, pattern) for pattern in (*_OWN_FILES, *PROCESSOR_FILES, GENERATE_FILE))


def _of_bundle(folder: Path) -> Parts:
    bundle = open_bundle(folder)
    names = [BUNDLE_FILE, *bundle.manifest.files]
    for name in names:
        if name.endswith(PICKLES):
            raise BundleError(f"{folder}: lists {clean(name)}, and pickles are never published; export it again")
    sent = tuple(Part(name, folder / name) for name in names)
    return Parts("bundle", folder, sent, tuple(_left(folder, {*names, CARD_FILE})))


def _of_checkpoint(folder: Path) -> Parts:
    info = read_info(folder)
    read_settings(folder, info)
    base = base_of(folder, info)
    if any(folder.glob("*.gguf")):
        raise CheckpointError(
            f"{clean(str(folder))} holds weights as GGUF, and only safetensors are published; give the model as it was "
            "before"
        )
    if info.get("base") is None:
        check_weights(folder)
    elif not is_hub_id(base) or Path(base).is_dir():
        raise CheckpointError(
            f"{clean(str(folder))} adapts the backbone in {clean(base)}, a folder that nobody else has; add --merge "
            "(merge=True) for one whole model, or train from a model of the hub"
        )
    elif not (folder / EXTRAS_FILE).is_file():
        raise CheckpointError(f"{clean(str(folder))} has no {EXTRAS_FILE}; copy the checkpoint again")
    names = sorted(
        file.relative_to(folder).as_posix()
        for pattern in CHECKPOINT_PATTERNS
        for file in folder.glob(pattern)
        if file.is_file() and file.name != CARD_FILE
    )
    parts = {name: Part(name, folder / name) for name in names}
    if info["latent_id"] is not None:
        parts.setdefault(GENERATE_FILE, Part(GENERATE_FILE, GENERATE_SOURCE))
        alone = {key: value for key, value in info.items() if key != "baselines"}
        if alone != info:  # they are folders beside this one, which the hub does not have
            parts[INFO_FILE] = Part(INFO_FILE, (json.dumps(alone, indent=2) + "\n").encode())
    known = {*parts, CARD_FILE, GENERATE_FILE.partition("/")[0]}
    return Parts("checkpoint", folder, tuple(parts.values()), tuple(_left(folder, known)))


def _left(folder: Path, sent: set[str]) -> Iterator[Left]:
    """Everything else at the top of a folder; below it only what the sent names lead into is looked through."""
    opened = {name.partition("/")[0] for name in sent if "/" in name}
    for file in sorted(folder.iterdir()):
        if file.name in sent:
            continue
        if file.name in opened and file.is_dir():
            inside = (one for one in sorted(file.rglob("*")) if one.is_file())
            names = [one.relative_to(folder).as_posix() for one in inside]
            yield from (Left(name, _why(name)) for name in names if name not in sent)
        else:
            yield Left(file.name + ("/" if file.is_dir() else ""), _why(file.name))


def _why(name: str) -> str:
    named = next((why for pattern, why in _WHY.items() if fnmatch(name, pattern)), None)
    if named is not None:
        return named
    if name.endswith(PICKLES):
        return "a pickle"
    return "the card is written from it" if name in REPORTS else "not part of it"
