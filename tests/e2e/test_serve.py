"""`lrkit serve`: clients get what the SDK answers, and what cannot be answered is said as OpenAI's clients expect."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lrkit import Reasoner
from tests.bundles import QUESTION, picture
from tests.commands import lrkit
from tests.serving import Served, asking, serving

KEY = "secret"


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    with serving(bundle, "--name", "ours", "--threads", "1", "--max-body-mb", "1") as found:
        yield found


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="any", max_retries=0)


def messages(question: str = QUESTION) -> list[Any]:
    return asking(question, picture())["messages"]


def test_the_real_client_gets_what_the_sdk_answers(client: openai.OpenAI, bundle: Path) -> None:
    reasoner = Reasoner.load(bundle, threads=1)
    for effort, mode in (("medium", "latent"), ("high", "cot")):
        alone = reasoner.ask(picture(), QUESTION, mode)
        told = client.chat.completions.create(model="ours", messages=messages(), reasoning_effort=effort)
        assert told.choices[0].message.content == alone.text
        assert told.usage is not None and told.usage.completion_tokens_details is not None
        assert told.usage.completion_tokens_details.reasoning_tokens == alone.latent_steps
        assert told.usage.completion_tokens == alone.latent_steps + alone.spoken_tokens
        assert told.usage.prompt_tokens == alone.prefilled_tokens
    assert [model.id for model in client.models.list()] == ["ours"] and client.models.retrieve("ours").id == "ours"


def test_a_stream_says_the_same_words_and_how_they_came(client: openai.OpenAI) -> None:
    own = {"lrkit": {"mode": "latent", "trace": True}}
    whole = client.chat.completions.create(model="ours", messages=messages(), extra_body=own)
    events = list(
        client.chat.completions.create(
            model="ours", messages=messages(), stream=True, stream_options={"include_usage": True}, extra_body=own
        )
    )
    words = [event.choices[0].delta for event in events if event.choices]
    assert "".join(delta.content or "" for delta in words) == whole.choices[0].message.content
    assert events[-1].usage == whole.usage
    told, last = (found.model_dump()["lrkit"] for found in (whole.choices[0].message, words[-1]))
    assert last["regions"] == told["regions"] and len(told["regions"]) == told["latent_steps"] == 3
    assert all(len(region["box"]) == 4 for step in told["regions"] for region in step)


def test_steps_and_speech_have_limits_that_the_client_sets(served: Served) -> None:
    told = served.ask(asking(QUESTION, picture(), lrkit={"mode": "latent", "max_latent_steps": 1}))[1]
    assert told["choices"][0]["message"]["lrkit"]["latent_steps"] == 1
    told = served.ask(asking(QUESTION, picture(), reasoning_effort="minimal", max_completion_tokens=2))[1]
    choice = told["choices"][0]
    assert choice["message"]["lrkit"]["latent_steps"] == 1 and choice["finish_reason"] == "length"
    assert choice["message"]["lrkit"]["spoken_tokens"] == 2


def test_a_second_question_about_a_picture_does_not_look_again(served: Served, bundle: Path) -> None:
    made = served.metric("lrkit_looks_made")
    first = served.ask(asking("Read the signs.", picture(5)))[1]
    kept = served.metric("lrkit_looks_kept")
    again = served.ask(asking("Read the signs.", picture(5)))[1]
    assert again["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]
    assert served.metric("lrkit_looks_made") == made + 1 and served.metric("lrkit_looks_kept") == kept + 1
    assert served.metric("lrkit_scene_bytes") > 0


def test_the_shipped_model_has_several_turns_and_is_held_to_choices() -> None:
    """Its prompt format has follow-ups, and torch scores choices."""
    questions = [
        "Take 3 hops. Which room are you in? Start in room 4",
        "Take 2 hops. Which room are you in? Start here",
    ]
    scene = Reasoner.from_checkpoint("tiny").look(picture())
    first, second = scene.ask(questions[0]), scene.follow_up(questions[1])
    turns = [*asking(questions[0], picture())["messages"], {"role": "assistant", "content": first.text}]
    with serving("tiny") as found:
        told = found.ask({"messages": [*turns, {"role": "user", "content": questions[1]}]})[1]
        assert told["choices"][0]["message"]["content"] == second.text
        orders = {"role": "system", "content": "Read the signs."}
        assert found.ask({"messages": [orders, *turns, {"role": "user", "content": "Read the signs."}]})[0] == 200
        own = {"choices": ["3", "7"], "say": "texts"}
        told = found.ask(asking(questions[0], picture(), lrkit=own))[1]["choices"][0]["message"]
        assert told["content"] == ("3", "7")[told["lrkit"]["choice"]["index"]]


REFUSED: tuple[tuple[dict[str, Any] | bytes, int, str], ...] = (
    (b"{", 400, "the body is no JSON"),
    (b"[" * 100_000, 400, "the body is no JSON"),
    (b"\xff\xfe", 400, "the body is no JSON"),
    (b"3", 400, "the body is no JSON object"),
    ({}, 400, "messages"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "assistant", "content": "yes"}]}, 400, "give user and assistant in turn"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content has no text"),
    ({"messages": [{"role": "user", "content": "a"}], "temprature": 1}, 400, "temprature"),
    ({"messages": [{"role": "user", "content": "a"}], "n": 2}, 400, "n"),
    ({"messages": [{"role": "user", "content": "a"}], "model": "theirs"}, 400, "model 'theirs' is not served here"),
    ({"messages": [{"role": "user", "content": "unheard"}]}, 400, "vocabulary lacks"),
    ({"messages": [{"role": "user", "content": "a"}], "lrkit": {"choices": ["a"]}}, 400, "choices"),
    ({"messages": [{"role": "user", "content": "room " * 500}]}, 400, "tokens"),
    (asking("a", picture(), picture(), picture()), 400, "pictures"),
    ({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}, 400, "is no text"),
)
PICTURES = (
    ("https://example.org/a.png", "does not fetch"),
    ("file:///etc/passwd", "does not fetch"),
    ("data:image/png;base64,AAA", "no base64"),
    ("data:image/png,abc", "data URL"),
    ("data:image/png;base64,AAAA", "picture"),
)


@pytest.mark.parametrize(("body", "status", "says"), REFUSED)
def test_what_cannot_be_answered_is_said(served: Served, body: dict[str, Any] | bytes, status: int, says: str) -> None:
    found, told = served.ask(body)
    assert (found, told["error"]["type"]) == (status, "invalid_request_error")
    assert says in told["error"]["message"] and "\n" not in told["error"]["message"]


@pytest.mark.parametrize(("url", "says"), PICTURES)
def test_a_picture_that_is_none_is_said(served: Served, url: str, says: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    found, told = served.ask({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]})
    assert found == 400 and says in told["error"]["message"]


def test_a_large_body_is_refused_in_words(served: Served) -> None:
    found, told = served.ask(asking("a" * 1_100_000))
    assert found == 413 and "above 1,000,000 bytes" in told["error"]["message"]
    line = socket.create_connection(("127.0.0.1", served.port))
    with line, line.makefile("rb") as answer:  # a body that does not tell its length
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        line.sendall(b"".join(b"20000\r\n" + b" " * 0x20000 + b"\r\n" for _ in range(9)) + b"0\r\n\r\n")
        assert b" 413 " in answer.readline()


def test_what_is_not_there_is_named_and_pages_have_their_headers(served: Served) -> None:
    assert served.get("/v2")[0] == 404 and served.get("/v1/chat/completions")[0] == 405
    assert served.get("/v1/models/theirs")[0] == 404
    assert served.get("/health")[0] == 200
    for path in ("/", "/page.css", "/page.js", "/model.js"):
        status, text = served.get(path)
        assert status == 200 and "http://" not in text and "https://" not in text  # nothing comes from elsewhere


def test_a_key_is_asked_for_and_the_log_tells_no_content(bundle: Path) -> None:
    with serving(bundle, LRKIT_API_KEY=KEY) as found:
        assert found.get("/health")[0] == found.get("/")[0] == 200
        assert found.get("/v1/models")[0] == found.get("/metrics")[0] == found.ask(asking(QUESTION))[0] == 401
        assert found.ask(asking(QUESTION), authorization="Bearer wrong")[0] == 401
        assert found.ask(asking(QUESTION, picture()), authorization=f"Bearer {KEY}")[0] == 200
        code, log = found.end()
    assert code == 0 and [line["status"] for line in log] == [200]
    assert QUESTION not in str(log) and log[0]["mode"] == "latent" and log[0]["latent_steps"] == 3


def test_wrong_use_of_the_verb_is_one_sentence(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    cases = (
        (("--host", "0.0.0.0"), "there is no key"),
        (("--port", str(taken.getsockname()[1])), "cannot be listened at"),
        (("--host", "no.such.host.invalid", "--open-to-all"), "cannot be listened at"),
        (("--pictures-from", "https://example.org/"), "is no name of a host"),
    )
    for options, says in cases:
        assert lrkit("serve", bundle, *options) == 2
        said = capsys.readouterr().err
        assert says in said and len(said.splitlines()) == 1
    taken.close()


def test_pictures_by_address_come_from_named_hosts_alone(bundle: Path) -> None:
    with serving(bundle, "--pictures-from", "pictures.example.org") as found:
        part = {"type": "image_url", "image_url": {"url": "https://other.example.org/a.png"}}
        told = found.ask({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]})
        assert told[0] == 400 and "pictures.example.org" in told[1]["error"]["message"]
        assert found.ask(asking(QUESTION, picture()))[0] == 200
