"""First token and spoken tokens of a text, from one language model's file: lrkit's bundles beside llama.cpp and
onnxruntime-genai.

    lrkit fetch-base smollm2-135m base
    lrkit export base --int4 -o base-int4
    python -m benchmarks.words_peers base-int4 --llama base/language.gguf --llama-python peers/bin/python
    python -m benchmarks.words_peers base-int4 base-fp32 --genai genai-folder --genai-python genai/bin/python

Each engine has a process of its own, whose Python may be another (with xllamacpp or onnxruntime-genai), with the same
number of threads. They are asked in turns, and the order alternates, so that other work on the machine affects all
alike. All read the same prompt, token by token the same ids where the engine takes ids, and none ends its text early
but by its own end token. Ratios (peer over lrkit's first bundle) are taken within each turn; medians and quartiles.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

QUESTION = (
    "A farmer has three baskets with twelve apples each. He sells nine apples at the market in the morning and gives "
    "four to a neighbour on the way home. Tell, step by step, how many apples are left, and what he may do with them."
)
Timed = tuple[float, float, int]
"""Seconds to the first token, seconds of all others, how many these were."""


class Lrkit:
    """A bundle; runs where lrkit does."""

    def __init__(self, path: str, threads: int) -> None:
        from lrkit import Reasoner

        self.reasoner = Reasoner.open(path, threads=threads)

    def run(self, question: str, tokens: int) -> Timed:
        first, _ = self._seconds(question, 1)
        whole, steps = self._seconds(question, tokens)
        return first, whole - first, steps - 1

    def _seconds(self, question: str, tokens: int) -> tuple[float, int]:
        start = time.perf_counter()
        answer = self.reasoner.ask(None, question, mode="cot", max_new_tokens=tokens)
        return time.perf_counter() - start, answer.ar_steps


class LlamaCpp:
    """A GGUF file in llama.cpp, by the package xllamacpp."""

    def __init__(self, path: str, threads: int) -> None:
        import xllamacpp  # pyright: ignore[reportMissingImports]

        settings: Any = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel, settings.verbosity = path, 1024, 1, -1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        self.server: Any = xllamacpp.Server(settings)

    def run(self, question: str, tokens: int) -> Timed:
        first, _ = self._seconds(question, 1)
        whole, made = self._seconds(question, tokens)
        return first, whole - first, made - 1

    def _seconds(self, question: str, tokens: int) -> tuple[float, int]:
        asked = {"prompt": prompt_of(question), "n_predict": tokens, "temperature": 0, "cache_prompt": False}
        start = time.perf_counter()
        answer = self.server.handle_completions(asked)
        return time.perf_counter() - start, answer["usage"]["completion_tokens"]


class Genai:
    """A folder that onnxruntime-genai's builder wrote."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai as genai  # pyright: ignore[reportMissingImports]

        self.genai: Any = genai
        config = genai.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model: Any = genai.Model(config)
        self.tokenizer: Any = genai.Tokenizer(self.model)

    def run(self, question: str, tokens: int) -> Timed:
        ids = self.tokenizer.encode(prompt_of(question))
        options = self.genai.GeneratorParams(self.model)
        options.set_search_options(max_length=len(ids) + tokens, do_sample=False)
        generator = self.genai.Generator(self.model, options)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first, made = time.perf_counter() - start, 0
        while not generator.is_done():
            generator.generate_next_token()
            made += 1
        return first, time.perf_counter() - start - first, made


ENGINES: dict[str, Callable[[str, int], Any]] = {"lrkit": Lrkit, "llama": LlamaCpp, "genai": Genai}


def prompt_of(question: str) -> str:
    """As the chat template of SmolLM2 has it, without its system text; lrkit's prompt.json says the same."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def serve(kind: str, path: str, threads: int) -> None:
    """Answers each line of stdin, a question and a number of tokens, with a line of times."""
    engine = ENGINES[kind](path, threads)
    for line in sys.stdin:
        print("TIMES", json.dumps(engine.run(*json.loads(line))), flush=True)


class Process:
    """An engine at work in another process."""

    def __init__(self, kind: str, path: str, python: str, threads: int) -> None:
        self.what = f"{kind} {path}"
        command = [python, __file__, "--serve", kind, path, "--threads", str(threads)]
        folder = Path(__file__).resolve().parents[1]
        before = {"PYTHONPATH": str(folder)} if kind == "lrkit" else {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=None, env={**os.environ, **before}
        )

    def ask(self, question: str, tokens: int) -> Timed:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # then it says nothing either
            self.process.stdin.write(json.dumps([question, tokens]) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("TIMES "):
                first, rest, made = json.loads(line.removeprefix("TIMES "))
                return first, rest, made
        print(f"words_peers.py: error: {self.what} cannot be asked; it says why above", file=sys.stderr)
        sys.exit(2)

    def close(self) -> None:
        """Ends it."""
        with suppress(BrokenPipeError):
            self.process.communicate()


def measure(processes: dict[str, Process], question: str, tokens: int, repeats: int) -> dict[str, Any]:
    """Times of each engine, and ratios to the first one within each turn."""
    from benchmarks.peer import spread

    seen: dict[str, dict[str, list[float]]] = {name: {"first": [], "token": []} for name in processes}
    for process in processes.values():
        process.ask(question, tokens)  # not timed: the first run is slow
    for turn in range(repeats):
        for name in list(processes)[:: -1 if turn % 2 else 1]:
            first, rest, made = processes[name].ask(question, tokens)
            seen[name]["first"].append(first)
            seen[name]["token"].append(rest / max(1, made))
    ours = next(iter(seen.values()))
    rows: dict[str, Any] = {}
    for name, times in seen.items():
        ratios = {what: [a / b for a, b in zip(times[what], ours[what], strict=True)] for what in times}
        rows[name] = {f"{what}_sec": spread(times[what]) for what in times}
        rows[name] |= {f"{what}_ratio": spread(ratios[what]) for what in times}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", help="the first one is what others are held to")
    parser.add_argument("--llama", help="the GGUF file")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has xllamacpp")
    parser.add_argument("--genai", help="a folder of onnxruntime-genai")
    parser.add_argument("--genai-python", default=sys.executable, help="a Python that has onnxruntime-genai")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write all times to this file")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve, args.threads)
    if not args.bundles:
        parser.error("give at least one bundle")
    if args.smoke:
        args.tokens, args.repeats = 4, 2
    wanted = {f"lrkit {path}": ("lrkit", path, sys.executable) for path in args.bundles}
    if args.llama:
        wanted["llama.cpp"] = ("llama", args.llama, args.llama_python)
    if args.genai:
        wanted["onnxruntime-genai"] = ("genai", args.genai, args.genai_python)
    processes = {name: Process(*how, args.threads) for name, how in wanted.items()}
    try:
        rows = measure(processes, args.question, args.tokens, args.repeats)
    finally:
        for process in processes.values():
            process.close()
    report(rows, args)


def report(rows: dict[str, Any], args: argparse.Namespace) -> None:
    """A line for each engine, and the JSON."""
    from lrkit.provenance import collect

    for name, row in rows.items():
        print(
            f"{name}: first token {1e3 * row['first_sec']['median']:.1f} ms ({row['first_ratio']['median']:.2f}), "
            f"token {1e3 * row['token_sec']['median']:.2f} ms ({row['token_ratio']['median']:.2f} times, "
            f"{row['token_ratio']['low']:.2f} to {row['token_ratio']['high']:.2f})"
        )
    if args.json is not None:
        values = {"threads": args.threads, "tokens": args.tokens, "repeats": args.repeats, "load": os.getloadavg()[0]}
        made = {"schema": 1, "kind": "words-peers", "rows": rows, **values, "provenance": collect(cpus=os.cpu_count())}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
