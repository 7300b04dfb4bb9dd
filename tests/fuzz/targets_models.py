"""Fuzzed: bundles, checkpoint folders, arguments of the SDK, command lines."""

import contextlib
import io
import json
import os
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from lrkit import LrkitError, Reasoner
from lrkit.cli.main import main
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.checks.checkpoint_files import check_checkpoint
from lrkit.runtime.encode.processor import Processor
from tests.fuzz import mutate, pictures

_work: list[Path] = []
_bundle: list[Path] = []
_OPTIONS = (
    "--json", "--mode", "--threads", "--provider", "--engine", "--engine-option", "--data", "--seed", "--set",
    "--trace", "--image", "--checkpoint", "--force", "--help", "--debug", "--version", "-o", "--runs", "--modes",
    "--max-new-tokens", "--target", "--shape", "--fail-if", "--sweep", "--suite", "--plan", "--compare", "--check",
    "--engine-file", "--take", "--script", "--arch", "--write-choice", "--random-weights", "--dialect",
)  # fmt: skip
QUESTION = "Take 2 hops. Which room are you in? Start in room 3"
_CHECKPOINT_FILES = (
    "reasoner.json", "config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
    "preprocessor_config.json", "prompt.json", "lrkit.safetensors",
)  # fmt: skip


def prepare(work: Path, bundle: Path) -> None:
    from transformers import Qwen2VLForConditionalGeneration  # noqa: F401  # half a minute on a busy machine

    _work[:], _bundle[:] = [work], [bundle]
    for name, source in (("altered", bundle), ("tiny/latent", resolve_checkpoint("tiny"))):
        _linked(work / name, source)
    if not (work / "tiny/base").exists():
        (work / "tiny/base").symlink_to(resolve_checkpoint("tiny").parent / "base")
    (work / "data.jsonl").write_text('{"question": "q", "steps": [], "answer": "a"}\n')
    pictures.picture("RGB").save(work / "a.png")


def _linked(folder: Path, source: Path) -> None:
    """A folder of links, so that one file can be another."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())


def _replace(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(content)


@cache
def _manifest() -> dict[str, Any]:
    return json.loads((_bundle[0] / "bundle.json").read_text())


@cache
def _scenes() -> dict[str, tuple[Reasoner, bytes]]:
    """Of the bundle, and of a model that looks closer and keeps windows in its scenes: who reads them, and a file."""
    from lrkit.contract.settings import ReplaySettings
    from lrkit.runtime.engines.torch.engine import TorchEngine

    engine = TorchEngine.from_checkpoint(resolve_checkpoint("tiny/latent"))
    closer = engine.settings.model_copy(update={"replay": ReplaySettings(num_tokens=1, source="fine")})
    found: dict[str, tuple[Reasoner, bytes]] = {}
    for name, reasoner in (
        ("program", Reasoner.load(_bundle[0], threads=1)),
        ("closer", Reasoner(engine.with_settings(closer))),
    ):
        reasoner.look(pictures.picture("RGB")).save(_work[0] / "whole.scene")
        found[name] = reasoner, (_work[0] / "whole.scene").read_bytes()
    return found


def _scene_case(rng: Random) -> tuple[str, bytes]:
    """A scene whose bytes, note, or table of arrays is another; sometimes one of the other model's."""
    name = rng.choice(("program", "closer"))
    content = _scenes()[name][1]
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    note: dict[str, Any] = json.loads(header["__metadata__"]["lrkit_scene"])
    how = rng.randrange(8)
    if how == 0:
        return name, mutate.raw(content, rng)
    if how == 1:
        return ("program" if name == "closer" else "closer"), content
    if how < 5:
        header["__metadata__"]["lrkit_scene"] = mutate.encoded(json.dumps(mutate.values(note, rng)), rng).decode(
            "latin1"
        )
    else:
        header = mutate.values(header, rng)
    text = json.dumps(header).encode("utf-8", "replace")
    return name, len(text).to_bytes(8, "little") + text + content[8 + length :]


def _run_scene(case: tuple[str, bytes]) -> None:
    """One that opens in spite of its damage answers."""
    name, content = case
    file = _work[0] / "altered.scene"
    file.write_bytes(content)
    try:
        scene = _scenes()[name][0].open_scene(file)
    except LrkitError as error:
        assert "\n" not in str(error), "more than a sentence"
        raise
    scene.ask(QUESTION, max_new_tokens=1, max_latent_steps=1)


def _bundle_case(rng: Random) -> tuple[bytes, bool]:
    manifest = _manifest()
    part = rng.choice((None, "programs", "limits", "files", "samples", "target", "programs"))
    if part in manifest and rng.random() < 0.8:
        return mutate.encoded(json.dumps({**manifest, part: mutate.values(manifest[part], rng)}), rng), True
    return mutate.json_file(manifest, rng), rng.random() < 0.3


def _run_bundle(case: tuple[bytes, bool]) -> None:
    content, ask = case
    _replace(_work[0] / "altered" / "bundle.json", content)
    reasoner = Reasoner.open(_work[0] / "altered", threads=1)
    if ask:
        reasoner.prepare().ask(None, QUESTION, max_new_tokens=2, timeout=10)


def _checkpoint_case(rng: Random) -> tuple[str, bytes, int]:
    name = rng.choice(_CHECKPOINT_FILES)
    raw = (resolve_checkpoint("tiny") / name).read_bytes()
    content = mutate.json_file(json.loads(raw), rng) if name.endswith(".json") else mutate.raw(raw, rng)
    return name, content, rng.randrange(100)


def _run_checkpoint(case: tuple[str, bytes, int]) -> None:
    name, content, chance = case
    folder, kept = _work[0] / "tiny" / "latent", resolve_checkpoint("tiny") / name
    _replace(folder / name, content)
    try:
        if chance < 3:  # loading takes a second
            Reasoner.from_checkpoint(folder).ask(None, QUESTION, max_new_tokens=1, max_latent_steps=1)
        else:
            Processor.from_folder(folder).encode_prompt([], QUESTION)
            check_checkpoint(folder).raise_if_bad()
    finally:
        (folder / name).unlink()
        (folder / name).symlink_to(kept)


@cache
def _reasoner() -> Reasoner:
    return Reasoner.load(_bundle[0], threads=1)


def _anything(rng: Random, depth: int = 0) -> Any:
    """What a program may hand over by mistake."""
    plain = (
        lambda: rng.choice(mutate.TEXTS), lambda: rng.choice(mutate.NUMBERS), lambda: None, lambda: True, object,
        lambda: b"", lambda: rng.randbytes(20), lambda: np.zeros((3, 3), np.uint8), lambda: np.float32(1.5),
        lambda: np.int64(2), lambda: io.BytesIO(b"x"), lambda: io.StringIO("x"), lambda: Path("a"), lambda: int,
        lambda: np.zeros((2, 2, 5)), lambda: pictures.picture("RGB"), lambda: range(3), lambda: 1j, lambda: {1, 2},
        lambda: memoryview(b"abc"), lambda: np.array("x"), lambda: QUESTION, lambda: print, lambda: np.zeros(0), dict,
    )  # fmt: skip
    if depth < 2 and rng.random() < 0.25:
        kind = rng.choice((list, tuple, iter))
        return kind([_anything(rng, depth + 1) for _ in range(rng.randrange(4))])
    return rng.choice(plain)()


def _sdk_case(rng: Random) -> tuple[str, dict[str, Any]]:
    verb = rng.choice(("ask", "ask", "ask", "ask_batch", "load", "open", "from_checkpoint", "baseline"))
    given: dict[str, Any] = {}
    if verb == "ask":
        given = {"image": None, "question": QUESTION, "max_new_tokens": 1}
        names = ("image", "question", "mode", "max_new_tokens", "max_latent_steps", "halting", "on_text", "max_pixels",
                 "timeout", "cancel")  # fmt: skip
    elif verb == "ask_batch":
        given = {"questions": [(None, QUESTION)], "max_new_tokens": 1}
        names = ("questions", "questions", "mode", "max_new_tokens", "halting", "timeout")
    elif verb == "baseline":
        names = ("mode",)
    elif verb == "from_checkpoint":
        # Never all in order: loading takes a second.
        given, names = {"path": "none", "device": "none"}, ("path", "device", "dtype", "cuda_graphs")
    else:
        given = {"path": _bundle[0]}
        names = ("path", "provider", "threads", "engine", "engine_options")
        names += ("verify", "session_config") if verb == "load" else ("device",)
    for name in rng.choices(names, k=rng.choice((1, 1, 2))):
        given[name] = _anything(rng)
    return verb, given


def _run_sdk(case: tuple[str, dict[str, Any]]) -> None:
    verb, given = case
    if verb == "baseline":
        _reasoner().baseline(given.get("mode"))  # pyright: ignore[reportArgumentType]
    elif verb in ("ask", "ask_batch"):
        getattr(_reasoner(), verb)(**given)
    else:
        getattr(Reasoner, verb)(**given)


def _cli_case(rng: Random) -> list[str]:
    """Verbs with options that do no long work: models are small or wrong, and runs are dry."""
    good = {
        "ls": ["recipe"], "cp": ["smoke", "copy.yaml"], "validate": ["data.jsonl"], "doctor": ["--no-rates"],
        "train": ["smoke", "--dry-run", "-o", "run"], "ask": ["BUNDLE", QUESTION, "--image", "a.png"],
        "eval": ["BUNDLE", "--samples", "1", "--latency-samples", "0"], "profile": ["--compare", "a.json", "b.json"],
        "compare": ["a.json", "b.json"], "report": ["a.json"], "sweep": ["no-such-thing", "threads=1,2"],
        "preflight": ["model.onnx", "--target", "ort"], "export": ["model.onnx", "--check", "--target", "ort"],
        "engines": ["BUNDLE", "--take", "a.json"], "ablate": ["none.yaml"], "nonsense": [],
    }  # fmt: skip
    verb = rng.choice(tuple(good))
    words = [verb, *(str(_bundle[0]) if word == "BUNDLE" else word for word in good[verb])]
    for _ in range(rng.randint(1, 3)):
        how = rng.randrange(4)
        place = rng.randrange(1, len(words) + 1)
        odd = rng.choice(
            (*mutate.TEXTS, "BUNDLE", ".", "data.jsonl", "a.png", "tiny/latent", "no/such", "0", "-1", "1.5")
        )
        odd = "a" if odd in ("/", "..", "~") else odd  # names that stand outside the work's own folder
        odd = odd.replace("\0", "")[:5000].replace("BUNDLE", str(_bundle[0]))
        if how == 0:
            words[place:place] = [rng.choice(_OPTIONS), odd]
        elif how == 1 and len(words) > 1:
            words[min(place, len(words) - 1)] = odd
        elif how == 2:
            words[place:place] = [rng.choice((f"{odd}={odd}", f"seed={odd}", odd))]
        else:
            del words[place:]
    # These verbs would do their work on the shipped model.
    if verb in ("train", "export", "profile", "sweep", "ablate", "demo") and not {
        "--dry-run",
        "--compare",
        "--check",
    } & set(words):
        words[1:2] = ["no-such-thing"]
    if verb == "doctor" and "--no-rates" not in words:  # it would measure for half a minute
        words.append("--no-rates")
    return words


def _run_cli(words: list[str]) -> None:
    before = Path.cwd()
    os.chdir(_work[0])
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
        assert code in (0, 2, 130, 141), f"exit code {code}"
        assert code == 0 or said.getvalue().strip(), "an error without a word"
    except LrkitError:
        if "--debug" not in words:
            raise AssertionError("an error that main let through") from None
    finally:
        os.chdir(before)


TARGETS: dict[str, Any] = {
    "bundle": (6, _bundle_case, _run_bundle),
    "checkpoint": (4, _checkpoint_case, _run_checkpoint),
    "scene": (3, _scene_case, _run_scene),
    "sdk": (10, _sdk_case, _run_sdk),
    "cli": (6, _cli_case, _run_cli),
}
"""Name -> weight, how a case is drawn, what is done with it."""
