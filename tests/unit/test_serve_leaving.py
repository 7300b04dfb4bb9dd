"""A client that leaves takes its question back: what computes is told, and the next one begins."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from lrkit import Reasoner
from lrkit.serve.app import ServeOptions, Server
from tests.bundles import QUESTION, picture
from tests.serving import asking


async def asked(server: Server, body: dict[str, Any], leaves: bool) -> list[dict[str, Any]]:
    """What a client is sent; one that `leaves` goes as soon as its question is computed, or the first words came."""
    sent: list[dict[str, Any]] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        while not leaves or server.desk.running == 0:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    await server.application()(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_computed_ends_and_the_next_question_is_answered(
    bundle: Path, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer waits behind its first word, or before it, until it is taken back: it cannot be done earlier."""
    server = Server(Reasoner.load(bundle, threads=1), ServeOptions("ours"))
    real = server.answerer.answer

    def held(question: Any, cancel: Any, on_text: Any) -> Any:
        if not stream:
            assert cancel.wait(60)
        return real(question, cancel, None if on_text is None else lambda text: (on_text(text), cancel.wait(60)))

    server.answerer.answer = held
    body = asking(QUESTION, picture(), stream=stream, lrkit={"mode": "cot"})
    asyncio.run(asked(server, body, leaves=True))
    assert server.desk.running == server.desk.waiting == 0
    server.answerer.answer = real
    sent = asyncio.run(asked(server, asking(QUESTION, picture()), leaves=False))
    assert sent[0]["status"] == 200
    server.close()
    log = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in log] == [499, 200]


def test_the_memory_for_scenes_is_shared_by_the_modes(bundle: Path) -> None:
    reasoner = Reasoner.load(bundle, threads=1)
    server = Server(reasoner, ServeOptions("ours", scene_bytes=1_000_000))
    stores = {server.answerer._by_mode[mode].scenes for mode in server.answerer.modes}  # pyright: ignore
    assert sum(store.limit for store in stores) <= 1_000_000 < 2 * sum(store.limit for store in stores)
    server.close()
