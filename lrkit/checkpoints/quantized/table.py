"""The formats of integers that a checkpoint may hold, one row each: the layout that its config.json names -> what reads
its tensors.

A new format is a file with a reader, a row here, and a row in quantization.py for its `quant_method`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from lrkit.checkpoints.quantized.awq_words import read_awq
from lrkit.checkpoints.quantized.compressed_tensors import read_compressed_tensors
from lrkit.checkpoints.quantized.gguf_weights import read_gguf
from lrkit.checkpoints.quantized.gptq_words import read_gptq
from lrkit.checkpoints.quantized.modules import Stored
from lrkit.checkpoints.quantized.quantization import Quantization, read_quantization
from lrkit.checkpoints.tensors.stored import Weight
from lrkit.errors import CheckpointError
from lrkit.families.layout import Layout
from lrkit.files import read_json

Reader = Callable[[Quantization, Stored, Layout], dict[str, Weight]]
"""(what config.json says, tensors of the safetensors files by their names in transformers, layout) -> all weights by
these names, which whole_weights.py holds against the layout. Raises `CheckpointError`."""


def quantization_of(base: Path) -> Quantization | None:
    """How the integers of a backbone's folder are held; None where its weights are floats.

    Raises:
        CheckpointError: as `read_quantization`.
    """
    file = base / "config.json"
    return read_quantization(read_json(file, CheckpointError), str(file))


def unpacked(base: Path, stored: Stored, layout: Layout) -> dict[str, Weight]:
    """The weights of a backbone's folder by their names in transformers, from the tensors of its safetensors files.

    Raises:
        CheckpointError: they are integers in a form that is not read here, or that does not fit config.json.
    """
    given = quantization_of(base)
    if given is None:
        return dict(stored)
    readers: Mapping[str, Reader] = {
        "gptq": read_gptq, "awq": read_awq, "compressed-tensors": read_compressed_tensors,
        "gguf": lambda given, stored, layout: read_gguf(base / given.file, stored, layout),
    }  # fmt: skip
    return readers[given.layout](given, stored, layout)
