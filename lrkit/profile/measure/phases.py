"""Where the seconds of an answer go, engine by engine.

- `inside`: torch reports its phases itself; the vision tower, which runs inside the prefill, is timed by a probe.
- `host`: a bundle of the form step; the host times the prompt's graph, each latent step and each token.
- `differences`: a one-graph program reports one number, so differences.py tells its phases apart by runs that stop
  early. The form step borrows one of them, for the vision tower inside its prompt's graph.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from lrkit.profile.measure.cases import Case

PhaseSource = Literal["inside", "host", "differences"]
PHASES = ("preprocess", "vision", "prefill", "think", "speak", "other")
"""In the order of time; `prefill` is the language model's reading of the prompt; `other` is what is left of the
total."""


def phase_source(case: Case) -> PhaseSource:
    """How this case's phases are found."""
    engine: Any = case.engine
    if engine.name == "torch":
        return "inside"
    return "host" if engine.entry.steps else "differences"


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
