"""What TensorRT says, in lrkit's words: which part and layer of a program a node belongs to, and what a build refused.

Place in the pipeline: build_engine.py and the preflight explain errors through it. Without any package, as it
becomes part of the script that builds on a device (tensorrt/script.py).
"""

from __future__ import annotations

import re
from typing import Any

PARTS = {"vision": "the vision tower", "prompt": "the prompt", "think": "the latent step", "speak": "the speech"}
"""First word of a node's name in a program of lrkit -> what it is."""


def place_of(node: str) -> str:
    """think/layer2/refine/MatMul.3 -> "the latent step's layer 2, refinement"."""
    steps = node.split("/")
    if steps[0] not in PARTS:
        weight = re.match(r"(\d+)\.(\w+)", node)
        return f"the weight {weight[2]} of layer {weight[1]}" if weight else "outside of the four parts"
    layers = [step[5:] for step in steps[1:-1] if re.fullmatch(r"layer\d+", step)]
    layer = f", layer {layers[0]}" if layers else ""
    return f"{PARTS[steps[0]]}{layer}{', refinement' if 'refine' in steps else ''}"


def explain(said: str, network: Any) -> str:
    """The builder's words, with the part and layer of the first node that they name."""
    names = {network.get_layer(number).name for number in range(network.num_layers)}
    # A range of fused nodes is written {ForeignNode[first...last]}.
    for word in re.findall(r"[\w.]+(?:/[\w.]+)+", said.replace("...", " ")):
        if word in names and word.partition("/")[0] in PARTS:
            return (
                f"it fails at the node {word} (operator {word.split('/')[-1].split('.')[0]}, {place_of(word)}): {said}"
            )
    fused = re.search(r"__myl_([A-Z]\w*)", said)
    if fused:
        operations = ", ".join(re.findall(r"[A-Z][a-z0-9]*", fused[1]))
        return f"it fails at a fusion of its own ({operations}), of whose nodes it names none: {said}"
    return f"it names no node: {said}"


def layers_by_part(network: Any) -> dict[str, int]:
    """Layers of the parsed network by the part of lrkit's program whose node they carry; "other" are those that the
    parser adds under names of its own (casts, broadcasts, loop boundaries) and weights."""
    counts = dict.fromkeys((*PARTS, "other"), 0)
    for number in range(network.num_layers):
        part = network.get_layer(number).name.partition("/")[0]
        counts[part if part in PARTS else "other"] += 1
    return {part: count for part, count in counts.items() if count}


def known_archs(trt: Any) -> list[str]:
    """Compute capabilities that the package can build for on any machine, as sm89; empty where it has no choice."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return sorted((name.lower() for name in members if name.startswith("SM")), key=lambda name: int(name[2:]))


def default_archs(trt: Any) -> list[str]:
    """All of them but Turing's, for which NVIDIA's builder has to be asked, and which has no int4."""
    return [name for name in known_archs(trt) if int(name[2:]) >= 80]
