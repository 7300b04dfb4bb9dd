"""Opens the backbone of a folder through its family's part `backbone` (lrkit/families/table.py)."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lrkit.checkpoints.tensors.stored import StoredTensor
from lrkit.checkpoints.whole_weights import check_backbone
from lrkit.contract.attention import Attention
from lrkit.errors import CheckpointError, UserError, one_line
from lrkit.families.common.patch_processor_file import visual_positions_in
from lrkit.families.layout import Layout
from lrkit.families.table import load_part, read_layout
from lrkit.model.backbone import Backbone
from lrkit.model.merged_patch_backbone import MergedPatchBackbone


class BackboneLoader(Protocol):
    """The part `backbone` of a family: a class whose objects are a `Backbone`."""

    def __call__(self, model: Any, /) -> Backbone:
        """The backbone around a model of transformers."""
        ...

    def from_pretrained(self, path: str, dtype: torch.dtype | None, config: Mapping[str, Any]) -> Backbone:
        """Loads a local folder, whose config.json lrkit has read as `config`; `dtype` None keeps the type on disk.
        Nothing is downloaded, and no code of the folder is run."""
        ...

    def from_weights(self, weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Backbone:
        """The backbone of these weights, by their names in transformers. A family may lack it, and then reads no
        checkpoint whose weights are quantized."""
        ...

    def config_from(self, values: Mapping[str, Any]) -> Any:
        """transformers' config object; `values` stay as they are."""
        ...


def backbone_loader(family: str) -> BackboneLoader:
    """The family's part on torch. Raises as `load_part`."""
    return load_part(family, "backbone", BackboneLoader, ("from_weights",))


def load_backbone(path: str, dtype: torch.dtype | None = None, processor: Path | None = None) -> Backbone:
    """Loads the backbone in a local folder through its family's row. transformers gets the config as lrkit has read it.
    Of weights that are quantized it gets the floats that they stand for, float32 where `dtype` is None: no shorter type
    holds them exactly. `processor` is the folder whose processor makes the prompts, and says where visual tokens are;
    None: the same.

    Raises:
        CheckpointError: nothing loadable there, or a family without a row; the message lists the rows.
    """
    backbone = _loaded(path, dtype)
    if isinstance(backbone, MergedPatchBackbone):
        backbone.visual_positions = visual_positions_in(processor or Path(path))
    return backbone


def _loaded(path: str, dtype: torch.dtype | None) -> Backbone:
    layout = read_layout(Path(path))
    weights = check_backbone(Path(path), layout)
    loader = backbone_loader(layout.family)
    with no_progress_bars():
        if all(isinstance(weight, StoredTensor) for weight in weights.values()):
            return loader.from_pretrained(path, dtype, layout.config)
        if not hasattr(loader, "from_weights"):
            raise CheckpointError(
                f"{path}: its weights are quantized, and the family {layout.family} reads floats only; give the model "
                "as it was before"
            )
        kind = dtype or torch.float32
        floats = {name: torch.from_numpy(weight.read()).to(kind) for name, weight in weights.items()}
        return loader.from_weights(floats, layout.config, kind)


def config_of(layout: Layout) -> Any:
    """The config object of transformers for a backbone, without its weights."""
    return backbone_loader(layout.family).config_from(layout.config)


def use_attention(backbone: Backbone, attention: Attention) -> None:
    """Has a model compute attention by other kernels than SDPA. Where they can run: lrkit/contract/attention.py.

    Raises:
        UserError: transformers does not have these kernels for this model.
    """
    if not attention.asked:
        return
    try:
        backbone.use_attention(attention)
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(
            f"attention {attention} cannot be used with this model ({one_line(error)}); choose attention sdpa"
        ) from error


@contextmanager
def no_progress_bars() -> Generator[None]:
    """Keeps transformers from drawing bars over lrkit's own output; restores its setting afterwards."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()
