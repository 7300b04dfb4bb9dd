"""The routes of `lrkit serve`: OpenAI's chat completions and models, health, metrics. Torch-free.

Place in the pipeline: `Server` makes the ASGI application -> uvicorn (lrkit/cli/serve.py).

A client that goes away takes its question back: what computes is told, and the next in the queue begins.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from lrkit import __version__
from lrkit.errors import Cancelled, UserError, one_line, require
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.sdk import Reasoner
from lrkit.serve.answerer import Answerer
from lrkit.serve.chat_reply import Events, completion, new_id
from lrkit.serve.chat_request import Question, read_request
from lrkit.serve.desk import Desk
from lrkit.serve.guards import CLOSED, Guards, SlowError, error_body, status_of
from lrkit.serve.remote_pictures import Remote
from lrkit.serve.tallies import Tallies

T = TypeVar("T")
GONE = "the client went away; ask again"
_LATER = {"retry-after": "1"}
PAGE = (
    ("/", "index.html", "text/html"), ("/page.css", "page.css", "text/css"),
    ("/page.js", "page.js", "text/javascript"), ("/model.js", "model.js", "text/javascript"),
)  # fmt: skip
"""Path, file and type of what a browser is given: lrkit/serve/page/."""
BODY_SECONDS = 60
"""Within which a request has to be sent."""


@dataclass(frozen=True)
class ServeOptions:
    """How to serve."""

    name: str
    """Of the model, as clients see it."""
    workers: int = 1
    """Questions that are answered at once."""
    queue: int = 64
    """Questions that may wait."""
    timeout: float | None = 120.0
    """Seconds of one answer, waiting left out."""
    scene_bytes: int = 512 << 20
    """Memory for pictures that may be asked about again."""
    max_body: int = 32 << 20
    """Bytes of a request."""
    api_key: str | None = None
    pictures_from: tuple[str, ...] = ()
    """Hosts whose pictures are fetched by address."""
    log: bool = True


class Server:
    """One model behind HTTP."""

    def __init__(self, reasoner: Reasoner, options: ServeOptions) -> None:
        self.options = options
        self.answerer = Answerer(reasoner, options.timeout, options.scene_bytes)
        self.desk = Desk(options.workers, options.queue)
        self.tallies = Tallies(self.desk, self.answerer, options.log)
        self._fetch = Remote(options.pictures_from)
        self._since = int(time.time())
        self._cancels: WeakSet[threading.Event] = WeakSet()

    def close(self) -> None:
        """Takes back what is still being answered, and ends the threads."""
        for flag in self._cancels:
            flag.set()
        self.desk.close()

    def application(self) -> Any:
        """The ASGI application, guards included.

        Raises:
            MissingExtraError: starlette is not installed.
        """
        applications = require("starlette.applications", "serve")
        route = require("starlette.routing", "serve").Route
        routes = [
            route("/v1/chat/completions", self._chat, methods=["POST"]),
            route("/v1/models", self._models), route("/v1/models/{name:path}", self._model),
            route("/health", self._health), route("/metrics", self._metrics),
            *(route(path, _page(name, kind)) for path, name, kind in PAGE),
        ]  # fmt: skip
        handlers = {404: _unknown, 405: _unknown}
        app = applications.Starlette(routes=routes, exception_handlers=handlers)
        return Guards(app, self.options.api_key, self.options.max_body)

    async def _chat(self, request: Any) -> Any:
        id, started, cancel = new_id(), time.perf_counter(), self._cancel_flag()
        try:
            asked = await self._read(request)
            if asked.stream:
                return await self._streamed(id, started, request, asked, cancel)
            answer, finish = await _unless_gone(request, self._answered(asked, cancel))
        except (Exception, asyncio.CancelledError) as error:
            cancel.set()
            return self._failed(id, started, error)
        self.tallies.tell(id, 200, started, answer)
        return _json(completion(id, self.options.name, answer, finish, asked.own.trace))

    def _cancel_flag(self) -> threading.Event:
        flag = threading.Event()
        self._cancels.add(flag)
        return flag

    async def _read(self, request: Any) -> Question:
        try:
            body = await asyncio.wait_for(request.body(), BODY_SECONDS)
        except TimeoutError:
            raise SlowError(f"the body took above {BODY_SECONDS} s to come; send it faster") from None
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the body is no JSON ({one_line(error)}); send an object with messages") from None
        loop = asyncio.get_running_loop()  # decoding and fetching pictures takes a while
        asked = await loop.run_in_executor(None, read_request, values, self._fetch)
        if asked.model not in (None, self.options.name):
            raise UserError(f"model {asked.model!r} is not served here; ask {self.options.name!r}")
        return asked

    async def _answered(
        self, asked: Question, cancel: threading.Event, on_text: Callable[[str], None] | None = None
    ) -> tuple[Answer, str]:
        async with self.desk.place():
            return await self.desk.run(lambda: self.answerer.answer(asked, cancel, on_text))

    async def _streamed(self, id: str, started: float, request: Any, asked: Question, cancel: threading.Event) -> Any:
        """Begins to send when the first words are there, so that a refusal still has a status of its own."""
        loop, words = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def say(text: str) -> None:
            loop.call_soon_threadsafe(words.put_nowait, text)

        job = asyncio.ensure_future(self._answered(asked, cancel, say))
        job.add_done_callback(lambda _: words.put_nowait(None))
        try:
            first = await _unless_gone(request, words.get())
        except BaseException:
            job.cancel()
            raise
        if first is None and (error := _error_of(job)) is not None:
            raise error
        responses = require("starlette.responses", "serve")
        events = self._events(id, started, asked, job, words, first, cancel)
        return responses.StreamingResponse(events, media_type="text/event-stream")

    async def _events(
        self, id: str, started: float, asked: Question, job: Any, words: Any, first: str | None,
        cancel: threading.Event,
    ) -> AsyncIterator[str]:  # fmt: skip
        events, word = Events(id, self.options.name), first
        try:
            yield events.begin()
            while word is not None:
                yield events.word(word)
                word = await words.get()
            error = _error_of(job)
            if error is None:
                answer, finish = job.result()
                self.tallies.tell(id, 200, started, answer)
                yield events.end(answer, finish, asked.own.trace, asked.usage_in_stream)
            else:
                yield events.failed(self._told(id, started, error)[1]["error"])
        finally:
            if not job.done():  # the client went away
                cancel.set()
                job.cancel()
                with suppress(Exception, asyncio.CancelledError):
                    await job
                self.tallies.tell(id, CLOSED, started, None)

    def _failed(self, id: str, started: float, error: BaseException) -> Any:
        status, body = self._told(id, started, error)
        return _json(body, status, _LATER if status == 429 else None)

    def _told(self, id: str, started: float, error: BaseException) -> tuple[int, dict[str, Any]]:
        left = asyncio.CancelledError, require("starlette.requests", "serve").ClientDisconnect
        status, body = status_of(Cancelled(GONE) if isinstance(error, left) else error)
        said = one_line(error) if status == 500 else body["error"]["message"]
        self.tallies.tell(id, status, started, None, said)
        return status, body

    async def _models(self, request: Any) -> Any:
        return _json({"object": "list", "data": [self._own_model()]})

    async def _model(self, request: Any) -> Any:
        if request.path_params["name"] != self.options.name:
            return _json(error_body(f"there is no such model; ask {self.options.name!r}", "model_not_found"), 404)
        return _json(self._own_model())

    def _own_model(self) -> dict[str, Any]:
        own = {"modes": list(self.answerer.modes), "version": __version__}
        return {
            "id": self.options.name, "object": "model", "created": self._since, "owned_by": "lrkit", "lrkit": own
        }  # fmt: skip

    async def _health(self, request: Any) -> Any:
        return _json({"status": "ok", "running": self.desk.running, "waiting": self.desk.waiting})

    async def _metrics(self, request: Any) -> Any:
        content, kind = self.tallies.page()
        return require("starlette.responses", "serve").Response(content, media_type=kind)


def _page(name: str, kind: str) -> Callable[[Any], Awaitable[Any]]:
    content = (Path(__file__).parent / "page" / name).read_bytes()

    async def send(_: Any) -> Any:
        return require("starlette.responses", "serve").Response(content, media_type=kind)

    return send


async def _unless_gone(request: Any, wanted: Awaitable[T]) -> T:
    """What is wanted.

    Raises:
        Cancelled: the client went away first.
    """
    job, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return await job
        raise Cancelled(GONE)
    finally:
        gone.cancel()
        job.cancel()


async def _gone(request: Any) -> None:
    """Ends when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_of(job: Any) -> BaseException | None:
    if not job.done():
        return None
    return asyncio.CancelledError() if job.cancelled() else job.exception()


async def _unknown(request: Any, error: Any) -> Any:
    known = "POST /v1/chat/completions, GET /v1/models, /health or /metrics"
    return _json(
        error_body(f"there is no {request.method} {request.url.path}; ask {known}", "not_found"), error.status_code
    )


def _json(values: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Any:
    return require("starlette.responses", "serve").JSONResponse(values, status, headers)
