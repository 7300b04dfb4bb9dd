"""Many clients at once, some of them rude, against `lrkit serve`: every answer as alone, no error but 4xx, flat memory.

    python -m tests.stress.serve_load tiny --clients 32 --seconds 600

One client asks alone first, for its latency and for the answers to compare with. Then as many as asked for do, by
chance: questions whole and in streams (most), clients that leave in the middle, bodies that are no JSON, too large, or
come byte by byte. Prints latency of both, statuses, and the memory of the server each tenth of the time.
"""

import argparse
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.bundles import picture
from tests.serving import Served, asking, serving

PICTURES = 12
RUDE = ("leave", "no JSON", "too large", "slow", "no picture")
SHARE_OF_RUDE = 0.15


@dataclass
class Seen:
    """What the clients saw."""

    alone: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def bodies() -> dict[str, bytes]:
    """Questions by name."""
    found: dict[str, bytes] = {}
    for number in range(PICTURES):
        for effort in ("medium", "none"):
            question = f"Take {1 + number % 8} hops. Which room are you in? Start in room {number % 10}"
            body = asking(question, picture(number), reasoning_effort=effort)
            found[f"{number} {effort}"] = json.dumps(body).encode()
    return found


def content(raw: bytes, stream: bool) -> str:
    if not stream:
        return str(json.loads(raw)["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])


def polite(served: Served, name: str, body: bytes, stream: bool, seen: Seen) -> None:
    sent = body.replace(b"{", b'{"stream": true, ', 1) if stream else body
    begun = time.perf_counter()
    status, raw = served.send("POST", "/v1/chat/completions", sent, {})
    seen.seconds.append(time.perf_counter() - begun)
    seen.statuses["question", status] += 1
    if status == 200 and content(raw, stream) != seen.alone[name]:
        seen.wrong.append(f"{name}: {content(raw, stream)!r} instead of {seen.alone[name]!r}")


def rude(served: Served, kind: str, body: bytes, seen: Seen) -> None:
    if kind in ("leave", "slow"):
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", served.port)) as line:
            line.sendall(head)
            if kind == "leave":
                line.sendall(body)
                return
            for at in range(0, len(body), 97):
                line.sendall(body[at : at + 97])
            status = int(line.makefile("rb").readline().split()[1])
    else:
        given = {
            "no JSON": b"{",
            "too large": b" " * 2_000_000,
            "no picture": body.replace(b"base64,iVBOR", b"base64,iVBOX"),
        }
        status = served.send("POST", "/v1/chat/completions", given[kind], {})[0]
    seen.statuses[kind, status] += 1


def client(served: Served, asked: dict[str, bytes], until: float, seed: int, seen: Seen) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        name, body = rng.choice(list(asked.items()))
        if rng.random() < SHARE_OF_RUDE:
            rude(served, rng.choice(RUDE), body, seen)
        else:
            polite(served, name, body, rng.random() < 0.3, seen)


def resident(process: int) -> float:
    """MB of memory that a process holds."""
    with open(f"/proc/{process}/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def shown(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"{len(seconds)} questions, p50 {1e3 * cuts[49]:.1f} ms, p99 {1e3 * cuts[98]:.1f} ms"


def run(model: str, clients: int, seconds: float, seed: int, options: list[str]) -> dict[str, Any]:
    """Figures of one load.

    Raises:
        AssertionError: an answer differs, a status is none of those expected, or the server has ended.
    """
    asked, one, seen = bodies(), Seen(), Seen()
    with serving(model, "--max-body-mb", "1", "--quiet", *options) as served:
        for name, body in asked.items():
            one.alone[name] = content(served.send("POST", "/v1/chat/completions", body, {})[1], False)
        begun = time.monotonic()
        while time.monotonic() < begun + seconds / 10:
            for name, body in asked.items():
                polite(served, name, body, False, one)
        seen.alone, begun, memory = one.alone, time.monotonic(), [resident(served.process.pid)]
        given = [(served, asked, begun + seconds, seed + number, seen) for number in range(clients)]
        threads = [threading.Thread(target=client, args=one) for one in given]
        for thread in threads:
            thread.start()
        for tenth in range(1, 11):
            while time.monotonic() < begun + tenth * seconds / 10 and served.process.poll() is None:
                threads[0].join(seconds / 100)
            memory.append(resident(served.process.pid))
        for thread in threads:
            thread.join()
        code, _ = served.end()
    bad = {key: n for key, n in seen.statuses.items() if key[1] >= 500}
    assert code == 0 and not bad and not seen.wrong, (code, bad, seen.wrong[:3])
    return {"alone": shown(one.seconds), "together": shown(seen.seconds), "memory_mb": [round(mb) for mb in memory],
            "statuses": {f"{kind} {status}": n for (kind, status), n in sorted(seen.statuses.items())},
            "per_second": round(len(seen.seconds) / seconds, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", action="append", default=[], help="of lrkit serve, as --option=--queue=8")
    given = parser.parse_args()
    json.dump(run(given.model, given.clients, given.seconds, given.seed, given.option), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
