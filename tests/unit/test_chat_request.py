"""What a client may send: whatever it is, it becomes a question or one sentence; and the desk has an end."""

import asyncio
import base64
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrkit.errors import DataError, LrkitError, TimeoutExceeded
from lrkit.serve.chat_request import Question, read_request
from lrkit.serve.desk import BusyError, Desk
from lrkit.serve.guards import status_of
from lrkit.serve.remote_pictures import Remote

WORDS = (
    "messages", "role", "content", "user", "assistant", "system", "type", "text", "image_url", "url", "lrkit", "mode",
    "latent", "stream", "choices", "data:image/png;base64,AA==", "n", "max_tokens", "reasoning_effort",
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner),
    max_leaves=12,
)


def read(*messages: dict[str, Any], **fields: Any) -> Question:
    return read_request({"messages": list(messages), **fields}, Remote())


@settings(max_examples=300, deadline=None)
@given(body=VALUES | st.dictionaries(st.sampled_from(WORDS), VALUES))
def test_any_json_is_a_question_or_one_sentence(body: Any) -> None:
    try:
        assert isinstance(read_request(body, Remote()), Question)
    except LrkitError as error:
        assert "\n" not in str(error) and status_of(error)[0] == 400


def test_a_conversation_becomes_turns_and_orders_stand_before_the_first_question() -> None:
    url = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    shown = {"type": "image_url", "image_url": {"url": url}}
    asked = read(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [shown, {"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": "1", "refusal": None, "lrkit": {"mode": "latent"}},
        {"role": "user", "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": "or three?"}]},
        temperature=0.3, max_tokens=7,
    )  # fmt: skip
    assert asked.pictures == (b"picture",) and asked.earlier == (("Be brief.\nOne?", "1"),)
    assert asked.text == "Two\nor three?" and asked.max_new_tokens == 7 and asked.mode is None


def test_a_picture_behind_the_first_message_is_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(LrkitError, match=r"messages\.2\.content\.1 is a picture behind the first message"):
        read(
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, part]},
        )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["http://a.example/x.png", "https://b.example/x.png", "https://a.example:8443/x.png", "https://a.example@b.example/x",
     "https://a.example.b.example/x", "//a.example/x.png", "ftp://a.example/x"],
)  # fmt: skip
def test_only_https_of_named_hosts_is_fetched(url: str) -> None:
    with pytest.raises(DataError, match="does not fetch"):
        Remote(("a.example",))(url)


def test_the_desk_sends_away_what_it_has_no_room_for() -> None:
    async def tried() -> tuple[list[int], int]:
        desk, begun, go = Desk(1, 1), threading.Event(), threading.Event()

        def work(number: int) -> int:
            begun.set()
            go.wait()
            return number

        async def ask(number: int) -> int:
            async with desk.place():
                return await desk.run(lambda: work(number))

        first = asyncio.ensure_future(ask(1))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        second = asyncio.ensure_future(ask(2))
        await asyncio.sleep(0)  # lets it begin to wait
        with pytest.raises(BusyError, match="1 questions are being answered and 1 wait"):
            await ask(3)
        waits = desk.waiting
        go.set()
        done = [await first, await second]
        assert desk.running == desk.waiting == 0
        desk.close()
        return done, waits

    assert asyncio.run(tried()) == ([1, 2], 1)


def test_one_who_leaves_the_queue_takes_no_turn() -> None:
    async def tried() -> int:
        desk, begun, go = Desk(1, 5), threading.Event(), threading.Event()
        answered: list[int] = []

        async def ask(number: int) -> None:
            async with desk.place():
                await desk.run(lambda: (begun.set(), go.wait(), answered.append(number)))

        first = asyncio.ensure_future(ask(1))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        second, third = asyncio.ensure_future(ask(2)), asyncio.ensure_future(ask(3))
        await asyncio.sleep(0)
        second.cancel()
        go.set()
        await asyncio.gather(first, third)
        assert second.cancelled() and answered == [1, 3] and desk.waiting == desk.running == 0
        desk.close()
        return len(answered)

    assert asyncio.run(tried()) == 2


def test_errors_have_the_status_that_clients_retry_by() -> None:
    assert status_of(BusyError("full"))[0] == 429 and status_of(TimeoutExceeded("late"))[0] == 408
    status, body = status_of(ValueError("/home/me/secret.py"))
    assert status == 500 and "secret" not in str(body)
