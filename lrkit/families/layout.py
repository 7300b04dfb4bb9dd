"""What the files of a backbone must hold, worked out from its config.json without torch: names and shapes of all
weights.

Place in the pipeline: config.json -> `read_layout` (table.py) -> `Layout` -> whole_weights.py, which holds it against
the headers of the files, before a byte of memory is taken for weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A backbone, as its config.json describes it."""

    family: str
    """Its model_type."""
    width: int
    num_layers: int
    vocabulary: int
    """Rows of the embedding."""
    max_positions: int
    """Longest sequence that the model was made for."""
    image_id: int
    """Token that stands for one visual token; no answer ever holds it."""
    cut: Mapping[str, int]
    """How the tower wants pictures cut: what these attributes of the family's geometry must be."""
    tied: bool
    """The head is the embedding matrix."""
    tensors: Mapping[str, Shape]
    """Every weight by its name in transformers."""
    copies: Mapping[str, str]
    """Weights that are others under a second name: the head of a tied model -> the embedding. Some tools store both."""
    adapted: Mapping[str, tuple[int, int]]
    """Modules that LoRA is put on: name -> (inputs, outputs)."""
    config: Mapping[str, Any]
    """config.json without what could make transformers load anything else."""
    canonical: Callable[[str], str | None]
    """Name in the files -> name in transformers; None for a tensor that transformers passes over."""
    gguf: tuple[str, ...] = ()
    """Architectures of GGUF files (general.architecture) whose language model is the family's."""
