"""Names the weights behind the torch engine: scenes are bound to them.

Place in the pipeline: `TorchEngine.digest` -> scene files. A checkpoint is named by its files, because what is computed
from them (an adapter added to its matrices) may be rounded otherwise on another machine. A model that was never in
files is named by its numbers.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from lrkit.checkpoints.checkpoint_folder import CONFIG_FILE, HOLD_WEIGHTS
from lrkit.files import sha256
from lrkit.model.reasoner import LatentReasoner


def weight_files(folder: Path, base: Path) -> tuple[Path, ...]:
    """What decides about the weights of a checkpoint over a backbone's folder."""
    found = [path for place in (base, folder) for path in sorted(place.iterdir()) if path.suffix in HOLD_WEIGHTS]
    return tuple(dict.fromkeys([base / CONFIG_FILE, *found]))


def weights_digest(reasoner: LatentReasoner, files: Sequence[Path]) -> str:
    """Of weights, settings and number type; reads all `files`, or without any all numbers.

    Raises:
        OSError: a file is gone.
    """
    settings = reasoner.settings.model_dump_json(exclude={"distill", "lora"})
    found = hashlib.sha256(f"{settings} {reasoner.backbone.embedding_rows().dtype}".encode())
    if files:
        for path in files:
            found.update(f"{path.name} {sha256(path)[0]}".encode())
        return found.hexdigest()
    for name, tensor in sorted(reasoner.state_dict().items()):
        found.update(f"{name} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
