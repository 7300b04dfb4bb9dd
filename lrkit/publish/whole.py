"""A checkpoint as one folder that plain transformers loads: LoRA added into the backbone's weights, and a function for
`model.generate(custom_generate=...)` that takes latent steps without lrkit.

    model.safetensors, config.json, generation_config.json   AutoModelForImageTextToText.from_pretrained(folder)
    custom_generate/generate.py                              latent_generate.py, a copy
    reasoner.json, lrkit.safetensors, prompt.json, ...       what lrkit reads: the folder is a checkpoint like others

Place in the pipeline: checkpoint -> `write_whole` -> push.py.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from lrkit.checkpoints.checkpoint_folder import base_folder, is_plain, read_info
from lrkit.checkpoints.trained_in import TrainedIn
from lrkit.config import load_config
from lrkit.contract.prompt import PromptFormat
from lrkit.errors import CheckpointError
from lrkit.files import read_json
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.model.reasoner import LatentReasoner
from lrkit.pretrained import is_hub_id
from lrkit.publish.card_facts import MERGED_BASE
from lrkit.publish.published_files import GENERATE_FILE, GENERATE_SOURCE, PROCESSOR_FILES

MAX_NEW_TOKENS = 256
"""Longest answer where none is asked for, as the engine on torch has it; transformers would stop at 20."""


def write_whole(source: Path, target: Path, allow_download: bool = False) -> None:
    """Writes `target`, whole or not at all, in the number type that the checkpoint was trained in. Baselines stay
    behind: they are folders of their own. A base that is named by a hub id is fetched only with `allow_download`.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or a plain Hugging Face folder, which has nothing to add.
        FileError: the folder cannot be written.
    """
    if is_plain(source):
        raise CheckpointError(f"{source} is a plain Hugging Face folder without an adapter to add; leave --merge out")
    info = read_info(source)
    base = base_folder(source, info, allow_download)
    trained = TrainedIn.of(info, str(base)).backbone
    dtype = None if trained is None else getattr(torch, trained)
    loaded = load_checkpoint(source, dtype=dtype, allow_download=allow_download)
    reasoner = loaded.reasoner
    reasoner.merge_adapter()
    _give_latent_rows(reasoner)
    model: Any = reasoner.model
    model.generation_config = _how_to_generate(model.generation_config, source, reasoner.latent.token_id)
    told = {key: value for key, value in info.items() if key not in ("base", "baselines")}
    if is_hub_id(loaded.base) and not Path(loaded.base).is_dir():
        told[MERGED_BASE] = loaded.base
    files = _Files([source, base])
    save_checkpoint(target, reasoner, files, None, told)


class _Files:
    """The processor's files of a checkpoint as they are, and the function beside them."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def save(self, folder: Path) -> None:
        """Each from the first folder that has it: a base may hold files that lrkit does not read."""
        for name in PROCESSOR_FILES:
            if (found := next((one / name for one in self._folders if (one / name).is_file()), None)) is not None:
                shutil.copyfile(found, folder / name)
        write_generate(folder)


def write_generate(folder: Path) -> None:
    """Puts the function for `custom_generate` into a folder."""
    file = folder / GENERATE_FILE
    file.parent.mkdir(exist_ok=True)
    shutil.copyfile(GENERATE_SOURCE, file)


@torch.no_grad()
def _give_latent_rows(reasoner: LatentReasoner) -> None:
    """The trained rows of `<|latent|>` into the matrices, so that plain logits are the reasoner's in all columns."""
    latent, backbone = reasoner.latent, reasoner.backbone
    backbone.head_rows()[latent.token_id] = latent.head_row_D.to(backbone.head_rows().dtype)
    if not backbone.tied_embeddings:
        backbone.embedding_rows()[latent.token_id] = latent.embedding_row_D.to(backbone.embedding_rows().dtype)


def _how_to_generate(base: GenerationConfig, source: Path, latent_id: int) -> GenerationConfig:
    """Greedy, to lrkit's ends, and without `<|latent|>`: a plain `generate` then answers in words. Nothing else of the
    base stays: a repetition penalty (Qwen2.5-VL publishes 1.05) would say other words than those that were measured."""
    told = {name: getattr(base, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if (source / "prompt.json").is_file() and (source / "tokenizer.json").is_file():
        names = load_config(PromptFormat, read_json(source / "prompt.json", CheckpointError)).tokens
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        ends = [tokenizer.token_to_id(name) for name in (names.eos, *names.more_ends)]
        told |= {"eos_token_id": ends, "pad_token_id": tokenizer.token_to_id(names.pad)}
    return GenerationConfig(**told, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, suppress_tokens=[latent_id])
