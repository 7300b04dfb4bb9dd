"""A program of its own: renders a chat template that a stranger may have written. Run by chat_template.py.

A template can loop for hours or fill the memory. So it is rendered in a process that ends after some seconds of
computing, gets little memory where the system can limit it, and gives back a bounded text. It imports nothing of lrkit.
What templates may use is what transformers gives them: break and continue, strftime_now, raise_exception, tojson,
{% generation %} blocks.

Reads JSON from standard input: {"template": ..., "tokens": {...}, "jobs": [{"messages": ...}, ...]}; writes a list
of {"text": ...} or {"error": ...}, one per job.
"""

import json
import sys
from datetime import datetime
from typing import Any

MAX_SECONDS = 2
MAX_MEMORY = 400 << 20
MAX_TEXT = 200_000


def main() -> None:
    """Renders what standard input asks for."""
    _limit()
    asked = json.load(sys.stdin)
    try:
        template: Any = _environment().from_string(asked["template"])
    except Exception as error:
        found = [{"error": _said(error)} for _ in asked["jobs"]]
    else:
        # Templates ask whether there are tools: transformers always gives both names.
        found = [
            _render(template, {"tools": None, "documents": None, **asked["tokens"], **job}) for job in asked["jobs"]
        ]
    json.dump(found, sys.stdout)


def _render(template: Any, variables: dict[str, Any]) -> dict[str, str]:
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(**variables):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_TEXT:
                return {"error": f"it gives more than {MAX_TEXT} characters"}
    except Exception as error:  # a template raises what it likes
        return {"error": _said(error)}
    return {"text": "".join(pieces)}


def _said(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return f"{type(error).__name__}: {error}"[:300]


def _environment() -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's words for training; what is inside is rendered."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: object) -> None:
        raise TemplateError(str(message))

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _limit() -> None:
    """Where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows; chat_template.py stops the process by the clock
        return
    for kind, most in ((resource.RLIMIT_CPU, MAX_SECONDS), (resource.RLIMIT_AS, MAX_MEMORY)):
        hard = resource.getrlimit(kind)[1]
        usable = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (usable, hard))
        except (OSError, ValueError):
            continue


if __name__ == "__main__":
    main()
