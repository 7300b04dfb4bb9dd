"""The chat template of a plain Hugging Face folder: where it lies, and what text it makes of a question with a
picture, and of a finished turn. Torch-free.

Place in the pipeline: plain_format.py asks `render_chat` once, for a folder without prompt.json.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lrkit.errors import CheckpointError, one_line, require
from lrkit.files import read_json, read_text
from lrkit.runtime.encode import render_template

QUESTION_MARK = "lrkit-question-goes-here"
ANSWER_MARK = "lrkit-answer-goes-here"
REMEDY = "add a prompt.json (docs/checkpoints.md shows one)"
"""What helps whenever a template does not."""
_MAX_TEMPLATE = 1 << 20
_MAX_WAIT = 20.0
_JOBS = 5
"""Of one form: a prompt, a finished turn, a prompt without a picture, conversations of two and of three turns."""
_NUMBERED = "lrkit-turn-{}-goes-here"
_ENDLESS = {"error": "it ran too long, or needed too much memory"}


class RenderedChat:
    """What a template says, in the form of messages that it takes."""

    def __init__(self, prompt: str, finished: str | None, bare: str | None, between: str | None = None) -> None:
        self.prompt = prompt
        """One question with one picture, up to where the answer begins. Holds the picture's text and `QUESTION_MARK`
        once each."""
        self.finished = finished
        """The same with `ANSWER_MARK` as answer; None where the template does not show it once."""
        self.bare = bare
        """One question without a picture; None where the template cannot render it."""
        self.between = between
        """The text from a question to the next one, with `ANSWER_MARK` once; None where the template cannot render
        conversations, or not so that each turn adds the same words."""

    @property
    def end(self) -> str:
        """The text behind the answer, with which a turn ends."""
        return self.finished.partition(ANSWER_MARK)[2] if self.finished is not None else ""


def find_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The Jinja text, from wherever the library's versions have put it; None without one. `config` is
    tokenizer_config.json.

    Raises:
        CheckpointError: it is of another type, or there are several and none is called default.
    """
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path, CheckpointError, _MAX_TEMPLATE)
    path = folder / "chat_template.json"
    found = read_json(path, CheckpointError, missing_ok=True).get("chat_template")
    if found is None:
        path, found = folder / "tokenizer_config.json", config.get("chat_template")
    if isinstance(found, list):  # as older versions of transformers store several
        named = [entry for entry in found if isinstance(entry, dict)]
        texts = {str(entry.get("name")): entry.get("template") for entry in named}
        found = texts if len(named) == len(found) else found
    if isinstance(found, dict):
        several: dict[str, Any] = found
        if "default" not in several and len(several) != 1:
            raise CheckpointError(
                f"{path}: chat_template has {len(several)} templates and none is called default; {REMEDY}"
            )
        found = several.get("default", next(iter(several.values())))
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{path}: chat_template is a {type(found).__name__} where a text belongs; {REMEDY}")
    if found is not None and len(found) > _MAX_TEMPLATE:
        raise CheckpointError(f"{path}: chat_template has {len(found)} characters, too many to be one; {REMEDY}")
    return found or None


def render_chat(folder: Path, template: str, tokens: Mapping[str, str], image: str) -> RenderedChat:
    """What `template` makes of a question with a picture. `tokens` are the special tokens by the names that templates
    know (eos_token, ...), `image` is the text of one picture.

    Messages are given as transformers gives them, a list of parts. To a template that takes texts only, the picture is
    given as its text, before the question.

    Raises:
        CheckpointError: the template cannot be rendered, or does not show the question and the picture once each.
        MissingExtraError: jinja2 is not installed; another prompt would be a silent change.
    """
    require("jinja2", "train")
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION_MARK}]
    answer = [{"type": "text", "text": ANSWER_MARK}]
    given = ((parts, answer, parts[1:], _as_parts), (image + QUESTION_MARK, ANSWER_MARK, QUESTION_MARK, str))
    reasons: list[str] = []
    for question, spoken, alone, said in given:
        turns = [{"role": "user", "content": question}]
        jobs = [
            {"messages": turns, "add_generation_prompt": True},
            {"messages": [*turns, {"role": "assistant", "content": spoken}], "add_generation_prompt": False},
            {"messages": [{"role": "user", "content": alone}], "add_generation_prompt": True},
            *({"messages": [*turns, *_later(said, count)], "add_generation_prompt": True} for count in (1, 2)),
        ]
        prompt, finished, bare, *longer = _run(template, json.dumps(tokens, sort_keys=True), json.dumps(jobs))
        text, end = prompt.get("text"), finished.get("text", "")
        if text is not None and text.count(image) == 1 and text.count(QUESTION_MARK) == 1:
            shown = bare.get("text", "")
            return RenderedChat(
                text,
                end if end.count(ANSWER_MARK) == 1 else None,
                shown if shown.count(QUESTION_MARK) == 1 else None,
                _between(text, *(one.get("text", "") for one in longer)),
            )
        reasons.append(prompt.get("error", ""))
        if prompt is _ENDLESS:  # the other form would take as long
            break
    if reasons[0]:
        raise CheckpointError(f"{folder}: the chat template cannot be rendered ({one_line(reasons[0])}); {REMEDY}")
    raise CheckpointError(f"{folder}: the chat template does not show a picture as {image}; {REMEDY}")


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _later(said: Callable[[str], Any], count: int) -> list[dict[str, Any]]:
    """So many answers, each with the question that follows it."""
    made: list[dict[str, Any]] = []
    for turn in range(count):
        made.append({"role": "assistant", "content": said(_NUMBERED.format(2 * turn))})
        made.append({"role": "user", "content": said(_NUMBERED.format(2 * turn + 1))})
    return made


def _between(prompt: str, two: str, three: str) -> str | None:
    """What stands between two questions, if conversations are built of a prompt and that."""
    before, _, behind = prompt.partition(QUESTION_MARK)
    begins, ends = before + QUESTION_MARK, _NUMBERED.format(1) + behind
    if not two.startswith(begins) or not two.endswith(ends) or len(two) < len(begins) + len(ends):
        return None
    between = two[len(begins) : len(two) - len(ends)]
    first, second, third, last = (_NUMBERED.format(number) for number in range(4))
    again = begins + between + second + between.replace(first, third) + last + behind
    if between.count(first) != 1 or again != three:
        return None
    return between.replace(first, ANSWER_MARK)


@lru_cache(maxsize=32)
def _run(template: str, tokens: str, jobs: str) -> Sequence[Mapping[str, str]]:
    """The answer of render_template.py; the same question is asked once."""
    asked = json.dumps({"template": template, "tokens": json.loads(tokens), "jobs": json.loads(jobs)})
    # -P: the script's own folder, full of modules with common names, is not searched for jinja2's imports.
    command = [sys.executable, "-P", str(Path(render_template.__file__))]
    failed = [_ENDLESS] * _JOBS
    try:
        done = subprocess.run(
            command, input=asked.encode(), capture_output=True, timeout=_MAX_WAIT, check=False, close_fds=True
        )
    except subprocess.TimeoutExpired:
        return failed
    except OSError as error:
        return [{"error": f"no process can be started for it: {one_line(error)}"}] * _JOBS
    try:
        found = json.loads(done.stdout) if done.returncode == 0 else failed
    except ValueError:
        return failed
    return found
