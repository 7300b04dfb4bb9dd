"""A reasoner of a given shape with random weights. Its export shows what a device must hold and how fast it is, before
any download or training.

    lrkit export random:qwen2-vl-2b --int4 -o bundle

Place in the pipeline: profiles/shapes/*.json -> `ShapeSubject` -> bundle.py, as a checkpoint. Every matrix is drawn
when it is asked for, from a seed made of its name. So two readers see the same weights, and nobody holds all of them.

Latent steps are forced, because random weights decide nothing. They know no right answers either. So torch's model gets
the values that the program's integers stand for, and the comparison shows a wrong graph, whatever rounding does.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrkit.config import load_config
from lrkit.contract.bundle.manifest import AdapterKind, Role
from lrkit.contract.sample import Sample
from lrkit.contract.settings import ReasonerSettings, ThinkSettings
from lrkit.data.shapes import Shape, load_shape, shape_config, shape_processor, shape_samples
from lrkit.export.subject import Origin
from lrkit.export.targets.target import Target
from lrkit.export.weights.low_rank import LowRank, nothing_added
from lrkit.export.weights.quantizers.quantizer import quantized, quantized_rows
from lrkit.export.weights.reader import reader_of
from lrkit.export.weights.source import Parts, Source, array, assemble
from lrkit.families.table import fresh_models
from lrkit.model.build import build_reasoner
from lrkit.model.latent_token import LatentToken
from lrkit.model.open_backbone import backbone_loader
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor

SPREAD = 0.02
"""Standard deviation of every matrix: what transformers starts such models with."""
CHECK_TOKENS = 8
"""Spoken tokens compared with torch, which at 2 billion weights takes its time for each."""
SETTINGS = ReasonerSettings(think=ThinkSettings(halting="fixed"))


def shape_settings(changes: Sequence[str]) -> ReasonerSettings:
    """Those of a shape with `changes`, such as "replay.num_tokens=8", by dotted path.

    Raises:
        ConfigError: there is no such setting, or its value is wrong.
    """
    values = SETTINGS.model_dump(mode="json")
    values["distill"]["weight"] = 0.0  # serves training alone, and settings without replay may not have it
    return load_config(ReasonerSettings, values, changes, label="model") if changes else SETTINGS


class RandomWeights:
    """Weights by their names in transformers; equal for equal names and shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], spreads: Mapping[str, float] | None = None) -> None:
        """`spreads` are the standard deviations of those weights that need another than `SPREAD`."""
        self.shapes, self.spreads = shapes, spreads or {}

    def read(self, name: str) -> np.ndarray:
        """float32, made again at each call: normal matrices and biases, norms of one."""
        shape = self.shapes[name]
        if name.endswith(".weight") and (len(shape) == 1 or name.endswith("norm.weight")):
            return np.ones(shape, np.float32)
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        drawn *= np.float32(self.spreads.get(name, SPREAD))
        return drawn


class ShapeOrigin:
    """A model with a shape's sizes; `target` says what the program rounds."""

    def __init__(
        self, shape: Shape, processor: Processor, target: Target, settings: ReasonerSettings = SETTINGS
    ) -> None:
        self.shape, self.target, self.settings = shape, target, settings
        self.image_id, self.latent_id = processor.image_id, processor.latent_id
        self.config = shape_config(shape)
        self.reader = reader_of(shape.family)
        sides = {}
        for module, (inputs, outputs) in shape.layout.adapted.items():
            sides |= {f"{module}.A": (settings.lora.rank, inputs), f"{module}.B": (outputs, settings.lora.rank)}
        self.weights = RandomWeights({**shape.layout.tensors, **sides}, getattr(self.reader, "spreads", None))

    @property
    def adapted(self) -> bool:
        """One is drawn where it is asked for."""
        return True

    def keeps(self, asked: AdapterKind | None) -> bool:
        """Random weights have an adapter, of the rank of the settings, where one is to be kept."""
        return asked == "keep"

    def source(self, keep: bool = False) -> Source:
        """Weights drawn as asked for; only the vision tower is made whole."""
        return assemble(
            Parts(
                family=self.shape.family,
                config=self.config,
                read=self.weights.read,
                tied=self.shape.layout.tied,
                settings=self.settings,
                image_id=self.image_id,
                latent_id=self.latent_id,
                extras=self._extras(),
                adapter="keep" if keep else None,
                adapted=self._added if keep else nothing_added,
            )
        )

    def _added(self, name: str) -> LowRank | None:
        """What the random adapter adds to a weight."""
        module, lora = name.removesuffix(".weight"), self.settings.lora
        if module not in self.shape.layout.adapted or not name.endswith(".weight"):
            return None
        down, up = (self.weights.read(f"{module}.{side}") for side in "AB")
        return LowRank(down, up * np.float32(lora.alpha / lora.rank))

    def reasoner(self, keep: bool = False, kind: torch.dtype = torch.float32) -> LatentReasoner:
        """What the program's weights stand for, on torch as numbers of a `kind`, with what an adapter that is kept adds
        to them."""
        model = self._empty()
        names = [name for name, _ in model.named_parameters() if name != self.reader.head]
        tables = {f"{name}.weight" for name, one in model.named_modules() if isinstance(one, torch.nn.Embedding)}
        held: dict[str, torch.Tensor] = {}
        for name in names:
            weight = torch.from_numpy(self._held(name, looked_up=name in tables))
            if keep and (added := self._added(name)) is not None:
                weight += torch.from_numpy(added.up @ added.down)
            held[name] = weight.to(kind)
        model.load_state_dict(held, strict=False, assign=True)
        if self.shape.layout.tied and not self.target.scheme.integers:
            model.tie_weights()
        else:  # integers of the head are not those of the embedding, even where both stand for one matrix
            module, _, weight = self.reader.head.rpartition(".")
            head = torch.nn.Parameter(torch.from_numpy(self._held(self.reader.head)).to(kind))
            setattr(model.get_submodule(module), weight, head)
        reasoner = build_reasoner(backbone_loader(self.shape.family)(model.eval()), self.settings, self.latent_id)
        reasoner.latent.norm.fill_(float(self._extras()["latent.norm"]))
        return reasoner

    def _held(self, name: str, looked_up: bool = False) -> np.ndarray:
        """A weight as the program holds it; `looked_up`: rows are taken from it, and nothing is multiplied with it."""
        tied = name == self.reader.head and self.shape.layout.tied
        weight = self.weights.read(self.reader.embedding if tied else name)
        part = self._part(name)
        scheme = self.target.scheme_of(part)
        # The tower's first layer, a convolution, stays float, and so do its tables of positions, and norms of heads.
        norm = part == "layers" and name.removesuffix(".weight") not in self.shape.layout.adapted
        if scheme is None or weight.ndim != 2 or norm or (looked_up and part == "vision"):
            return weight
        if part == "embedding":
            held = quantized_rows(weight, scheme, self.target.int4.block, name)
            return weight if held is None else held.dequantize()
        made = quantized(weight, scheme, self.target.int4.block, name, None, self.target.int4.method)
        return weight if made is None else made.dequantize()

    def _part(self, name: str) -> str:
        """Where a weight belongs, as `Target.scheme_of` names it."""
        if name.removesuffix(".weight") in self.shape.layout.adapted:  # before the tower, whose prefix may be wide
            return "layers"
        parts = {self.reader.embedding: "embedding", self.reader.head: "head", self.reader.tower: "vision"}
        return next((part for start, part in parts.items() if name.startswith(start)), "layers")

    def _empty(self) -> Any:
        """The model without its weights."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            return fresh_models(self.shape.family).model(self.config)

    def _extras(self) -> dict[str, np.ndarray]:
        """Latent rows and their scale as a fresh reasoner has them, which reads them off its embedding and head."""
        rows = torch.from_numpy(self.weights.read(self.reader.embedding))
        head = None if self.shape.layout.tied else torch.from_numpy(self.weights.read(self.reader.head))
        latent = LatentToken(self.latent_id, rows, head, self.settings.think)
        return {f"latent.{name}": array(tensor).copy() for name, tensor in latent.state_dict().items()}


class ShapeSubject:
    """A shape as something to export.

    Raises:
        UnknownNameError: no shape of that name; the message lists those that ship.
        ConfigError: no such file, or one that holds no shape.
    """

    check_tokens: int | None = CHECK_TOKENS
    check_rounded = True
    check_note = (
        "the weights are random, so no answer is right; torch held the values that the program's integers stand for"
    )

    def __init__(self, name: str, target: Target, settings: ReasonerSettings = SETTINGS) -> None:
        """`name` is one of `lrkit ls shape`, or a JSON file; `settings` are those of its latent steps."""
        self.shape, self.target, self.settings = load_shape(name), target, settings
        self.asked, self.name = name, Path(name).stem
        self.processor = shape_processor(self.shape).see_for(settings.replay)
        told = self.shape.model_dump(mode="json", include={"family", "description", "source", "picture", "note"})
        self.provenance = {"random_weights": True, "shape": {**told, "weights": self.shape.num_weights}}

    def origins(self, baselines: bool) -> dict[Role, Origin]:
        """One latent reasoner: random weights have no baselines."""
        return {"latent": ShapeOrigin(self.shape, self.processor, self.target, self.settings)}

    def samples(self, count: int) -> list[Sample]:
        """Questions about a grey picture of the shape's size; random weights have no right answer to them."""
        return [Sample(s.images, s.question, (), "", s.id) for s in shape_samples(self.name, self.shape.picture, count)]
