"""Which kernels compute attention, in the vision tower and in the language model, by the names of transformers. What a
kernel needs is checked here, before weights load. Torch-free.

Place in the pipeline: a recipe's `attention`, `--attention`, `Reasoner.from_checkpoint(attention=)` ->
`read_attention`, `check_attention` -> `use_attention` of lrkit/model/open_backbone.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from lrkit.config import Config, load_config
from lrkit.errors import UserError, did_you_mean, shown
from lrkit.gpus import find_gpus
from lrkit.provenance import installed_version

Kernel = Literal["sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"]
SDPA: Kernel = "sdpa"


@dataclass(frozen=True)
class _Needs:
    """What a kernel of the flash kind takes."""

    package: str
    """Its distribution."""
    install: str
    """How it comes here."""
    least: int
    """Compute capability, in tenths."""


NEEDS: Mapping[str, _Needs] = {
    "flash_attention_2": _Needs("flash-attn", "pip install flash-attn --no-build-isolation", 80),
    "flash_attention_3": _Needs("flash-attn-3", "build it from hopper/ of github.com/Dao-AILab/flash-attention", 80),
    "flash_attention_4": _Needs("flash-attn-4", "pip install flash-attn-4", 90),
}
"""As transformers asks for them. Its fallback to kernels of the hub is not taken: they are code from the network."""
PARTS = ("vision", "text")
NAMES = (SDPA, *NEEDS)
NUMBER_TYPES = ("float16", "bfloat16")
"""What flash kernels multiply."""


class Attention(Config):
    """The kernel of each part. Both compute the same numbers up to rounding."""

    vision: Kernel = SDPA
    """In the vision tower. A tower without attention layers of transformers has nothing to choose."""
    text: Kernel = SDPA
    """In the language model. The saliency row (eq. 4) is computed beside it, whatever it is."""

    @property
    def asked(self) -> dict[str, str]:
        """Part -> kernel, of those that need more than torch."""
        return {part: kernel for part, kernel in (("text", self.text), ("vision", self.vision)) if kernel != SDPA}

    def __str__(self) -> str:
        return self.text if self.text == self.vision else f"vision={self.vision},text={self.text}"


def read_attention(value: object) -> Attention:
    """From a name, from "vision=NAME,text=NAME", from a mapping, or from None, which is sdpa.

    Raises:
        UserError: another name, or another part than vision and text.
    """
    if value is None or isinstance(value, Attention):
        return value or Attention()
    if isinstance(value, str) and "=" not in value:
        if value not in NAMES:
            raise UserError(f"attention is {shown(value)}; {_allowed(value)}")
        return load_config(Attention, dict.fromkeys(PARTS, value))
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",")]
        value = {part.strip(): kernel.strip() for part, _, kernel in pairs}
    if not isinstance(value, Mapping):
        raise UserError(f"attention is {shown(value)}; give one of {', '.join(NAMES)}, or vision=NAME,text=NAME")
    for part, kernel in value.items():
        if part not in PARTS:
            raise UserError(f"attention is given for {shown(part)}; its parts are vision and text, as in vision=sdpa")
        if kernel not in NAMES:
            raise UserError(f"attention.{part} is {shown(kernel)}; {_allowed(str(kernel))}")
    return load_config(Attention, dict(value))


AttentionChoice = Annotated[Attention, BeforeValidator(read_attention)]
"""In a config: one name, or {vision: NAME, text: NAME}."""


def _allowed(kernel: str) -> str:
    if kernel == "eager":
        return "eager keeps every attention map in memory and computes what sdpa computes: give sdpa"
    return f"give one of {', '.join(NAMES)}{did_you_mean(kernel, NAMES)}"


def check_attention(attention: Attention, device: str, dtype: str | None = None, cuda_graphs: bool = False) -> None:
    """Whether its kernels can run there, before anything is loaded. `dtype` is the type that attention is computed in;
    None: not known yet.

    Raises:
        UserError: the first thing that is in the way: number type, recording, device, package or the kind of GPU.
    """
    for problem in problems(attention, device, dtype, cuda_graphs):
        raise UserError(problem)


def problems(attention: Attention, device: str, dtype: str | None, cuda_graphs: bool = False) -> Iterator[str]:
    """What is in the way, a sentence each."""
    for kernel in dict.fromkeys(attention.asked.values()):
        parts = [part for part, asked in attention.asked.items() if asked == kernel]
        what = f"attention{'' if len(parts) > 1 else f'.{parts[0]}'} is {kernel}"
        needs = NEEDS[kernel]
        if dtype is not None and dtype not in NUMBER_TYPES:
            yield (
                f"{what}, which computes in {' and '.join(NUMBER_TYPES)}, and the model is used in {dtype}; choose "
                "bfloat16, or attention sdpa"
            )
        if "text" in parts and cuda_graphs:
            yield (
                f"{what}, which counts on the host what is padding, and a CUDA graph cannot; leave CUDA graphs out, or "
                "choose attention.text sdpa"
            )
        if not device.startswith("cuda"):
            yield (
                f"{what}, which runs on NVIDIA GPUs, and the device is {device}; run it on a GPU, as with device cuda, "
                "or choose attention sdpa"
            )
        elif (old := _too_old(device, needs.least)) is not None:
            yield f"{what}, which needs compute capability {needs.least / 10}, and {old}; choose attention sdpa"
        if installed_version(needs.package) is None:
            yield (
                f"{what}, which needs the package {needs.package}, and that is not installed; bring it "
                f"({needs.install}), or choose attention sdpa"
            )


def _too_old(device: str, least: int) -> str | None:
    """Which GPU cannot run a kernel; None where it can, or nobody can say."""
    index = int(device.partition(":")[2] or 0)
    gpu = next((gpu for gpu in find_gpus().found if gpu.index == index), None)
    if gpu is None or int(gpu.arch.removeprefix("sm")) >= least:
        return None
    return f"{gpu.name} has {int(gpu.arch.removeprefix('sm')) / 10}"


def packages_of(attention: Attention) -> dict[str, str | None]:
    """Versions of the packages whose kernels are used, for reports."""
    names = sorted({NEEDS[kernel].package for kernel in attention.asked.values()})
    return {name: installed_version(name) for name in names}
