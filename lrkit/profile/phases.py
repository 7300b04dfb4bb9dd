"""Where the seconds of an answer go, engine by engine.

Torch reports its phases itself (`inside`); the vision tower, which runs inside the prefill, is timed by a probe. A
one-graph program reports one number, so on some samples it is run three times: up to the first token without latents,
up to the first token with the latent steps that the answer took, and in full. The differences are the phases
(`differences`); they can come out below zero by noise, and are kept as they are.
"""

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

from lrkit.profile.cases import Case
from lrkit.runtime.processor import EncodedPrompt

PhaseSource = Literal["inside", "differences"]
PHASES = ("preprocess", "vision", "prefill", "think", "speak", "other")
"""In the order of time; `prefill` is the language model's reading of the prompt, with the vision tower where the two
cannot be told apart (`differences`); `other` is what is left of the total."""


def phase_source(case: Case) -> PhaseSource:
    """How this case's phases are found."""
    return "inside" if case.engine.name == "torch" else "differences"


class VisionProbe:
    """Seconds spent in the vision tower of a torch backbone since the last `take`."""

    def __init__(self, backbone: Any, device: str) -> None:
        self._backbone = backbone
        self._device = device
        self._seconds = 0.0

    def take(self) -> float:
        """The seconds, and begins anew."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def installed(self) -> Generator[None]:
        """Stands in front of the backbone's `encode_images` while the context lasts."""
        original: Callable[..., Any] = self._backbone.encode_images

        def timed(*arguments: Any) -> Any:
            started = self._now()
            try:
                return original(*arguments)
            finally:
                self._seconds += self._now() - started

        self._backbone.encode_images = timed
        try:
            yield
        finally:
            del self._backbone.encode_images  # the method of the class shows again

    def _now(self) -> float:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def vision_probes(cases: Sequence[Case]) -> Generator[dict[str, VisionProbe]]:
    """Case id -> probe, for the cases on torch; cases that share a backbone share its probe."""
    by_backbone: dict[int, VisionProbe] = {}
    probes: dict[str, VisionProbe] = {}
    with ExitStack() as stack:
        for case in cases:
            if phase_source(case) != "inside":
                continue
            engine: Any = case.engine
            key = id(engine.reasoner.backbone)
            if key not in by_backbone:
                by_backbone[key] = VisionProbe(engine.reasoner.backbone, engine.device)
                stack.enter_context(by_backbone[key].installed())
            probes[case.id] = by_backbone[key]
        yield probes


def phases_by_differences(case: Case, prompt: EncodedPrompt, rounds: int = 3) -> dict[str, float | None]:
    """Seconds of prefill (vision included), think and speak of one answer; think is None where nothing is thought."""
    steps = case.engine.generate([prompt], case.options)[0].latent_steps
    bare = replace(case.options, max_new_tokens=1, max_latent_steps=0, halting="fixed")
    thought = replace(bare, max_latent_steps=steps)
    variants = [bare, thought, case.options] if steps else [bare, case.options]
    seconds: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for index, options in enumerate(variants):
            started = time.perf_counter()
            case.engine.generate([prompt], options)
            seconds[index].append(time.perf_counter() - started)
    medians = [statistics.median(values) for values in seconds]
    think = medians[1] - medians[0] if steps else None
    return {"prefill": medians[0], "think": think, "speak": medians[-1] - medians[-2], "latent_steps": float(steps)}
