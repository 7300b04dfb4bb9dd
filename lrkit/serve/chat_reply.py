"""Answers as OpenAI's chat completions: whole, or as the events of a stream. Torch-free.

Place in the pipeline: `Answer` (runtime) -> `completion` or `Events` -> app.py sends them.

`usage.completion_tokens` counts latent steps and spoken tokens, latent steps once more as `reasoning_tokens`, which is
where clients look for what was thought. `message.lrkit` tells how the answer came about: a wrong answer has the same
form as a right one, so what it rests on has to be seen.
"""

import json
import time
import uuid
from typing import Any

from lrkit.runtime.answer.answer import Answer

_OWN = ("answer", "mode", "latent_steps", "spoken_tokens", "ar_steps", "replayed_tokens", "halting", "timings")


def new_id() -> str:
    """Of one completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def completion(id: str, model: str, answer: Answer, finish: str, trace: bool) -> dict[str, Any]:
    """The whole answer. `finish` is stop, or length where the longest speech was reached."""
    text = answer.text if answer.choice is None else answer.choice.text or answer.text
    message = {"role": "assistant", "content": text, "refusal": None, "lrkit": own(answer, trace)}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return {**_head(id, model, "chat.completion"), "choices": [choice], "usage": usage(answer)}


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens, as clients count them."""
    said = answer.latent_steps + answer.spoken_tokens
    return {
        "prompt_tokens": answer.prefilled_tokens, "completion_tokens": said,
        "total_tokens": answer.prefilled_tokens + said,
        "completion_tokens_details": {"reasoning_tokens": answer.latent_steps},
    }  # fmt: skip


def own(answer: Answer, trace: bool) -> dict[str, Any]:
    """How the answer was reached; with `trace` the replayed regions of each latent step, in pixels."""
    values = answer.to_dict()
    found = {name: values[name] for name in _OWN}
    if answer.choice is not None:
        found["choice"] = values["choice"]
    if answer.resized:
        found["resized"] = values["resized"]
    if trace:
        found["regions"] = values["regions"]
    return found


class Events:
    """The events of one stream (text/event-stream)."""

    def __init__(self, id: str, model: str) -> None:
        self._head = _head(id, model, "chat.completion.chunk")

    def begin(self) -> str:
        """Says whose words follow."""
        return self._event({"role": "assistant", "content": ""}, None)

    def word(self, text: str) -> str:
        """A piece of the answer."""
        return self._event({"content": text}, None)

    def end(self, answer: Answer, finish: str, trace: bool, with_usage: bool) -> str:
        """What is known when all is said, and the end of the stream."""
        last = self._event({"lrkit": own(answer, trace)}, finish)
        if with_usage:
            last += _line({**self._head, "choices": [], "usage": usage(answer)})
        return last + "data: [DONE]\n\n"

    def failed(self, error: dict[str, Any]) -> str:
        """An error in the middle of a stream, whose status has been sent."""
        return _line({"error": error})

    def _event(self, delta: dict[str, Any], finish: str | None) -> str:
        return _line({**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _head(id: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": id, "object": kind, "created": int(time.time()), "model": model}


def _line(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
