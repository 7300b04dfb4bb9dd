"""Runs `lrkit serve` as its users do, in a process of its own, and reads what it says."""

import base64
import http.client
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

ADDRESS = re.compile(r" at http://127\.0\.0\.1:(\d+);")


class Served:
    """A server that listens."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def ask(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a POST."""
        status, found = self.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)
        return status, json.loads(found)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        status, found = self.send("GET", path, None, headers)
        return status, found.decode()

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = line.getresponse()
            return answer.status, answer.read()
        finally:
            line.close()

    def metric(self, name: str) -> float:
        """The sum over the labels of one metric."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """The exit code after SIGTERM, and its log."""
        self.process.send_signal(signal.SIGTERM)
        _, told = self.process.communicate(timeout=120)
        return self.process.returncode, [json.loads(line) for line in told.splitlines() if line.startswith("{")]


@contextmanager
def serving(model: object, *options: str, **environment: str) -> Iterator[Served]:
    """A server on a free port."""
    import os

    command = [sys.executable, "-m", "lrkit", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = ADDRESS.search(first)
        assert found is not None, first + process.stderr.read()
        yield Served(process, int(found[1]))
    finally:
        process.kill()
        process.communicate()


def data_url(picture: Image.Image) -> str:
    """As clients send a picture."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def asking(question: str, *pictures: Image.Image, **fields: Any) -> dict[str, Any]:
    """The body of a question."""
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}], **fields}
