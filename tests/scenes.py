"""Asks a program in two parts, a look and a question, and compares with the whole prompt."""

from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import LEFT, PAST
from tests.programs import Runner
from tests.tiny import IMAGE, Prompt


def look(runner: Runner, prompt: Prompt) -> dict[str, np.ndarray]:
    """What the look at a prompt's pictures leaves, by the names of the inputs that take it."""
    ids = prompt.ids
    split = max(place for place, one in enumerate(ids) if one == IMAGE) + 1
    out = runner(prompt, ids=ids[:split], think=False, tokens=1)
    found = {PAST + name.removeprefix(LEFT): array for name, array in out.items() if name.startswith(LEFT)}
    given = {one.name for one in runner.program.spec.inputs}
    return found | ({"past_ids": np.array(ids[:split])} if "past_ids" in given else {})


def assert_parts_equal_whole(runner: Runner, prompt: Prompt, tolerance: float = 1e-5, **how: Any) -> None:
    """Everything that a program reports, but what it leaves itself."""
    past = look(runner, prompt)
    whole = runner(prompt, **how)
    asked = runner(prompt, past=past, **how)
    size = past["past_keys"].shape[3]
    for name, expected in whole.items():
        found = asked[name]
        if name == "routed_prompt":
            expected = expected[:, size:]
        elif name == "routed_depths":
            expected, found = expected[1:], found[1:]
        elif name == "new_visual":
            continue
        elif name == "new_keys":
            expected = expected[:, :, :, size:]
        elif name.startswith(LEFT):
            continue
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)))
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)
