"""Questions, pictures and steps to token ids and patches, and ids back to text. Torch-free: shared by all engines.

Place in the pipeline: `Sample` or a user's question -> `Processor` -> collate (training) or engine (runtime). Works
with the folders of every family; `prompt.json` there holds lrkit's part.

Every spoken piece (a step, the answer marker, the answer) is encoded on its own, with the separator's ids in between.
So the ids of a piece do not depend on what latents replaced before it, and a piece has the same ids first and last.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import AddedToken, Tokenizer

from lrkit.config import load_config
from lrkit.contract.bundle.limits import check_images, check_prompt
from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.generated import Mode
from lrkit.contract.prompt import PromptFormat, Turn
from lrkit.contract.settings import ReplaySettings
from lrkit.errors import CheckpointError, ConfigError, DataError, UnknownNameError, UserError, one_line
from lrkit.families.common.no_windows import zoomed
from lrkit.families.protocols import Geometry, Grid
from lrkit.families.table import family_of, geometry_of, prompt_style
from lrkit.files import read_json, write_json, write_text
from lrkit.pictures.input import ImageSource
from lrkit.pictures.load import Pictures
from lrkit.runtime.encode.chat_template import find_template
from lrkit.runtime.encode.controls import ControlTokens
from lrkit.runtime.encode.encoded_prompt import EncodedPrompt, picture_part
from lrkit.runtime.encode.fitting import fit_pictures
from lrkit.runtime.encode.kept_cuts import Cut, KeptCuts, key_of
from lrkit.runtime.encode.plain_format import plain_format
from lrkit.runtime.encode.tokenizer_files import CONFIG_FILE, FILE, config_to_write, guarded, read_tokenizer

PROMPT_FILE = "prompt.json"
QUESTION_ROOM = 128
"""Tokens of text for which pictures of a scene leave room where a bundle limits the prompt; at most a quarter of it."""


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
        self.kept: KeptCuts | None = None
        """Pictures that need not be decoded again; None keeps none."""
        self.separator_ids = self._encode(format.step_separator) if format.step_separator else []
        """What is spoken between two pieces."""
        self._controls = ControlTokens(tokenizer, format, geometry.markers)
        around = self._encode(format.prompt_text("", 1))
        self._controls.check_prompt(around, "", 1)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
        if self._unknown_id in (*around, *self.answer_prefix_ids, *self.separator_ids):
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
        self.geometry = zoomed(self.geometry, replay.fine_zoom)
        self.zoom = replay.fine_zoom
        return self

    def encode_prompt(
        self,
        images: Sequence[ImageSource],
        question: str,
        max_pixels: int | None = None,
        earlier: Sequence[Turn] = (),
    ) -> EncodedPrompt:
        """Ids and patches of a question about pictures, behind `earlier` turns about them; each picture's image token
        becomes one per visual token, with the family's markers between them.

        Pictures above `max_pixels` (None: the image processor's own) or too large for `limits` together are shrunk by
        the processor's own resizing rule; `EncodedPrompt.resized` names them.

        Raises:
            DataError: a picture cannot be read, or the question holds a control token or an unknown word.
            UserError: earlier turns, and the format has no follow-ups.
            CapacityError: a picture is too large to be decoded, or the prompt is above `limits` whatever the size of
                its pictures.
            UserError: `max_pixels` is less than one visual token.
        """
        text_ids = self.text_ids(question, len(images), earlier)
        prompt = self._cut(images, text_ids, max_pixels, 0)
        return replace(prompt, picture_part=picture_part(prompt.ids, self.image_id))

    def encode_pictures(self, images: Sequence[ImageSource], max_pixels: int | None = None) -> EncodedPrompt:
        """The picture part of every prompt about these pictures, for `Engine.look`. Limits of a bundle leave room for
        `QUESTION_ROOM` tokens of text.

        Raises:
            UserError: the format has the question in front of the pictures, or there is no picture.
            DataError, CapacityError: as `encode_prompt`.
        """
        if not images:
            raise DataError("there is no picture to look at; give one, or ask without a scene")
        if not self.format.asks_behind_pictures:
            raise UserError(
                "this model's prompts have the question in front of the pictures, so these cannot be read before it is "
                "known; ask about the pictures themselves"
            )
        prompt = self._cut(images, self._around(len(images)), max_pixels, QUESTION_ROOM)
        ids = self.picture_ids(prompt.grids)
        return replace(prompt, ids=ids, picture_part=len(ids))

    def picture_ids(self, grids: Sequence[Grid]) -> list[int]:
        """Ids of the picture part of every prompt about pictures that are cut so."""
        ids = self.with_pictures(self._around(len(grids)), grids)
        return ids[: len(ids) - ids[::-1].index(self.image_id)]

    def _around(self, num_images: int) -> list[int]:
        """Ids of a prompt without a question."""
        text_ids = self._encode(self.format.prompt_text("", num_images))
        self._controls.check_prompt(text_ids, "", num_images)
        return text_ids

    def encode_behind(self, pictures: EncodedPrompt, question: str, earlier: Sequence[Turn] = ()) -> EncodedPrompt:
        """The prompt of a question about what `encode_pictures` gave. Raises as `encode_prompt`."""
        ids = self.with_pictures(self.text_ids(question, len(pictures.grids), earlier), pictures.grids)
        part = pictures.picture_part
        if ids[:part] != pictures.ids or part == len(ids):
            raise DataError("the question changes how its pictures are told; ask about the pictures themselves")
        if self.limits is not None:
            patches = sum(map(self.geometry.num_patches, pictures.grids))
            check_prompt(self.limits, len(ids), len(pictures.grids), patches)
        return replace(pictures, ids=ids)

    def _cut(
        self, images: Sequence[ImageSource], text_ids: Sequence[int], max_pixels: int | None, room: int
    ) -> EncodedPrompt:
        """Cuts pictures, and puts their tokens into a prompt; `room` tokens of text are still to come."""
        geometry = self.geometry.with_max_pixels(max_pixels)
        if self.limits is not None:
            check_images(self.limits, len(images))
            room = min(room, self.limits.max_prompt_tokens // 4)
        keys, held = self._kept(images, geometry)
        pictures = Pictures([image for index, image in enumerate(images) if index not in held])
        places = {index: place for place, index in enumerate(i for i in range(len(images)) if i not in held)}
        sizes = [held[i].size if i in held else pictures.sizes[places[i]] for i in range(len(images))]
        # The mode direct adds the answer's marker: pictures leave room for it in every mode, so that all see the same.
        text_tokens = len(text_ids) - len(images) + len(self.answer_prefix_ids) + room
        fitted = fit_pictures(sizes, geometry, self.limits, text_tokens)
        grids = [used.grid(*size) for used, size in zip(fitted.geometries, sizes, strict=True)]
        ids = self.with_pictures(text_ids, grids)
        if self.limits is not None:
            check_prompt(self.limits, len(ids), len(grids), sum(map(geometry.num_patches, grids)))
        cut: list[np.ndarray] = []
        windows: list[np.ndarray] = []
        for index, used in enumerate(fitted.geometries):
            if (one := held.get(index)) is None:
                picture = pictures.take(places[index])
                one = Cut(sizes[index], used.cut(picture), used.cut_windows(picture) if self.zoom > 1 else None)
                if self.kept is not None and keys[index] is not None:
                    self.kept.keep(keys[index], one)
            cut.append(one.patches)
            windows += [] if one.windows is None else [one.windows]
        given = _joined(cut), grids, sizes, geometry if cut else None, tuple(fitted.resized)
        return EncodedPrompt(ids, *given, windows=_joined(windows))

    def _kept(self, images: Sequence[ImageSource], geometry: Geometry) -> tuple[list[Hashable], dict[int, Cut]]:
        """Keys of pictures, and those that were kept of them; under limits a picture may be cut in another way."""
        if self.kept is None or self.limits is not None:
            return [None] * len(images), {}
        keys = [key_of(image, geometry, self.zoom) for image in images]
        found = {index: self.kept.get(key) for index, key in enumerate(keys) if key is not None}
        return keys, {index: cut for index, cut in found.items() if cut is not None}

    def text_ids(self, question: str, num_images: int, earlier: Sequence[Turn] = ()) -> list[int]:
        """Ids of a prompt with one image token per picture. Raises as `encode_prompt`."""
        if not question.strip():
            raise DataError("the question is empty; ask something")
        if earlier and self.format.between_turns is None:
            raise UserError(
                "this model's prompt format has no follow-ups; ask each question on its own, or give its "
                f"{PROMPT_FILE} the words between_turns"
            )
        told = [(turn.question, "earlier question") for turn in earlier]
        for text, what in [*told, *((turn.answer, "earlier answer") for turn in earlier)]:
            self._controls.refuse(text, what)
            self._refuse_unknown(self._encode(text), text, what)
        self._controls.refuse(question, "question")
        text_ids = self._encode(self.format.prompt_text(question, num_images, earlier))
        self._refuse_unknown(text_ids, question, "question")
        self._controls.check_prompt(text_ids, question, num_images)
        return text_ids

    def with_pictures(self, text_ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """Ids in which each picture's image token has become one per visual token, with markers."""
        expanded = iter([self.geometry.picture_ids(grid, self.image_id) for grid in grids])
        ids: list[int] = []
        for token in text_ids:
            ids.extend(next(expanded) if token == self.image_id else [token])
        return ids

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
            ids += self._encode_piece(step, step, "step") + self.separator_ids
        return ids + self.answer_prefix_ids + self.encode_answer(answer) + [self.eos_id]

    def encode_answer(self, answer: str, what: str = "answer") -> list[int]:
        """Ids of the answer as it is spoken behind its marker. Raises as `encode_speech`, naming `what` it is."""
        return self._encode_piece(self.format.answer_parts(answer)[1], answer, what)

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text, without special tokens."""
        return self._decode(list(ids), True).strip()

    def token_text(self, token_id: int) -> str:
        """The text of one token without surrounding space; special tokens by their name."""
        return self._decode([token_id], False).strip()

    def one_token(self, text: str) -> int | None:
        """The id of the one token that is this text, with its leading space; None where there is none."""
        ids = self._encode(text)
        return ids[0] if len(ids) == 1 and self._decode(ids, False).strip() == text.strip() else None

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
