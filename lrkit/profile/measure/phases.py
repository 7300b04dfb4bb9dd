"""Where the seconds of an answer go, engine by engine.

- `inside`: torch reports its phases itself; the vision tower, which runs inside the prefill, is timed by a probe.
- `host`: a bundle of the form step; the host times the prompt's graph, each latent step and each token.
- `differences`: a one-graph program reports one number, so differences.py tells its phases apart by runs that stop
  early. The form step borrows one of them, for the vision tower inside its prompt's graph.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager

from lrkit.profile.measure.cases import Case
from lrkit.runtime.engines.common.protocol import Probe

PHASES = ("preprocess", "vision", "prefill", "think", "speak", "other")
"""In the order of time; `prefill` is the language model's reading of the prompt; `other` is what is left of the
total."""


@contextmanager
def vision_probes(cases: Sequence[Case]) -> Generator[dict[str, Probe]]:
    """Case id -> probe, for the engines that have one; cases that share a tower share its probe."""
    by_tower: dict[int, Probe] = {}
    probes: dict[str, Probe] = {}
    with ExitStack() as stack:
        for case in cases:
            probe = case.engine.vision_probe()
            if probe is None:
                continue
            if probe.key not in by_tower:
                by_tower[probe.key] = probe
                stack.enter_context(probe.installed())
            probes[case.id] = by_tower[probe.key]
        yield probes
