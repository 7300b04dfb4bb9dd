"""What is exported: the reasoners behind one bundle. Each can be read matrix by matrix, and later be loaded whole for
the comparison with torch.

Place in the pipeline: a checkpoint (`CheckpointSubject`) or a shape with random weights (shape.py) -> bundle.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lrkit.checkpoints.checkpoint_folder import ADAPTER_FILE, base_folder, baselines_of, read_info, read_settings
from lrkit.checkpoints.quantized.table import quantization_of
from lrkit.checkpoints.whole_weights import check_weights
from lrkit.contract.bundle.manifest import AdapterKind, Role
from lrkit.contract.generated import WITHOUT_LATENTS
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError
from lrkit.export.weights.source import Source
from lrkit.export.weights.streaming import stream_source
from lrkit.model.checkpoint import load_checkpoint
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.checks.checkpoint_files import check_fit
from lrkit.runtime.encode.processor import Processor


class Origin(Protocol):
    """One reasoner."""

    @property
    def settings(self) -> ReasonerSettings:
        """What it was built with."""
        ...

    @property
    def adapted(self) -> bool:
        """Whether it has an adapter."""
        ...

    def keeps(self, asked: AdapterKind | None) -> bool:
        """Whether its adapter stays apart from its matrices, where `asked` for so, or by default."""
        ...

    def source(self, keep: bool = False) -> Source:
        """Its weights, read as they are asked for where that is possible; the adapter is merged unless `keep` is
        set."""
        ...

    def reasoner(self, keep: bool = False) -> LatentReasoner:
        """All of it on torch, in float32, with its adapter as `source` has it."""
        ...


def check_adapters(origins: Mapping[Role, Origin], asked: AdapterKind | None) -> None:
    """Raises `ExportError` where an adapter is to be kept and there is none."""
    if asked == "keep" and not any(origin.adapted for origin in origins.values()):
        raise ExportError(
            "adapter is keep, and the checkpoint has weights of its own and no adapter; leave it out, or export a "
            "checkpoint that was trained with LoRA"
        )


class Subject(Protocol):
    """All reasoners of one bundle."""

    name: str
    processor: Processor
    provenance: dict[str, Any]
    """Where the weights come from."""
    check_tokens: int | None
    """Spoken tokens that are compared with torch; None: as many as the bundle allows."""
    check_rounded: bool
    """Whether torch holds the values that an int4 program's integers stand for."""
    check_note: str
    """What else the bundle says of that comparison."""

    def origins(self, baselines: bool) -> Mapping[Role, Origin]:
        """The latent reasoner, and with `baselines` those it declares; of a plain model cot and direct."""
        ...


@dataclass(frozen=True)
class CheckpointOrigin:
    """The reasoner of one checkpoint folder. Raises `CheckpointError` where it cannot be read."""

    folder: Path

    @property
    def settings(self) -> ReasonerSettings:
        """As reasoner.json has them."""
        return read_settings(self.folder, read_info(self.folder))

    @property
    def adapted(self) -> bool:
        """By the adapter's own file."""
        return (self.folder / ADAPTER_FILE).exists()

    def keeps(self, asked: AdapterKind | None) -> bool:
        """Where nothing is said, beside a base that is quantized already: merged, it would be rounded again."""
        if asked is None and self.adapted:
            return quantization_of(base_folder(self.folder, read_info(self.folder))) is not None
        return asked == "keep"

    def source(self, keep: bool = False) -> Source:
        """Read from the files as it is asked for."""
        return stream_source(self.folder, keep)

    def reasoner(self, keep: bool = False) -> LatentReasoner:
        """See `Origin`."""
        reasoner = load_checkpoint(self.folder, dtype=torch.float32).reasoner
        if not keep:
            reasoner.merge_adapter()
        return reasoner


class CheckpointSubject:
    """A checkpoint and its baselines."""

    check_tokens: int | None = None
    check_rounded = False
    check_note = ""

    def __init__(self, folder: Path) -> None:
        """Raises `CheckpointError` where the folder is no checkpoint."""
        self.folder, self.name = folder, folder.name
        self._info = read_info(folder)
        self._settings = read_settings(folder, self._info)
        self.processor = Processor.from_folder(folder).see_for(self._settings.replay)
        check_fit(self.processor, check_weights(folder))
        self.provenance = {"stage": self._info.get("stage"), "provenance": self._info.get("provenance")}

    def origins(self, baselines: bool) -> dict[Role, Origin]:
        """The folder itself, and the baselines that reasoner.json names; a plain model in the modes it can be asked."""
        if self._info["latent_id"] is None:
            return {role: CheckpointOrigin(self.folder) for role in WITHOUT_LATENTS}
        declared = baselines_of(self.folder, self._info) if baselines else {}
        found: dict[Role, Origin] = {"latent": CheckpointOrigin(self.folder)}
        for role in WITHOUT_LATENTS:
            if role in declared:
                found[role] = CheckpointOrigin(declared[role])
        return found
