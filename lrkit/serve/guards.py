"""What stands in front of the server: the key, the size of a body, headers, errors in OpenAI's form. Torch-free.

Place in the pipeline: uvicorn -> `Guards` -> the routes of app.py.
"""

import hmac
import json
from collections.abc import Callable
from typing import Any

from lrkit.errors import (
    BundleError,
    Cancelled,
    CapacityError,
    LrkitError,
    TimeoutExceeded,
    UserError,
)
from lrkit.serve.desk import BusyError


class SlowError(LrkitError):
    """A body that does not come."""


class TooLargeError(LrkitError):
    """A body above the limit."""


CLOSED = 499
"""Of a client that left before its answer; nobody reads it but the log."""
DROPPED = 8
"""Bodies up to so many times the limit are read to their end, and dropped, before they are refused: a client that is
told while it sends sees a broken connection, and not why."""
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_OPEN = ("/health", "/", "/page.css", "/page.js", "/model.js")
"""Paths that need no key: a load balancer has none, and neither has a browser before its user gives it to the page."""
_STATUS: tuple[tuple[type[LrkitError], int, str], ...] = (
    (BusyError, 429, "rate_limit_exceeded"),
    (TooLargeError, 413, "request_too_large"),
    (SlowError, 408, "timeout"),
    (Cancelled, CLOSED, "cancelled"),
    (TimeoutExceeded, 408, "timeout"),
    (BundleError, 500, "server_error"),
    (CapacityError, 400, "context_length_exceeded"),
    (UserError, 400, "invalid_request_error"),
)


def status_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of what went wrong. Of an error that is not lrkit's the client is told no more than that."""
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return status, error_body(str(error), code)
    return 500, error_body("the server failed; its log says why", "server_error")


def error_body(message: str, code: str) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    kind = "server_error" if code == "server_error" else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Guards:
    """ASGI middleware."""

    def __init__(self, app: Any, api_key: str | None, max_body: int) -> None:
        """`max_body` in bytes."""
        self.app, self._key, self._most = app, api_key, max_body

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._allowed(scope["path"], headers):
            await _refuse(
                answer, 401, error_body("the API key is missing or wrong; send it as a bearer token", "invalid_api_key")
            )
            return
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            length = 0
        if length > DROPPED * self._most:
            await _refuse(answer, *status_of(self._too_large()))
            return
        await self.app(scope, self._counted(receive), answer)

    def _allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._key is None or path in _OPEN:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._key.encode())

    def _counted(self, receive: Callable[[], Any]) -> Callable[[], Any]:
        """A body may tell no length, or another one."""
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            while seen > self._most:
                if not message.get("more_body") or seen > DROPPED * self._most:
                    raise self._too_large()
                message = await receive()
                seen += len(message.get("body", b""))
            return message

        return counted

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is above {self._most:,} bytes; send smaller pictures")


async def _refuse(send: Callable[[Any], Any], status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})
