"""What a server counts, for Prometheus, and its log: one line of JSON a question. Torch-free.

Place in the pipeline: app.py tells of each question -> `Tallies` -> /metrics, and the log on standard error.
"""

import json
import sys
import time
from typing import Any

from lrkit.errors import require
from lrkit.runtime.answer.answer import Answer
from lrkit.serve.answerer import Answerer
from lrkit.serve.desk import Desk

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)


class Tallies:
    """Counters of one server."""

    def __init__(self, desk: Desk, answerer: Answerer, log: bool) -> None:
        """`log` says whether each question is logged."""
        self._client: Any = require("prometheus_client", "serve")
        self.registry = self._client.CollectorRegistry()
        client, own, self._log = self._client, {"registry": self.registry}, log
        self.questions = client.Counter("lrkit_questions", "Questions by status", ["status", "mode"], **own)
        self.seconds = client.Histogram(
            "lrkit_answer_seconds", "Seconds of an answer, waiting left out", ["mode"], buckets=_SECONDS, **own
        )
        self.latents = client.Histogram("lrkit_latent_steps", "Latent steps of an answer", buckets=_STEPS, **own)
        self.spoken = client.Counter("lrkit_spoken_tokens", "Tokens that were spoken", **own)
        self.prompt = client.Counter("lrkit_prompt_tokens", "Tokens of prompts, visual ones included", **own)
        for name, help, read in (
            ("lrkit_running", "Questions that are being answered", lambda: desk.running),
            ("lrkit_waiting", "Questions that wait", lambda: desk.waiting),
            ("lrkit_scene_bytes", "Held for pictures that were looked at", lambda: answerer.scene_bytes),
            ("lrkit_looks_kept", "Questions whose pictures were at hand", lambda: answerer.looks["kept"]),
            ("lrkit_looks_made", "Questions whose pictures were looked at", lambda: answerer.looks["made"]),
        ):
            client.Gauge(name, help, **own).set_function(read)

    def tell(self, id: str, status: int, started: float, answer: Answer | None, error: str | None = None) -> None:
        """One question is done. `started` is that of `time.perf_counter`, when its body was read."""
        mode = "" if answer is None else answer.mode
        self.questions.labels(str(status), mode).inc()
        line: dict[str, Any] = {"time": round(time.time(), 3), "id": id, "status": status}
        if answer is not None:
            self.seconds.labels(mode).observe(answer.timings["total"])
            self.latents.observe(answer.latent_steps)
            self.spoken.inc(answer.spoken_tokens)
            self.prompt.inc(answer.prefilled_tokens)
            line |= {"mode": mode, "latent_steps": answer.latent_steps, "spoken_tokens": answer.spoken_tokens}
            line |= {"prompt_tokens": answer.prefilled_tokens, "answer_ms": round(1e3 * answer.timings["total"], 1)}
        line["ms"] = round(1e3 * (time.perf_counter() - started), 1)
        self.say(line if error is None else {**line, "error": error})

    def say(self, line: dict[str, Any]) -> None:
        """Logs a line. Questions, answers and pictures are never in it."""
        if self._log:
            print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)

    def page(self) -> tuple[bytes, str]:
        """/metrics, and its type."""
        return self._client.generate_latest(self.registry), self._client.CONTENT_TYPE_LATEST
