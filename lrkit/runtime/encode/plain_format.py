"""The prompt format of a plain Hugging Face folder, which has no prompt.json: from its chat template, its special
tokens and its list of end tokens. Torch-free.

Place in the pipeline: `Processor.from_folder` -> `plain_format` -> `PromptFormat`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lrkit.contract.prompt import PromptFormat, SpecialTokens
from lrkit.errors import CheckpointError, shown
from lrkit.families.protocols import PromptStyle
from lrkit.files import read_json
from lrkit.runtime.encode.chat_template import ANSWER_MARK, QUESTION_MARK, find_template, render_chat
from lrkit.runtime.encode.tokenizer_files import guarded

_MAX_ENDS = 16


def plain_format(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, style: PromptStyle) -> PromptFormat:
    """The chat template around one user turn, with what ends a turn and all that ends an answer. `config` is
    tokenizer_config.json. Without a chat template the family's plain turn is taken, or lrkit's default.

    Raises:
        CheckpointError: the template cannot be rendered, or shows a picture in an unknown way; a special token is of
            another type than a text.
        MissingExtraError: there is a template and jinja2 is not installed.
    """
    image_token, image = _image(folder, tokenizer, style)
    ends = _ends(folder, config, tokenizer)
    pad = next(_texts(folder, config, "pad_token"), None)
    template = find_template(folder, config)
    values: dict[str, Any] = {"image": image}
    if template is not None:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        given = {name: text for name in names for text in list(_texts(folder, config, name))[:1]}
        chat = render_chat(folder, template, given, image)
        # A brace in the chat text is harmless: only the two placeholders are ever replaced.
        values["template"] = chat.prompt.replace(image, "{images}").replace(QUESTION_MARK, "{question}")
        bare = None if chat.bare is None else chat.bare.replace(QUESTION_MARK, "{question}")
        if bare != values["template"].replace("{images}", ""):
            values["bare_template"] = bare
        if chat.between is not None and chat.prompt.index(image) < chat.prompt.index(QUESTION_MARK):
            values["between_turns"] = chat.between.replace(ANSWER_MARK, "{answer}")
        ends = [token for token in [_turn_end(chat.end, tokenizer)] if token] + ends
    elif style.plain_template is not None:
        values["template"] = _beginning(folder, tokenizer) + style.plain_template
    ends = list(dict.fromkeys(ends)) or [SpecialTokens().eos]
    if pad is None:
        pad = next((name for name in (SpecialTokens().pad, "<|endoftext|>") if tokenizer.token_to_id(name)), ends[0])
    if (
        "{images}" in image
        or values.get("between_turns", "{answer}").count("{answer}") != 1
        or "{question}" in image
        or values.get("template", "{images}{question}").count("{images}") != 1
    ):
        raise CheckpointError(f"{folder}: the chat template holds lrkit's own placeholders; add a prompt.json")
    latent = next((name for name in style.latent_tokens if tokenizer.token_to_id(name) is not None), None)
    more, latent = tuple(ends[1:_MAX_ENDS]), latent or SpecialTokens().latent
    tokens = SpecialTokens(image=image_token, latent=latent, eos=ends[0], more_ends=more, pad=pad)
    return PromptFormat(**values, tokens=tokens)


def _image(folder: Path, tokenizer: Tokenizer, style: PromptStyle) -> tuple[str, str]:
    """The image token and the text of one picture, as the family has them."""
    config = read_json(folder / "config.json", CheckpointError, missing_ok=True)

    def name_of(index: Any) -> str | None:
        return tokenizer.id_to_token(index) if type(index) is int and 0 <= index < 1 << 31 else None

    found = style.picture_text(config, name_of)
    return (SpecialTokens().image, str(PromptFormat.model_fields["image"].default)) if found is None else found


def _beginning(folder: Path, tokenizer: Tokenizer) -> str:
    """What the tokenizer begins every text with: a chat template would write it."""
    with guarded(f"{folder}: the tokenizer cannot begin a text", CheckpointError, "copy the tokenizer again"):
        whole, bare = (tokenizer.encode("a", add_special_tokens=added).ids for added in (True, False))
    return "".join(tokenizer.id_to_token(index) or "" for index in whole[: len(whole) - len(bare)])


def _ends(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """All tokens that end an answer, the tokenizer's own first."""
    found = list(_texts(folder, config, "eos_token"))
    file = folder / "generation_config.json"
    if not file.exists():
        file = folder / "config.json"
    ids = read_json(file, CheckpointError, missing_ok=True).get("eos_token_id")
    listed: list[Any] = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(type(index) is int and 0 <= index < 1 << 31 for index in listed):
        raise CheckpointError(f"{file}: eos_token_id is {shown(ids, 60)} where token ids belong; copy it again")
    return found + [name for index in listed if (name := tokenizer.id_to_token(index))]


def _texts(folder: Path, config: Mapping[str, Any], key: str) -> Iterator[str]:
    """A special token of tokenizer_config.json: a text, a mapping with `content`, or a list of them."""
    value = config.get(key)
    values: list[Any] = value if isinstance(value, list) else [value]
    for one in values:
        text = one.get("content") if isinstance(one, dict) else one
        if text is not None and (not isinstance(text, str) or not text):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {key} is {shown(value, 60)} where a text belongs; copy "
                "the file again, or add a prompt.json"
            )
        if text is not None:
            yield text


def _turn_end(behind: str, tokenizer: Tokenizer) -> str | None:
    """The added token that the template puts right behind an answer."""
    text = behind.lstrip()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    fitting = [content for content in added if content.strip() and text.startswith(content)]
    return max(fitting, key=len, default=None)
