"""Reads a tokenizer from tokenizer.json, or from vocab.json and merges.txt as older folders have them, and writes
it so that transformers opens it with the same ids. Needs `tokenizers` only.

The tokenizers package raises bare exceptions, and panics in Rust on some files. `guarded` turns both into lrkit's
errors.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lrkit.errors import CheckpointError, LrkitError, UserError, clean, one_line
from lrkit.families.protocols import PromptStyle
from lrkit.files import read_json, read_text

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_AGAIN = "copy the file again"
_MAX_BYTES = 64 << 20
_MAX_ID = 1 << 24


@contextmanager
def guarded(what: str, error: type[UserError], remedy: str) -> Generator[None]:
    """Whatever the tokenizers package raises becomes `error`: what, the reason, remedy.

    Its panics are no `Exception`, so that no ordinary handler stops them.
    """
    try:
        yield
    except LrkitError:
        raise
    except Exception as reason:
        raise error(f"{what} ({one_line(reason)}); {remedy}") from reason
    except BaseException as reason:
        if type(reason).__name__ != "PanicException":  # Ctrl-C and the like
            raise
        raise error(f"{what} ({one_line(reason)}); {remedy}") from reason


def read_tokenizer(folder: Path, config: Mapping[str, Any], style: PromptStyle) -> Tokenizer:
    """The tokenizer of a folder, with the added tokens that only `config` (tokenizer_config.json) names.

    Raises:
        CheckpointError: there is none, it is damaged, or an added token does not get its id.
    """
    path = folder / FILE
    if path.exists():
        text = read_text(path, CheckpointError, _MAX_BYTES)
        with guarded(f"{path}: is not a usable tokenizer", CheckpointError, _AGAIN):
            tokenizer = Tokenizer.from_str(text)
    elif style.split is not None and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = _from_merges(folder, style.split)
    else:
        older = ", nor vocab.json and merges.txt" if style.split is not None else ""
        raise CheckpointError(f"{folder}: has no {FILE}{older}; put the model's {FILE} and {CONFIG_FILE} there by hand")
    with guarded(f"{folder}: the added tokens cannot be used", CheckpointError, _AGAIN):
        _add_missing(tokenizer, folder, config)
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer


def _from_merges(folder: Path, pattern: str) -> Tokenizer:
    vocabulary = read_json(folder / "vocab.json", CheckpointError)
    if not all(type(index) is int and 0 <= index < _MAX_ID for index in vocabulary.values()):
        raise CheckpointError(f"{folder / 'vocab.json'}: an entry has no id; {_AGAIN}")
    lines = read_text(folder / "merges.txt", CheckpointError).splitlines()
    split_lines = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    pairs = [(pair[0], pair[1]) for pair in split_lines if len(pair) == 2]
    if len(pairs) != len(split_lines):
        raise CheckpointError(f"{folder / 'merges.txt'}: a line is no pair of tokens; {_AGAIN}")
    with guarded(f"{folder}: vocab.json and merges.txt are not a usable tokenizer", CheckpointError, _AGAIN):
        tokenizer: Any = Tokenizer(models.BPE(vocabulary, pairs, byte_fallback=False, fuse_unk=False))
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _add_missing(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Tokens that stand in tokenizer_config.json or added_tokens.json alone; transformers adds them too."""
    wanted = _added_tokens(folder, config)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for index, token in sorted(wanted.items()):
        if token.content not in known:
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (got := tokenizer.token_to_id(token.content)) != index:
            raise CheckpointError(
                f"{folder}: {CONFIG_FILE} gives {clean(token.content)} the id {index}, the vocabulary {got}; the files "
                "are of two tokenizers, so copy both again"
            )


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    label = f"{folder / CONFIG_FILE}: added_tokens_decoder"
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{label} is a {type(listed).__name__} where a mapping belongs; {_AGAIN}")
    entries: dict[str, Any] = listed
    found: dict[int, AddedToken] = {}
    for index, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not (
            index.isascii() and index.isdecimal() and int(index) < _MAX_ID and isinstance(content, str) and content
        ):
            raise CheckpointError(f"{label}: {clean(index)[:40]!r} is no id with its token; {_AGAIN}")
        flags = {name: entry.get(name, False) is True for name in ("lstrip", "rstrip", "single_word", "special")}
        found[int(index)] = AddedToken(content, normalized=entry.get("normalized", False) is True, **flags)
    if not found and not (folder / FILE).exists():
        older = read_json(folder / "added_tokens.json", CheckpointError, missing_ok=True)
        for content, index in older.items():
            if type(index) is not int or not content:
                raise CheckpointError(f"{folder / 'added_tokens.json'}: {clean(content)[:40]!r} has no id; {_AGAIN}")
            found[index] = AddedToken(content, special=True, normalized=False)
    return found


def config_to_write(tokenizer: Tokenizer, config: Mapping[str, Any], eos: str, pad: str) -> dict[str, Any]:
    """tokenizer_config.json for `tokenizer`: what `config` says, and every added token with its id, as transformers'
    own class for a model builds its tokens from these."""
    added = {
        str(index): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized, "rstrip": token.rstrip,
            "single_word": token.single_word, "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    # The plain fast class: it takes tokenizer.json as it is, where a model's own class may rebuild parts of it.
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {**defaults, **config, "added_tokens_decoder": added, "eos_token": eos, "pad_token": pad}
