"""`bundle.json`: what a bundle holds, how it may be asked, and how it was validated. Torch-free. Export writes it, the
runtime reads it.

A bundle is a folder: bundle.json, tokenizer.json, tokenizer_config.json, preprocessor_config.json, prompt.json, one
ONNX file (and, where large, its data file) per program, and the recorded samples that `lrkit validate` runs again.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from lrkit.config import Config
from lrkit.contract.bundle.io_spec import IoSpec, TensorSpec
from lrkit.contract.generated import MODES, Mode
from lrkit.contract.settings import ReasonerSettings
from lrkit.files import sha256

BUNDLE_FILE = "bundle.json"
SCHEMA = 3
"""3: programs read pictures as bytes. Programs before it read normalised numbers; none was ever released."""

# What no bundle goes beyond: a number above is a fault, and would exhaust memory before anything else showed it.
MAX_BYTES = 1 << 50
MAX_PROMPT_TOKENS = 1 << 20
MAX_PATCHES = 1 << 22
MAX_IMAGES = 1024
MAX_STEPS = 1024
MAX_NEW_TOKENS = 1 << 17
MAX_THREADS = 1024
MAX_SAMPLES = 256


def modern_dialect(name: object) -> object:
    """The dialect `standard` was called `tensorrt` before other engines read it; bundles and targets hold that name."""
    return "standard" if name == "tensorrt" else name


Count = Annotated[int, Field(ge=0, le=MAX_BYTES)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Sizes = tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$")]
Arch = Annotated[str, Field(pattern=r"^sm\d{2,3}$")]
Role = Literal["latent", "cot", "direct"]
StepName = Literal["prompt", "think", "speak"]
Dialect = Annotated[Literal["ort", "standard"], BeforeValidator(modern_dialect)]
"""ort: ONNX Runtime's own operators too; standard: what every engine reads."""
EngineKind = Literal["tensorrt-rtx", "tensorrt"]
AdapterKind = Literal["merge", "keep"]
"""merge: an adapter is added to the matrices before they are rounded; keep: it is a branch of its own beside them."""
GraphName = Literal["program", "prompt", "think", "speak"]


class FileEntry(Config):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of the content, lower-case hex."""
    bytes: int = Field(ge=0, le=MAX_BYTES)
    """Size."""


class Limits(Config):
    """Largest inputs; the host refuses more before any compute."""

    max_prompt_tokens: int = Field(ge=1, le=MAX_PROMPT_TOKENS)
    """Prompt tokens, visual ones included."""
    max_patches: int = Field(ge=1, le=MAX_PATCHES)
    """Patches of all pictures of one prompt."""
    max_images: int = Field(ge=1, le=MAX_IMAGES)
    """Pictures of one prompt."""
    max_latent_steps: int = Field(ge=0, le=MAX_STEPS)
    """Latent steps of one answer."""
    max_new_tokens: int = Field(ge=1, le=MAX_NEW_TOKENS)
    """Spoken tokens of one answer."""


class TokenIds(Config):
    """Ids with a meaning."""

    image: TokenId
    """Stands for one visual token."""
    latent: TokenId
    """Said by the model to think one more step."""
    eos: TokenId
    """Ends an answer."""
    pad: TokenId
    """Fills a batch; a program never sees it."""
    more_ends: tuple[TokenId, ...] = ()
    """Other ids that end an answer."""

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end an answer."""
        return (self.eos, *self.more_ends)


class StepEntry(Config):
    """One graph of the form `step`."""

    file: str = Field(pattern=r"\.onnx$")
    """ONNX file, relative to the bundle."""
    spec: IoSpec
    """Its own inputs and outputs."""


class EngineEntry(Config):
    """One TensorRT engine, built ahead of time from one graph of a program."""

    file: str
    """Serialized engine, relative to the bundle."""
    kind: EngineKind
    """Package that built it and can run it."""
    version: str = Field(pattern=r"^\d{1,9}(\.\d{1,9}){0,5}$")
    """Of that package: "1.7.1.116"."""
    graph: GraphName
    """What it was built from: the whole program, or one graph of the form step."""
    archs: tuple[Arch, ...]
    """Compute capabilities it runs on, as "sm89"."""
    profile: dict[str, tuple[Sizes, Sizes, Sizes]]
    """Input -> its smallest, usual and largest shape; only inputs whose shape varies."""
    options: dict[str, JsonValue] = {}
    """What the builder was asked for beyond its defaults."""
    num_layers: int | None = Field(default=None, ge=0, le=MAX_BYTES)
    """Layers of the network as parsed; null where the builder did not say."""
    layers_by_part: dict[str, Count] = {}
    """Of those, the nodes of vision, prompt, think and speak; other: what the parser added under its own names."""
    build_seconds: float = Field(ge=0, allow_inf_nan=False)
    """Wall time of the build."""
    build_peak_bytes: int | None = Field(default=None, ge=0, le=MAX_BYTES)
    """Largest resident memory of the building process; null where unknown."""


class ProgramSizes(Config):
    """What the work of a program can be counted from."""

    width: Count
    """Of the language model."""
    num_heads: Count
    """Query heads."""
    num_key_heads: Count
    """Key heads."""
    head_width: Count
    """Of each."""
    inner: Count
    """Width of the feed-forward part."""
    inner_matrices: Count = 3
    """Matrices between it and `width`, per layer: 3 with a gate."""
    vocabulary: Count
    """Rows of the language head."""
    cache_bytes: float = Field(ge=0, le=64)
    """Per cached key or value."""
    vision_width: Count
    """Of the vision tower."""
    vision_depth: Count
    """Its layers in which a patch sees the whole picture."""
    vision_windows: tuple[tuple[Count, Count], ...] = ()
    """Its other layers: how many, and how many patches one sees in them at most."""
    vision_weights: Count
    """In its matrices, the merger's aside: each is used once per patch."""
    merger_weights: Count
    """In the merger's matrices: each is used once per visual token."""


class AdapterEntry(Config):
    """An adapter that a program can be run with instead of its own."""

    file: str = Field(pattern=r"\.onnx_adapter$")
    """In ONNX Runtime's format, relative to the bundle: a value for each of the program's `swaps`."""
    checkpoint: str
    """Name of the checkpoint it was made from."""
    rank: int = Field(ge=1, le=1024)
    """Of its matrices."""


class ProgramEntry(Config):
    """One program of the bundle."""

    file: str = Field(pattern=r"\.onnx$")
    """ONNX file, relative to the bundle."""
    data: str | None = None
    """External weights beside it, where the file has any."""
    dialect: Dialect
    """ort: ONNX Runtime's int4 nodes; standard: standard ONNX operators only."""
    precision: str = Field(max_length=40)
    """How the weights of the language model are held: the name of a row of lrkit/contract/schemes.py."""
    accuracy_level: int | None = Field(default=None, ge=0, le=4)
    """Of int4 nodes: 0 or 1 computes in float32, 4 with int8 activations; null without int4 nodes."""
    adapter: AdapterKind | None = None
    """What became of the checkpoint's LoRA adapter; null where it has none, and in bundles written before it was
    recorded, which merged."""
    swaps: tuple[str, ...] = Field(default=(), max_length=1 << 16)
    """Inputs beside those of `spec`, each with a default: what an adapter replaces at run time."""
    adapters: dict[AdapterName, AdapterEntry] = {}
    """By the name that they are asked for by."""
    spec: IoSpec
    """Inputs and outputs of a whole answer, in one run (program) or by the host's loop (step)."""
    steps: dict[StepName, StepEntry] = {}
    """Form step: the graphs that the host runs; `file` is that of `prompt`."""
    settings: ReasonerSettings
    """What the program implements: halting, replay, routing."""
    num_layers: int = Field(ge=1, le=1024)
    """Layers of the language model."""
    routed_layers: tuple[Count, ...] = ()
    """Columns of the output routed_depths."""
    bytes_by_part: dict[str, Count]
    """Weight bytes: vision, embedding, layers, chunks, head, routing, adapter."""
    held: dict[str, str] = {}
    """Part -> how most of those bytes are held: a row of lrkit/contract/schemes.py. A target's choice may leave small
    matrices as they are; empty in bundles written before it was recorded."""
    sizes: ProgramSizes | None = None
    """Null in bundles written before it was recorded."""
    engines: tuple[EngineEntry, ...] = ()
    """TensorRT engines built from it."""


class FrontEntry(Config):
    """A graph that makes of pixels and a prompt what every program of the bundle reads of them."""

    file: str = Field(pattern=r"\.onnx$")
    """ONNX file, relative to the bundle."""
    inputs: tuple[TensorSpec, ...] = Field(max_length=16)
    """In the order of the graph."""
    outputs: tuple[TensorSpec, ...] = Field(max_length=64)
    """In the order of the graph, named as the inputs of programs."""
    side: int = Field(ge=1, le=1 << 16)
    """Both sides of a picture are multiples of so many pixels."""
    least_pixels: int = Field(ge=1, le=MAX_BYTES)
    """Of a picture at the size at which the model reads it; smaller ones are enlarged before."""
    most_pixels: int = Field(ge=1, le=MAX_BYTES)
    """Larger ones are shrunk before."""


class Validation(Config):
    """Torch against program, on samples that training did not see."""

    passed: bool
    """A bundle that failed is never left behind."""
    num_samples: Count
    """Samples compared."""
    tolerance: dict[str, float]
    """What was allowed, by name."""
    tolerance_reason: str
    """Where the tolerance comes from."""
    measured: dict[str, JsonValue]
    """What was found: largest errors, agreements, accuracies."""


class RecordedSample(Config):
    """A sample that `lrkit validate` runs again."""

    images: tuple[str, ...] = Field(max_length=MAX_IMAGES)
    """Picture files, relative to the bundle."""
    question: str
    """As asked."""
    answer: str
    """The right answer."""
    role: Role
    """Program that was run."""
    token_ids: tuple[TokenId, ...] = Field(max_length=MAX_NEW_TOKENS)
    """What it spoke."""
    latent_steps: int = Field(ge=0, le=MAX_STEPS)
    """Latent steps it took."""


class Defaults(Config):
    """How to ask where the caller does not say; chosen by measuring, after the export. Null: as the program has it."""

    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    """ONNX Runtime on a CPU: threads of one operator."""
    max_latent_steps: int | None = Field(default=None, ge=0, le=MAX_STEPS)
    """Most latent steps."""
    halting: Literal["adaptive", "fixed"] | None = None
    """Who decides their number."""
    chosen: dict[str, JsonValue] = {}
    """Why: the command, the machine, the time, what was compared."""


class MadeFor(Config):
    """The engine that a bundle is meant for, on which its programs were compared with torch."""

    engine: Literal["openvino"]
    """As `--engine` takes it."""
    version: str = Field(max_length=120)
    """Of its package."""
    precision: Literal["f32", "bf16", "f16"]
    """Number type of its products of floats."""
    int8_activations: bool = False
    """Whether it rounds activations to int8 where weights are integers."""


class Manifest(Config):
    """The content of bundle.json."""

    schema_version: int = SCHEMA
    """A newer lrkit may write a higher one."""
    name: str
    """Name of the checkpoint it was made from."""
    target: dict[str, Any]
    """The export target, as used."""
    programs: dict[Role, ProgramEntry]
    """latent, and cot and direct where baselines were exported too; cot and direct alone of a plain model."""
    front: FrontEntry | None = None
    """What hosts in other languages run before a program; null where the target asked for none."""
    limits: Limits
    """Largest inputs."""
    tokens: TokenIds
    """Ids with a meaning."""
    family: str | None = Field(default=None, max_length=60)
    """Whose pictures, prompts and positions it reads; null in bundles written before it was recorded."""
    patches_per_token: int | None = Field(default=None, ge=1, le=4096)
    """Patches that become one visual token; null in older bundles, which have merge_size."""
    merge_size: int | None = Field(default=None, ge=1, le=64)
    """Of older bundles: side, in patches, of the square that becomes one visual token."""
    files: dict[str, FileEntry]
    """Every other file of the folder."""
    samples: tuple[RecordedSample, ...] = Field(default=(), max_length=MAX_SAMPLES)
    """Recorded at export."""
    validation: dict[Role, Validation]
    """Per program."""
    adapter_validation: dict[AdapterName, Validation] = {}
    """Per adapter of the first program: the same comparison, with that adapter in both."""
    made_for: MadeFor | None = None
    """Null: ONNX Runtime, or the TensorRT engines in it."""
    defaults: Defaults | None = None
    """Written by `lrkit sweep BUNDLE ... --write-choice`."""
    provenance: dict[str, Any]
    """Versions, commit, machine, checkpoint, time."""

    @property
    def token_patches(self) -> int:
        """Patches that become one visual token, whenever the bundle was written."""
        return self.patches_per_token or (self.merge_size or 1) ** 2

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What it can be asked in; the latent program answers in every mode."""
        return MODES if "latent" in self.programs else tuple(mode for mode in MODES if mode in self.programs)

    @property
    def first_role(self) -> Role:
        """The program that answers where no other is asked for."""
        return "latent" if "latent" in self.programs else next(iter(self.programs))


def digest(path: Path) -> FileEntry:
    """SHA-256 and size of a file, read in pieces."""
    content, size = sha256(path)
    return FileEntry(sha256=content, bytes=size)
