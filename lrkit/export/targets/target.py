"""What an export is for: precision, blocks of integers, dialect, limits. Values only; `export/targets/*.yaml` are such
configs.

Place in the pipeline: `lrkit export --target NAME` -> `Target` -> writer.py (how nodes are written), bundle.py
(limits).
"""

import re
from collections.abc import Iterator, Mapping
from copy import copy
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from lrkit.config import Config
from lrkit.contract.bundle.manifest import AdapterKind, Dialect, Limits
from lrkit.contract.schemes import FLOAT, SAME, SCHEMES, Method, Scheme, computed_in, scheme_named
from lrkit.errors import did_you_mean, shown
from lrkit.export.targets.engine_target import MOST, EngineTarget, OpenVinoTarget
from lrkit.families.protocols import Geometry
from lrkit.runtime.encode.fitting import photo_warning
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.onnxruntime.provider_options import problem_of

MOST_LATENT_STEPS = 64
"""As many as a checkpoint may take."""
_MOST_PATCHES = 4096
"""Default: a device answers about so many within a time that a person waits."""
_TEXT_TOKENS = 512
"""Default room for text beside pictures."""
TOWER_ON_CPU = "w8a8"
"""What the vision tower is held by, where the target says nothing, in ONNX Runtime's own operators on a CPU: there it
is a third of the time that float takes, with 1 to 2% of error in a product."""
_PATTERN = re.compile(r"(\d{1,4}|\*)\.(qkv|out|gate_up|up|down|\*)")
_INT4 = SCHEMES["int4"]
"""What a target chooses of where its precision is one of floats, and chooses nothing of."""


class Int4(Config):
    """Weights as integers, one scale per block along the input. What may be chosen, and what is taken where nothing is
    said, is in the row of the scheme; the defaults here are those of int4."""

    block: int = _INT4.blocks[0]
    """Weights per scale; a width that it does not divide falls back to the next smaller block."""
    accuracy_level: Literal[0, 1, 4] = 4
    """ort dialect: 0 or 1 computes in float32, 4 with activations rounded to int8 (faster)."""
    method: Method = "rtn"
    """How integers with a scale per block are chosen: rtn, search (need no data), gptq, awq (need a calibration
    set)."""
    stored: Literal["all", "layers", "none"] = "all"
    """Which matrices keep the integers that a quantized checkpoint has for them, with its own blocks and offsets: all,
    head and embedding too; those of layers whose bits are as many; none, so that its values are rounded once more, as
    methods other than rtn always do."""
    matrices: dict[str, str] = {}
    """Matrices of layers that are held otherwise: a pattern such as "*.down" or "0.*", of LAYER.qkv, out, gate_up or
    down -> int4, int4-offsets, int8 or float. The last pattern that fits counts."""
    head: str = _INT4.parts["head"][0]
    """Language head. A head of its own type is stored beside the embedding, which it shares otherwise."""
    embedding: str = _INT4.parts["embedding"][0]
    """Token embedding: one scale per row of bytes. int4, in the dialect ort alone, has a scale per block and is packed
    as the head is; both share their bytes where they are one matrix, rounded to the nearest."""
    vision: str = _INT4.parts["vision"][0]
    """Matrices of the vision tower. Where nothing is said: w8a8 in the dialect ort on a CPU, which also rounds what
    they are multiplied with; float elsewhere. Matrices narrower than 512 stay float."""
    chunks: str = _INT4.parts["chunks"][0]
    """w8a8, in the dialect ort and for OpenVINO, gives the prompt, and latent steps of many tokens, the layers'
    matrices a second time, a byte a weight, which CPUs with AMX or VNNI multiply several times as fast; same: once."""


class ProgramLimits(Config):
    """Capacities compiled into the graph, and the largest inputs a host may give."""

    max_prompt_tokens: int | None = Field(default=None, ge=8, le=MOST)
    """Prompt tokens, visual ones included; null: the visual tokens of `max_patches`, and 512 of text."""
    max_patches: int | None = Field(default=None, ge=1, le=MOST)
    """Patches of all pictures of one prompt; larger pictures are shrunk. Null: what the checkpoint's own max_pixels
    makes of `max_images` pictures, at most 4,096."""
    max_images: int = Field(default=4, ge=1, le=1024)
    """Pictures of one prompt."""
    max_latent_steps: int | None = Field(default=None, ge=0, le=MOST_LATENT_STEPS)
    """Latent steps of one answer; null: what the checkpoint allows."""
    max_new_tokens: int = Field(default=256, ge=1, le=1 << 16)
    """Spoken tokens of one answer."""


class Target(Config):
    """One kind of device."""

    description: str = ""
    """One sentence, shown by `lrkit ls`."""
    dialect: Dialect = "ort"
    """ort: ONNX Runtime's own fused and int4 operators; standard: standard ONNX operators only."""
    precision: Annotated[str, AfterValidator(lambda name: scheme_named(name).name)] = "fp32"
    """How weights are held, a row of lrkit/contract/schemes.py, such as fp32, fp16 or int4. fp16 also computes in fp16,
    integers compute in fp32 (ort on a CPU) unless `activations` says fp16."""
    activations: Literal["fp32", "fp16"] | None = None
    """What the graph computes in; null: fp16 for precision fp16, fp32 otherwise."""
    int4: Int4 = Int4()
    """Read where weights become integers: by precision int4, and by any other that does so."""
    adapter: AdapterKind | None = None
    """merge: a LoRA adapter is added to the matrices before they are rounded; keep: they are rounded without it, and it
    runs beside them in floats; null: merge, or keep where the base is quantized already."""
    limits: ProgramLimits = ProgramLimits()
    """Capacities."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Larger pictures are shrunk to so many pixels; null: the checkpoint's own max_pixels."""
    provider: str = "cpu"
    """ONNX Runtime's provider that the bundle is meant for: cpu, cuda, tensorrt, tensorrt-rtx, ..."""
    provider_options: dict[str, str | bool | int | float] = {}
    """Options of that provider, as trt_engine_cache_enable; those that begin with ep. are session entries. Paths are
    inside the bundle's folder; lrkit/runtime/engines/onnxruntime/provider_options.py lists what a bundle may give."""
    engine: EngineTarget | None = None
    """TensorRT engines to add; null: none."""
    openvino: OpenVinoTarget | None = None
    """Makes the bundle for OpenVINO, which then runs it where no engine is named; null: it is for others."""
    scenes: bool = True
    """Whether a picture can be looked at once and then asked about often; costs a whole prompt next to nothing. A
    checkpoint with prune.after_layer has none: the question says which visual tokens stay."""

    front: bool = False
    """Whether the bundle has a graph that cuts a picture and numbers a prompt, for hosts in other languages
    (docs/serving.md). It is beside the programs and changes none."""
    logits: bool = False
    """Whether the graphs of the form step also give the logits of the next word, by which choices are scored in every
    mode (docs/evaluation.md). Costs a vector of the vocabulary's size for each token."""

    @model_validator(mode="after")
    def _choices_of_the_scheme(self) -> "Target":
        """Takes what was not chosen from the row of the scheme, and refuses what it does not have."""
        scheme = self.scheme if self.scheme.integers else _INT4
        defaults = {part: names[0] for part, names in scheme.parts.items() if part in Int4.model_fields}
        if self.scheme.integers and self.on_cpu and TOWER_ON_CPU in scheme.parts.get("vision", ()):
            defaults["vision"] = TOWER_ON_CPU
        chosen = {"block": scheme.blocks[0], **defaults, **self.int4.model_dump(exclude_unset=True)}
        if problems := list(_choice_problems(scheme, chosen)):
            raise ValueError("\n".join(problems))
        object.__setattr__(self, "int4", Int4.model_validate(chosen))
        if self.scheme.integers and self.scheme.encoding(self.dialect) is None:
            known = ", ".join(scheme.encodings)
            raise ValueError(
                f"precision {scheme.name} has no operator in the dialect {self.dialect}; set dialect={known}, or "
                "another precision"
            )
        return self

    @model_validator(mode="after")
    def _matrices_are_held_somehow(self) -> "Target":
        known = [row.name for row in SCHEMES.values() if row.integers and not (row.by_row or row.floats)] + [FLOAT]
        for pattern, name in self.int4.matrices.items():
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"int4.matrices has {shown(pattern)}, which fits no matrix of a layer; write LAYER.MATRIX, where "
                    "either may be *, and MATRIX is qkv, out, gate_up or down"
                )
            if name not in known:
                raise ValueError(
                    f"int4.matrices.{pattern} is {shown(name)}, and a matrix can be {', '.join(known)}"
                    f"{did_you_mean(name, known)}"
                )
        if self.int4.matrices and (not self.scheme.integers or self.scheme.by_row or self.scheme.floats):
            raise ValueError(
                f"int4.matrices says how some matrices are held otherwise, and precision {self.scheme.name} has no "
                "scales by block; set precision=int4, int4-offsets or int8"
            )
        return self

    @model_validator(mode="after")
    def _offsets_are_not_for_tensorrt(self) -> "Target":
        if self.engine is None and "tensorrt" not in self.provider:
            return self
        held = [self.scheme_of(part) for part in self.scheme.parts]
        held += [scheme_named(name) for name in self.int4.matrices.values() if name != FLOAT]
        if found := next((one.name for one in held if one is not None and one.offsets), None):
            raise ValueError(
                f"{found} has an offset for each block, and TensorRT takes no zero point but 0; set precision=int4, "
                "which is symmetric, or leave TensorRT out"
            )
        return self

    @model_validator(mode="after")
    def _packed_rows_are_for_one_dialect(self) -> "Target":
        held = self.scheme_of("embedding")
        if held is not None and held.bits == 4 and self.dialect != "ort":
            raise ValueError(
                f"int4.embedding is {held.name}, from which the dialect ort alone takes rows, and the dialect is "
                f"{self.dialect}; set int4.embedding=int8"
            )
        return self

    @model_validator(mode="after")
    def _small_floats_are_for_tensorrt(self) -> "Target":
        held = [one for one in map(self.scheme_of, self.scheme.parts) if one is not None and one.floats]
        if held and self.openvino is not None:
            raise ValueError(
                f"precision {held[0].name} is of floats that TensorRT multiplies on a GPU, and OpenVINO does not read "
                "them; set precision=int4 or int8"
            )
        if held and self.int4.method != "rtn":
            raise ValueError(
                f"int4.method is {self.int4.method}, and the floats of precision {held[0].name} are rounded to the "
                "nearest; set int4.method=rtn"
            )
        return self

    @model_validator(mode="after")
    def _bytes_are_for_a_cpu(self) -> "Target":
        if self.int4.chunks != SAME and self.scheme.integers and self.dialect != "ort" and self.openvino is None:
            raise ValueError(
                f"int4.chunks is {self.int4.chunks}, which the dialect ort and programs for OpenVINO alone have; set "
                "int4.chunks=same"
            )
        for part in self.scheme.parts if self.dialect == "ort" and self.provider != "cpu" else ():
            if (held := self.scheme_of(part)) is not None and held.by_row:
                raise ValueError(
                    f"{part} would be {held.name}, which ONNX Runtime multiplies on a CPU alone, and provider is "
                    f"{self.provider}; set int4.{part}={self.scheme.parts[part][0]}, or provider=cpu"
                )
        return self

    @model_validator(mode="after")
    def _options_that_a_bundle_may_give(self) -> "Target":
        short = self.provider.partition(":")[0]
        found = {key: problem_of(short, key, value) for key, value in self.provider_options.items()}
        if problems := [f"provider_options.{key} {problem}" for key, problem in found.items() if problem]:
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _openvino_reads_one_dialect(self) -> "Target":
        if self.openvino is not None and self.dialect != "standard":
            raise ValueError(
                f"the dialect is {self.dialect}, and OpenVINO reads standard; set dialect=standard, or take the target "
                "openvino"
            )
        if self.openvino is not None and self.engine is not None:
            raise ValueError(
                f"openvino and {self.engine.kind} engines were asked for at once; make a bundle for each, as one is "
                "meant for one engine"
            )
        return self

    @model_validator(mode="after")
    def _engines_are_built_from_their_dialect(self) -> "Target":
        if self.engine is not None and self.dialect != "standard":
            raise ValueError(
                f"the dialect is {self.dialect}, but {self.engine.kind} engines are built from the dialect standard; "
                "set dialect=standard, or take a target made for it, such as rtx-pc"
            )
        return self

    @property
    def scheme(self) -> Scheme:
        """How weights are held."""
        return scheme_named(self.precision)

    def scheme_of(self, part: str) -> Scheme | None:
        """How the matrices of a part of the model (layers, head, embedding, vision, routing) become integers; None:
        they stay float, or, of `chunks`, are none of their own."""
        if part not in self.scheme.parts:
            return None
        name = getattr(self.int4, part, self.scheme.parts[part][0])
        return None if name in (FLOAT, SAME) else scheme_named(name)

    def scheme_for(self, role: str, part: str) -> Scheme | None:
        """How the matrix `role` of a part becomes integers: as `scheme_of`, but for what int4.matrices says."""
        fits = [name for pattern, name in self.int4.matrices.items() if fnmatchcase(role, pattern)]
        if part != "layers" or not fits:
            return self.scheme_of(part)
        return None if fits[-1] == FLOAT else scheme_named(fits[-1])

    @property
    def unread_on_cpu(self) -> str | None:
        """The scheme that no engine reads on a CPU; None: there is none."""
        held = filter(None, map(self.scheme_of, self.scheme.parts))
        return next((one.name for one in held if not one.on_cpu), None)

    @property
    def speed_warning(self) -> str | None:
        """That ONNX Runtime would be slow; None: it would not. Measured with 1.32 on one thread of a Xeon with AMX: a
        row of 576 times 49,152 columns of 8 bits takes 9 ms at level 4, 650 at 0 and 790 at 1 (of 4 bits 1.1, 3.2 and
        2.8)."""
        held = [self.scheme_of(part) for part in ("layers", "head")]
        held += [scheme_named(name) for name in self.int4.matrices.values() if name != FLOAT]
        wide = [one.name for one in held if one is not None and one.bits == 8 and not one.by_row]
        if not wide or not self.on_cpu or self.int4.accuracy_level == 4:
            return None
        return (
            f"int4.accuracy_level is {self.int4.accuracy_level}, at which ONNX Runtime multiplies by integers of 8 "
            "bits many times as slowly as at 4; set int4.accuracy_level=4, or hold these matrices in 4 bits"
        )

    @property
    def branches(self) -> bool:
        """Whether programs choose what to run: TensorRT-RTX 1.7.1's builder fails with a branch beside other loops."""
        return self.dialect == "ort" or self.openvino is not None

    @property
    def on_cpu(self) -> bool:
        """Whether ONNX Runtime's own operators run on a CPU."""
        return self.dialect == "ort" and self.provider == "cpu"

    @property
    def multiplies_bytes(self) -> bool:
        """Whether matrices with a scale for each row are multiplied by activations rounded to bytes."""
        return self.on_cpu or self.openvino is not None

    @property
    def computes_fp16(self) -> bool:
        """Whether activations are fp16."""
        return computed_in(self.precision, self.activations) == "fp16"


def _choice_problems(scheme: Scheme, chosen: Mapping[str, Any]) -> Iterator[str]:
    """One line for each choice that the scheme does not have."""
    allowed: dict[str, tuple[Any, ...]] = {"block": scheme.blocks, **scheme.parts}
    for name, value in chosen.items():
        if value not in allowed.get(name, (value,)):
            hint = did_you_mean(value, scheme.parts[name]) if isinstance(value, str) else ""
            known = ", ".join(map(str, allowed[name]))
            yield f"int4.{name} is {shown(value)}, and {scheme.name} takes {known}{hint}"


def limits_of(target: Target, latent_steps: int, geometry: Geometry) -> Limits:
    """The limits of a bundle for a checkpoint that takes up to `latent_steps` and whose image processor is
    `geometry`."""
    given = target.limits
    patches = given.max_patches or min(_MOST_PATCHES, geometry.most_patches(given.max_images))
    steps = latent_steps if given.max_latent_steps is None else given.max_latent_steps
    return Limits(
        max_prompt_tokens=given.max_prompt_tokens or geometry.most_prompt_tokens(patches) + _TEXT_TOKENS,
        max_patches=patches,
        max_images=given.max_images,
        max_latent_steps=steps,
        max_new_tokens=given.max_new_tokens,
    )


def processor_of(target: Target, processor: Processor) -> Processor:
    """The processor of a bundle: it shrinks pictures to the target's max_pixels and to the bundle's limits, as the
    bundle will.

    Raises:
        UserError: max_pixels is less than one visual token of the checkpoint.
    """
    made = copy(processor)
    made.geometry = processor.geometry.with_max_pixels(target.max_pixels)
    made.limits = limits_of(target, 0, made.geometry)
    return made


def picture_warning(target: Target, processor: Processor) -> str | None:
    """One line for whoever exports, where a 12-megapixel photo will be seen smaller than by the checkpoint; else
    None."""
    made = processor_of(target, processor)
    assert made.limits is not None
    return photo_warning(made.geometry, made.limits, processor.geometry)
