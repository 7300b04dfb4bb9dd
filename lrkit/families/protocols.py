"""What the host asks of a family of backbones, torch-free: how pictures are read, how a plain folder shows them, and
how models of given sizes are made.

What the torch side asks stands in lrkit/model/backbone.py, what export asks in lrkit/export.

Legend: A axes of positions, P prompt tokens, N patches of all pictures, V visual tokens of one picture, C values of a
patch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from PIL.Image import Image

from lrkit.contract.bundle.io_spec import TensorSpec

Grid = tuple[int, ...]
"""The cut of one picture, in the family's own numbers."""
Size = tuple[int, int]
"""(width, height) in pixels."""
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

WINDOWS = frozenset({"with_zoom", "window_grid", "cut_windows"})
"""Members that a `Geometry` may lack, as those do that were written before there were windows; then its pictures have
none. So callers write `zoomed(geometry, zoom)` (lrkit/families/common/no_windows.py)."""


class Geometry(Protocol):
    """How a picture becomes patches and tokens. A value: it is never changed in place.

    A *grid* is whatever numbers a family needs to know about one picture's cut, always equally many. Only the family
    itself reads it.
    """

    family: ClassVar[str]
    """Its row in the table."""
    axes: ClassVar[int]
    """A, how many positions a token has: 1, or 3 for M-RoPE."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that stand before, between and behind a picture's image tokens, each once; empty where nothing does.
        The tokenizer splits each by itself: a text may be one special token, several tokens, or none."""
        ...

    def with_marker_ids(self, ids: Sequence[Sequence[int]]) -> Self:
        """The same for a tokenizer that makes these ids of each of `markers`. Without it, each counts as one token."""
        ...

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Reads the image processor's file of a Hugging Face folder.

        Raises:
            CheckpointError: it is not there, or describes another kind of image processor.
        """
        ...

    def to_hf(self) -> dict[str, Any]:
        """Values of a preprocessor_config.json that `from_folder` and transformers read as the same."""
        ...

    def to_processor(self) -> dict[str, Any]:
        """Values of a processor_config.json, where transformers needs one beside it; empty where it does not."""
        ...

    @classmethod
    def check_size(cls, width: int, height: int) -> None:
        """Raises `DataError` where the family refuses pictures of such proportions."""
        ...

    def with_max_pixels(self, max_pixels: int | None) -> Self:
        """The same with another largest number of pixels; None: unchanged.

        Raises:
            UserError: less than one visual token.
        """
        ...

    def with_zoom(self, zoom: int) -> Self:
        """The same, whose pictures in the prompt have sides `zoom` times shorter than in full: `cut` gives the small
        picture, `cut_windows` the full one. All limits of pixels hold for the full picture. 1: both are one.

        Raises:
            UserError: pictures of the family cannot be cut into windows.
        """
        ...

    def within(self, size: Size, patches: int, tokens: int) -> Self:
        """The same, shrinking a picture of this size no more than needed for so many patches and prompt tokens."""
        ...

    def seen_size(self, width: int, height: int) -> Size:
        """Size in pixels as the tower sees a picture of this size, in full. Raises as `check_size`."""
        ...

    def grid(self, width: int, height: int) -> Grid:
        """The cut of a picture of this size. Raises as `check_size`."""
        ...

    @property
    def smallest_grid(self) -> Grid:
        """The cut of the smallest picture."""
        ...

    @property
    def resample(self) -> int:
        """Pillow's number of the filter by which pictures are resized."""
        ...

    def cut(self, picture: Image) -> np.ndarray:
        """uint8 (patches, patch_bytes) of an upright RGB picture. Raises as `check_size`."""
        ...

    @property
    def window_grid(self) -> Grid:
        """The cut of one window: zoom x zoom visual tokens."""
        ...

    def cut_windows(self, picture: Image) -> np.ndarray:
        """uint8 (V, patches of a window, patch_bytes) of an upright RGB picture: for each visual token of the prompt,
        in order, the part of the full picture that it covers, cut as a picture of its own. Raises as `check_size`."""
        ...

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch."""
        ...

    def num_patches(self, grid: Grid) -> int:
        """Patches of a picture."""
        ...

    def num_visual_tokens(self, grid: Grid) -> int:
        """V, what the tower makes of a picture."""
        ...

    def num_prompt_tokens(self, grid: Grid) -> int:
        """Tokens of a picture in the prompt: visual ones and markers."""
        ...

    def most_patches(self, num_images: int) -> int:
        """Patches that so many pictures make at most."""
        ...

    def most_prompt_tokens(self, patches: int) -> int:
        """Tokens in the prompt that so many patches make at most."""
        ...

    @property
    def patches_per_token(self) -> int:
        """Patches that one visual token is made of."""
        ...

    def picture_ids(self, grid: Grid, image_id: int) -> list[int]:
        """The prompt's tokens for one picture: `image_id` for each visual token in order, and the markers' ids, which
        `with_marker_ids` gave."""
        ...

    def positions(self, ids: Sequence[int], image_id: int, grids: Sequence[Grid]) -> np.ndarray:
        """int64 (A, P) positions of a prompt without padding.

        Raises:
            DataError: the image tokens in `ids` do not match `grids`.
        """
        ...

    def token_box(self, index: int, grid: Grid, size: Size) -> Box:
        """The part of the original picture of this size that a visual token covers, counted from 0 in the picture:
        (left, top, right, bottom) in its pixels. Where the family shows a picture in parts and once more as a whole,
        boxes of the latter lie over those of the former."""
        ...

    def pixel_values(self, patches: np.ndarray) -> np.ndarray:
        """Patches of bytes as the tower on torch reads them, float32 (N, C)."""
        ...

    @property
    def program_inputs(self) -> tuple[TensorSpec, ...]:
        """What an exported program reads of a prompt beside its ids: position_ids (A, P), pixel_values, uint8
        (N, patch_bytes), and whatever else depends on the grids."""
        ...

    def program_feed(
        self, ids: Sequence[int], image_id: int, grids: Sequence[Grid], patches: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """The arrays of `program_inputs`; `patches` uint8 (N, patch_bytes), None without a picture. Not to be written
        to: they may be kept for the next prompt. Raises as `positions`."""
        ...


class PromptStyle(Protocol):
    """What a plain folder of the family, without prompt.json, leaves unsaid."""

    @property
    def split(self) -> str | None:
        """Regular expression by which vocab.json and merges.txt split text; None: there always is tokenizer.json."""
        ...

    @property
    def plain_template(self) -> str | None:
        """The turn of a user, with {question} and {images}, where a folder has no chat template; in front of it stands
        what the tokenizer begins every text with. None: lrkit's own."""
        ...

    @property
    def latent_tokens(self) -> tuple[str, ...]:
        """Tokens that the makers of a vocabulary left unused, for models whose vocabulary has no free row: the first
        that the tokenizer has is said to think one more latent step. Without any, one is added behind the others."""
        ...

    def picture_text(self, config: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
        """(name of the image token, text of one picture with that token once) by config.json; None: the usual ones.
        `name_of` gives the name of a token id, None for what is none."""
        ...


@dataclass(frozen=True)
class ModelSizes:
    """Numbers from which a model with random weights is made."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocabulary: int
    tied_embeddings: bool
    vision_depth: int
    vision_width: int
    vision_heads: int
    vision_mlp_ratio: int
    rope_theta: float
    max_positions: int | None = None
    """None: as transformers has it."""


@dataclass(frozen=True)
class ModelTokens:
    """Token ids that a config.json names."""

    image: int
    eos: int
    pad: int
    unused: int
    """One that no prompt holds."""
    picture_start: int | None = None
    picture_end: int | None = None


class FreshModels(Protocol):
    """Models with random weights."""

    def geometry(self, patch_size: int, merge_size: int, min_pixels: int, max_pixels: int, plain: bool) -> Geometry:
        """Pictures of so many pixels. `plain` normalises to -1..1, otherwise as the family's published models do."""
        ...

    def config(self, sizes: ModelSizes, geometry: Any, tokens: ModelTokens) -> Any:
        """transformers' config object."""
        ...

    def model(self, config: Any) -> Any:
        """transformers' model with random weights, an nn.Module."""
        ...
