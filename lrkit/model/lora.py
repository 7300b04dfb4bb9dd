"""LoRA by peft, injected into the backbone in place (method section 6), saved in peft's own format."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from lrkit.checkpoints.checkpoint_folder import ADAPTER_WEIGHTS
from lrkit.contract.settings import LoraSettings
from lrkit.errors import CheckpointError
from lrkit.model.backbone import Backbone
from lrkit.pretrained import is_hub_id

NAME = "default"
_BASE_TAG = "base_model:adapter:"


@dataclass(frozen=True)
class Sides:
    """What LoRA adds to a matrix (out, in): up @ down * scale."""

    down: Tensor
    """(rank, in)."""
    up: Tensor
    """(out, rank)."""
    scale: float


class Adapter:
    """The LoRA of a backbone. Not a module: its weights live inside the backbone's, where peft put them."""

    def __init__(self, peft_model: PeftModel) -> None:
        self._peft = peft_model

    @classmethod
    def create(cls, backbone: Backbone, settings: LoraSettings) -> "Adapter":
        """Fresh LoRA (B is zero, so that nothing changes yet); the backbone's own weights become frozen."""
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,  # pyright: ignore
            lora_dropout=settings.dropout,
            target_modules=backbone.lora_targets,
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft's, not the user's
            return cls(get_peft_model(backbone.model, config, adapter_name=NAME))  # pyright: ignore

    @classmethod
    def load(cls, backbone: Backbone, folder: Path, settings: LoraSettings) -> "Adapter":
        """Reads an adapter that `save` wrote; its weights can be trained on. What it is comes from `settings`, those
        of reasoner.json, and from the backbone: adapter_config.json is a stranger's text, and is not followed.

        Raises:
            CheckpointError: the folder holds no adapter, or one made for another backbone or other settings.
        """
        file = folder / ADAPTER_WEIGHTS
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {ADAPTER_WEIGHTS}, so it holds no adapter; give a folder that `lrkit train` wrote"
            )
        stored, adapter = load_file(file), cls.create(backbone, settings)
        own = get_peft_model_state_dict(adapter._peft, adapter_name=NAME, save_embedding_layers=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                raise CheckpointError(
                    f"the adapter in {folder} does not fit its backbone: {name} has the shape {found.get(name)} there "
                    f"and {shapes.get(name)} here; give the adapter that was trained on this backbone"
                )
        set_peft_model_state_dict(adapter._peft, stored, adapter_name=NAME)
        return adapter

    def save(self, folder: Path, base: str) -> None:
        """Writes adapter_config.json, adapter_model.safetensors and peft's card, README.md; `base` names the backbone's
        weights."""
        self._peft.peft_config[NAME].base_model_name_or_path = base
        self._peft.save_pretrained(str(folder), selected_adapters=[NAME], save_embedding_layers=False)
        _name_base(folder / "README.md", base)

    def parameters(self) -> list[nn.Parameter]:
        """LoRA's own weights."""
        return [p for n, p in self._peft.named_parameters() if "lora_" in n]

    def sides(self, module: str) -> Sides | None:
        """What is added to the matrix of a module of the backbone; None: nothing."""
        found: Any = self._peft.get_base_model().get_submodule(module)
        if not isinstance(found, LoraLayer):
            return None
        down, up = (getattr(found, f"lora_{side}")[NAME].weight for side in "AB")
        return Sides(down, up, float(found.scaling[NAME]))

    def merge(self) -> None:
        """Adds the update into the backbone's weights, in place and for good."""
        self._peft.merge_and_unload()  # pyright: ignore


def _name_base(card: Path, base: str) -> None:
    """In peft's card, in place of where this machine has the base: its name on the hub, or nothing."""
    read: Any = ModelCard.load(card)
    read.data.base_model = base if is_hub_id(base) else None
    kept = [tag for tag in read.data.tags or [] if not tag.startswith(_BASE_TAG)]
    read.data.tags = [f"{_BASE_TAG}{base}", *kept] if is_hub_id(base) else kept
    read.save(card)


def freeze_all(module: nn.Module) -> None:
    """No gradient for any weight of `module`."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
