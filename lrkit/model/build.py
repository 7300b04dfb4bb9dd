"""Puts a reasoner together from backbone, adapter and extras. Reads and writes its extra weights.

Place in the pipeline: train/loop.py builds a fresh one; checkpoint.py restores a saved one.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from lrkit.checkpoints.checkpoint_folder import OWN_BACKBONE
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import CheckpointError
from lrkit.model.backbone import Backbone
from lrkit.model.lora import Adapter, freeze_all
from lrkit.model.reasoner import LatentReasoner

Trainable = Literal["lora", "tower", "full", "none"]
_BACKBONE = "model."
"""Before the names of the backbone's weights in a reasoner's."""


def build_reasoner(
    backbone: Backbone,
    settings: ReasonerSettings,
    latent_id: int,
    adapter: Adapter | None = None,
    trainable: Trainable = "none",
) -> LatentReasoner:
    """A reasoner ready to train or to answer.

    `trainable`: `lora` trains the adapter (a fresh one when `adapter` is None) and the extras, over a frozen
    backbone and tower; `tower` the vision tower alone, which a checkpoint then holds in place of the base's; `full`
    trains everything; `none` nothing.
    """
    if trainable == "lora" and adapter is None:
        adapter = Adapter.create(backbone, settings.lora)
    reasoner = LatentReasoner(backbone, settings, latent_id, adapter)
    set_trainable(reasoner, trainable)
    return reasoner


def set_trainable(reasoner: LatentReasoner, trainable: Trainable) -> None:
    """Says which weights get gradient; see `build_reasoner`."""
    freeze_all(reasoner)
    if trainable == "full":
        reasoner.float()  # an update is often less than bfloat16 can add to a weight
        for parameter in reasoner.parameters():
            parameter.requires_grad_(True)
    elif trainable == "tower":
        tower = {name: weight for name, weight in reasoner.model.named_parameters() if _of_tower(reasoner, name)}
        for parameter in tower.values():
            parameter.requires_grad_(True)
        reasoner.replaced = tuple(dict.fromkeys([*reasoner.replaced, *tower]))
    elif trainable == "lora":
        own = reasoner.adapter.parameters() if reasoner.adapter is not None else []
        for parameter in [*own, *reasoner.extra_parameters().values()]:
            parameter.requires_grad_(True)


def _of_tower(reasoner: LatentReasoner, name: str) -> bool:
    return reasoner.backbone.part_of(name) in ("vision", "merger")


def extra_state(reasoner: LatentReasoner) -> dict[str, Tensor]:
    """The weights of `lrkit.safetensors`: routers, step encodings, TokenSR, latent rows and scale, and those of the
    backbone that stand in place of the base's."""
    whole = reasoner.state_dict()
    state = {n: t for n, t in whole.items() if not n.startswith(_BACKBONE)}
    if reasoner.backbone.tied_embeddings:
        state.pop("latent.embedding_row_D", None)  # the same tensor as the head row
    state |= {f"{OWN_BACKBONE}{name}": whole[f"{_BACKBONE}{name}"] for name in reasoner.replaced}
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def load_extra_state(reasoner: LatentReasoner, state: Mapping[str, Tensor], missing_ok: bool = False) -> list[str]:
    """Puts `extra_state` back. With `missing_ok` (a new recipe adds routers to an old checkpoint) absent weights keep
    their fresh values, and weights that no longer have a place are left out. Returns the names that were skipped.

    Raises:
        CheckpointError: weights missing, too many, or of another shape.
    """
    own = extra_state(reasoner)
    skipped = sorted(set(state) ^ set(own))
    if skipped and not missing_ok:
        raise CheckpointError(
            f"lrkit.safetensors does not fit the settings in reasoner.json (first difference: {skipped[0]}); "
            "the two files must come from the same checkpoint"
        )
    usable = {name: tensor for name, tensor in state.items() if name in own}
    for name, tensor in usable.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}, but the settings in reasoner.json need "
                f"{tuple(own[name].shape)}; the two files must come from the same checkpoint"
            )
    placed = {_placed(name): tensor for name, tensor in usable.items()}
    reasoner.load_state_dict(placed, strict=False)
    return skipped


def _placed(name: str) -> str:
    """Name in lrkit.safetensors -> name in the reasoner."""
    return f"{_BACKBONE}{name.removeprefix(OWN_BACKBONE)}" if name.startswith(OWN_BACKBONE) else name
