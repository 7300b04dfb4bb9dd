"""Questions, pictures and steps to token ids and patches, and ids back to text. Torch-free: shared by all engines.

Place in the pipeline: `Sample` or a user's question -> `Processor` -> collate (training) or engine (runtime). Works
with the folders of every family; `prompt.json` there holds lrkit's part.

Every spoken piece (a step, the answer marker, the answer) is encoded on its own, with the separator's ids in between.
So the ids of a piece do not depend on what latents replaced before it, and a piece has the same ids first and last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import AddedToken, Tokenizer

from lrkit.config import load_config
from lrkit.contract.bundle.limits import check_images, check_prompt
from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.generated import Mode
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.settings import ReplaySettings
from lrkit.errors import CheckpointError, ConfigError, DataError, UnknownNameError, one_line
from lrkit.families.protocols import Geometry, Grid
from lrkit.families.table import family_of, geometry_of, prompt_style
from lrkit.files import read_json, write_json, write_text
from lrkit.pictures.input import ImageSource
from lrkit.pictures.load import Pictures
from lrkit.runtime.encode.chat_template import find_template
from lrkit.runtime.encode.controls import ControlTokens
from lrkit.runtime.encode.fitting import Resized, fit_pictures
from lrkit.runtime.encode.looked import Looked
from lrkit.runtime.encode.plain_format import plain_format
from lrkit.runtime.encode.tokenizer_files import CONFIG_FILE, FILE, config_to_write, guarded, read_tokenizer

PROMPT_FILE = "prompt.json"


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for the model."""

    ids: list[int]
    """Token ids; the visual tokens are those equal to the image token's id."""
    patches: np.ndarray | None
    """uint8 (all pictures' patches, bytes of a patch); None without a picture."""
    grids: list[Grid]
    """Per picture: how it was cut, in the family's own numbers."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Per picture: (width, height) in pixels as given, upright."""
    geometry: Geometry | None = None
    """How the patches were cut; None without a picture."""
    resized: tuple[Resized, ...] = ()
    """The pictures that a limit made smaller."""
    picture_part: int = 0
    """Ids of the picture part: up to and with the last visual token. 0 where the prompt has one part: without a
    picture, and where nothing follows the last one."""
    looked: Looked | None = field(default=None, repr=False, compare=False)
    """What reading the picture part left; None where it is still to be read."""
    windows: np.ndarray | None = None
    """uint8 (visual tokens, patches of a window, bytes of a patch): what each visual token covers in the full picture,
    as `Geometry.cut_windows` cuts it; None where replay is not fine, or without a picture."""

    @property
    def pixel_values(self) -> np.ndarray | None:
        """The patches as the torch model reads them (`Geometry.pixel_values`); None without a picture."""
        if self.patches is None:
            return None
        assert self.geometry is not None, "patches without the geometry that they were cut by"
        return self.geometry.pixel_values(self.patches)

    @property
    def window_values(self) -> np.ndarray | None:
        """The windows as the torch model reads them, float32 (V, M, C); None where there are none."""
        if self.windows is None:
            return None
        assert self.geometry is not None, "windows without the geometry that they were cut by"
        values = self.geometry.pixel_values(self.windows.reshape(-1, self.windows.shape[-1]))
        return values.reshape(*self.windows.shape[:2], -1)


class Processor:
    """Tokenizer, image geometry and prompt format of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        geometry: Geometry,
        format: PromptFormat,
        tokenizer_config: dict[str, Any] | None = None,
    ):
        """Takes over `tokenizer`: turns padding and truncation off, adds the latent token where it is missing.

        Raises:
            CheckpointError: another special token of `format`, or a word of it, is not in the vocabulary.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        names = format.tokens
        if tokenizer.token_to_id(names.latent) is None:
            with guarded("the latent token cannot be added", CheckpointError, "copy the tokenizer again"):
                tokenizer.add_special_tokens([AddedToken(names.latent, special=True, normalized=False)])
        self.tokenizer = tokenizer
        self.format = format
        self.tokenizer_config = dict(tokenizer_config or {})
        self.image_id = self._special_id("image", names.image)
        self.latent_id = self._special_id("latent", names.latent)
        self.eos_id = self._special_id("eos", names.eos)
        self.pad_id = self._special_id("pad", names.pad)
        self.geometry = geometry.with_marker_ids([self._encode(text) for text in geometry.markers])
        self.end_ids = (self.eos_id, *(self._special_id("more_ends", name) for name in names.more_ends))
        """Tokens that end an answer; the first is the one that training ends it with."""
        self.answer_prefix_ids: list[int] = self._encode(format.answer_marker)
        """What the mode `direct` forces: the ids of the answer template before the answer."""
        self.limits: Limits | None = None
        """What a bundle was made for; None (a checkpoint) sets no limit."""
        self.zoom = 1
        """How many times longer the sides of full pictures are than of those in the prompt; see `see_for`."""
        self._separator_ids = self._encode(format.step_separator) if format.step_separator else []
        self._controls = ControlTokens(tokenizer, format, geometry.markers)
        around = self._encode(format.prompt_text("", 1))
        self._controls.check_prompt(around, "", 1)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
        if self._unknown_id in (*around, *self.answer_prefix_ids, *self._separator_ids):
            raise CheckpointError(
                f"{PROMPT_FILE} holds words that the tokenizer lacks; the files are of two models, so copy both again"
            )

    @classmethod
    def from_folder(cls, folder: Path | str, family: str | None = None) -> Self:
        """Read tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json, preprocessor_config.json and
        prompt.json.

        Without prompt.json (a plain Hugging Face folder) the format comes from the folder's chat template. `family`
        is whose image processor it is; None: as config.json says.

        Raises:
            CheckpointError: a file is missing or cannot be used, or the family is unknown.
            MissingExtraError: a chat template, and the package that renders it is not installed.
        """
        folder = Path(folder)
        config = read_json(folder / CONFIG_FILE, CheckpointError, missing_ok=True)
        family = family_of(folder) if family is None else family
        try:
            geometry, style = geometry_of(family), prompt_style(family)
        except UnknownNameError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        tokenizer = read_tokenizer(folder, config, style)
        prompt = folder / PROMPT_FILE
        if prompt.exists():
            format = _read_format(prompt)
        else:
            format = plain_format(folder, config, tokenizer, style)
            config = {**config, **_template_to_keep(folder, config)}
        return cls(tokenizer, geometry.from_folder(folder), format, config)

    def save(self, folder: Path | str) -> None:
        """Write the four files of `from_folder`, and processor_config.json where the family has one; transformers reads
        all but prompt.json, with the same ids.

        Raises:
            FileError: one cannot be written.
        """
        folder = Path(folder)
        with guarded("the tokenizer cannot be written", CheckpointError, "give another one"):
            text = self.tokenizer.to_str(pretty=True)
        names = self.format.tokens
        write_text(folder / FILE, text)
        config = config_to_write(self.tokenizer, self.tokenizer_config, names.eos, names.pad)
        write_json(folder / CONFIG_FILE, config, ensure_ascii=False)
        write_json(folder / "preprocessor_config.json", self.geometry.to_hf(), ensure_ascii=False)
        if values := self.geometry.to_processor():
            write_json(folder / "processor_config.json", values, ensure_ascii=False)
        write_json(folder / PROMPT_FILE, self.format.model_dump(mode="json", exclude_none=True), ensure_ascii=False)

    def see_for(self, replay: ReplaySettings) -> Self:
        """Cuts pictures as this replay reads them from now on: with windows where its source is fine. Gives itself.

        Raises:
            UserError: the family's pictures cannot be cut so.
        """
        self.geometry = self.geometry.with_zoom(replay.fine_zoom)
        self.zoom = replay.fine_zoom
        return self

    def encode_prompt(
        self, images: Sequence[ImageSource], question: str, max_pixels: int | None = None
    ) -> EncodedPrompt:
        """Ids and patches of a question about pictures; each picture's image token becomes one per visual token, with
        the family's markers between them.

        Pictures above `max_pixels` (None: the image processor's own) or too large for `limits` together are shrunk by
        the processor's own resizing rule; `EncodedPrompt.resized` names them.

        Raises:
            DataError: a picture cannot be read, or the question holds a control token or an unknown word.
            CapacityError: a picture is too large to be decoded, or the prompt is above `limits` whatever the size of
                its pictures.
            UserError: `max_pixels` is less than one visual token.
        """
        if not question.strip():
            raise DataError("the question is empty; ask something")
        self._controls.refuse(question, "question")
        text_ids = self._encode(self.format.prompt_text(question, len(images)))
        self._refuse_unknown(text_ids, question, "question")
        self._controls.check_prompt(text_ids, question, len(images))
        geometry = self.geometry.with_max_pixels(max_pixels)
        if self.limits is not None:
            check_images(self.limits, len(images))
        pictures = Pictures(images)
        sizes = pictures.sizes
        # The mode direct adds the answer's marker: pictures leave room for it in every mode, so that all see the same.
        text_tokens = len(text_ids) - len(images) + len(self.answer_prefix_ids)
        fitted = fit_pictures(sizes, geometry, self.limits, text_tokens)
        grids = [used.grid(*size) for used, size in zip(fitted.geometries, sizes, strict=True)]
        expanded = iter([geometry.picture_ids(grid, self.image_id) for grid in grids])
        ids: list[int] = []
        for token in text_ids:
            ids.extend(next(expanded) if token == self.image_id else [token])
        if self.limits is not None:
            check_prompt(self.limits, len(ids), len(grids), sum(map(geometry.num_patches, grids)))
        cut: list[np.ndarray] = []
        windows: list[np.ndarray] = []
        for index, used in enumerate(fitted.geometries):
            picture = pictures.take(index)
            cut.append(used.cut(picture))
            if self.zoom > 1:
                windows.append(used.cut_windows(picture))
        seen, part = geometry if cut else None, picture_part(ids, self.image_id)
        given = _joined(cut), grids, sizes, seen, tuple(fitted.resized), part
        return EncodedPrompt(ids, *given, windows=_joined(windows))

    def asked_in(self, prompt: EncodedPrompt, mode: Mode) -> EncodedPrompt:
        """What the model reads in that mode. In `direct` the bare answer is asked for by beginning it: the answer's
        marker ends the prompt, in training as in use (method section 1)."""
        return replace(prompt, ids=prompt.ids + self.answer_prefix_ids) if mode == "direct" else prompt

    def encode_speech(self, steps: Sequence[str], answer: str) -> list[int]:
        """Ids of the spoken steps, the answer and the end token.

        Raises:
            DataError: a step or the answer is empty, or holds a control token or an unknown word.
        """
        ids: list[int] = []
        for step in steps:
            ids += self._encode_piece(step, step, "step") + self._separator_ids
        _, rest = self.format.answer_parts(answer)
        return ids + self.answer_prefix_ids + self._encode_piece(rest, answer, "answer") + [self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text, without special tokens."""
        return self._decode(list(ids), True).strip()

    def token_text(self, token_id: int) -> str:
        """The text of one token without surrounding space; special tokens by their name."""
        return self._decode([token_id], False).strip()

    @property
    def last_id(self) -> int:
        """The highest id of a token; takes a tenth of a second for a large vocabulary.

        Raises:
            CheckpointError: two tokens have one id.
        """
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        if len(set(ids)) != len(ids):
            raise CheckpointError("the tokenizer gives two tokens one id; copy tokenizer.json again")
        return max(ids)

    def _encode(self, text: str) -> list[int]:
        with guarded("the text cannot be split into tokens", DataError, "check the text and the tokenizer"):
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int], skip: bool) -> str:
        with guarded("tokens cannot be turned into text", CheckpointError, "copy the tokenizer again"):
            return self.tokenizer.decode(ids, skip_special_tokens=skip)

    def _encode_piece(self, text: str, given: str, what: str) -> list[int]:
        if not given.strip():
            raise DataError(f"the {what} is empty; write it or leave the sample out")
        self._controls.refuse(given, what)
        ids = self._encode(text)
        self._refuse_unknown(ids, given, what)
        return ids

    def _special_id(self, what: str, name: str) -> int:
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise CheckpointError(
                f"the tokenizer has no token {name} for {what}; name one that it has in {PROMPT_FILE}, under tokens"
            )
        return found

    def _refuse_unknown(self, ids: list[int], text: str, what: str) -> None:
        if self._unknown_id is None or self._unknown_id not in ids:
            return
        seen = self.tokenizer.encode(text, add_special_tokens=False)
        words = [text[slice(*span)] for id, span in zip(seen.ids, seen.offsets, strict=True) if id == self._unknown_id]
        raise DataError(
            f"the {what} holds words that this model's vocabulary lacks ({_listed(words)}); "
            "use its words or a model with a larger vocabulary"
        )


def picture_part(ids: Sequence[int], image_id: int) -> int:
    """How many ids stand up to and with the last visual token; 0 without one, and where none follows it.

    Both parts are read, and routed, as chunks of their own, so that the first never depends on what is asked.
    """
    behind = next((behind for behind, token in enumerate(reversed(ids)) if token == image_id), 0)
    return len(ids) - behind if behind else 0


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """One after the other; None without any."""
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)) if parts else None


def _read_format(path: Path) -> PromptFormat:
    try:
        return load_config(PromptFormat, read_json(path, CheckpointError))
    except ConfigError as error:
        raise CheckpointError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _template_to_keep(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat template moves into tokenizer_config.json, where every version of transformers finds it."""
    template = find_template(folder, config)
    return {} if template is None else {"chat_template": template}


def _listed(words: Sequence[str], most: int = 10) -> str:
    """Different words of a text as a message shows them: each cut where it is long, and not too many."""
    different = list(dict.fromkeys(words))
    shown = ", ".join(one_line(word, 40) for word in different[:most])
    return f"{shown} and {len(different) - most} more" if len(different) > most else shown
