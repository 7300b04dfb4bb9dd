"""What a client may send to /v1/chat/completions, read strictly: `ChatRequest` -> `Question`. Torch-free.

Place in the pipeline: app.py hands over the JSON of a body -> `read_request` -> `Question`, which answerer.py answers.

The fields are those of OpenAI's chat completions. `lrkit` is an extension; the openai package sends it by the argument
extra_body. Answers are greedy, so the fields of sampling are taken and change nothing. What would change the answer and
cannot be done is refused, not passed over.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from lrkit.config import Config, load_config
from lrkit.contract.choosing import Choices, Say
from lrkit.contract.generated import Mode
from lrkit.errors import ConfigError, DataError, UserError, shown

Effort = Literal["none", "minimal", "low", "medium", "high"]
Halting = Literal["adaptive", "fixed"]
Fetch = Callable[[str], bytes]
"""Gets a picture by its address, or raises `DataError`."""


class ImageUrl(Config):
    """Where a picture is."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Changes nothing: the model's own limits hold."""


class Part(Config):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(Config):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    refusal: str | None = None
    """Comes back with an assistant's message; changes nothing."""
    lrkit: Any = None
    """The same."""


class StreamOptions(Config):
    """What a stream holds beside the words."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Changes nothing."""


class Own(Config):
    """What no other server has."""

    mode: Mode | None = None
    """latent, cot or direct; null: by `reasoning_effort`."""
    max_latent_steps: int | None = Field(default=None, ge=0)
    halting: Halting | None = None
    max_pixels: int | None = Field(default=None, ge=1)
    choices: tuple[str, ...] | None = None
    """The answer is one of these."""
    say: Say = "letters"
    """How choices are said: letters, texts or listed."""
    trace: bool = False
    """Tell for each latent step which parts of the pictures were replayed."""


class ChatRequest(Config):
    """A body of /v1/chat/completions."""

    model: str | None = None
    messages: tuple[Message, ...] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Effort | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    lrkit: Own = Own()
    temperature: float | None = None
    """This and what follows change nothing: answers are greedy, and nothing is kept."""
    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    """{"type": "text"} alone."""


@dataclass(frozen=True)
class Question:
    """What is to be answered."""

    model: str | None
    pictures: tuple[bytes, ...]
    earlier: tuple[tuple[str, str], ...]
    """Questions and answers before it."""
    text: str
    mode: Mode | None
    """None: the model's first."""
    effort: Effort | None
    own: Own
    choices: Choices | None
    max_new_tokens: int | None
    stream: bool
    usage_in_stream: bool


def read_request(body: Any, fetch: Fetch) -> Question:
    """Reads the JSON of a body.

    Raises:
        UserError: it is no such request, or asks for what cannot be done.
        DataError: a picture is none, or may not be fetched.
    """
    if not isinstance(body, dict):
        raise UserError("the body is no JSON object; send one with messages")
    try:
        request = load_config(ChatRequest, body, label="request")
    except ConfigError as error:
        raise UserError("; ".join(str(error).splitlines()[:5])) from None
    if request.response_format is not None and request.response_format.get("type") != "text":
        raise UserError("response_format is no text; leave it out, or give lrkit.choices for an answer out of several")
    pictures, earlier, text = _conversation(request.messages, fetch)
    own = request.lrkit
    chosen = None if own.choices is None else Choices.of(Choices(own.choices, own.say))
    if chosen is not None and earlier:
        raise UserError("choices are for a first question, and there are messages before it; send it alone")
    return Question(
        request.model, pictures, earlier, text, own.mode, request.reasoning_effort, own, chosen,
        request.max_completion_tokens or request.max_tokens, request.stream,
        request.stream_options is not None and request.stream_options.include_usage,
    )  # fmt: skip


def _conversation(
    messages: Sequence[Message], fetch: Fetch
) -> tuple[tuple[bytes, ...], tuple[tuple[str, str], ...], str]:
    """Pictures, earlier turns and the question. Instructions stand before the first question, as its beginning."""
    orders = [_text_of(one, i) for i, one in enumerate(messages) if one.role in ("system", "developer")]
    turns = [(i, one) for i, one in enumerate(messages) if one.role in ("user", "assistant")]
    roles = [one.role for _, one in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise UserError(
            f"the messages are of {', '.join(roles) or 'no user'}; give user and assistant in turn, the user first and "
            "last"
        )
    pictures = _pictures_of(turns, fetch)
    texts = [_text_of(one, i) for i, one in turns]
    texts[0] = "\n".join([*orders, texts[0]])
    earlier = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return pictures, earlier, texts[-1]


def _pictures_of(turns: Sequence[tuple[int, Message]], fetch: Fetch) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for place, (index, message) in enumerate(turns):
        for number, part in enumerate(_parts(message)):
            if part.type != "image_url":
                continue
            where = f"messages.{index}.content.{number}"
            if place > 0:
                raise UserError(f"{where} is a picture behind the first message; put all pictures into the first one")
            if part.image_url is None:
                raise UserError(f"{where} has no image_url; give {{'url': 'data:image/png;base64,...'}}")
            found.append(_picture(part.image_url.url, where, fetch))
    return tuple(found)


def _picture(url: str, where: str, fetch: Fetch) -> bytes:
    """The bytes of a data URL, or what its address gives."""
    head, comma, rest = url.partition(",")
    if head[:5].lower() != "data:":
        return fetch(url)
    if not comma or not head.lower().endswith(";base64"):
        raise DataError(
            f"{where}: the data URL is {shown(head, 60)}; give data:image/png;base64, and the bytes of the file"
        )
    try:
        return base64.b64decode(rest, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: the picture is no base64 ({error}); encode the file's bytes") from None


def _parts(message: Message) -> tuple[Part, ...]:
    return message.content if isinstance(message.content, tuple) else ()


def _text_of(message: Message, index: int) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = [part.text for part in _parts(message) if part.type == "text"]
    if not texts or None in texts:
        raise UserError(f"messages.{index}.content has no text; give some")
    return "\n".join(text for text in texts if text is not None)
