"""Checks that the numbers, names and shapes that bundle.json declares agree with one another, before anything is
loaded. Torch-free.

Place in the pipeline: bundle_folder.py asks when it opens a bundle. onnxruntime/engine.py later holds a program's file
against the declaration, and answer_check.py its answers.
"""

from collections.abc import Iterator, Mapping

from lrkit.contract.bundle.io_spec import (
    OWN_INPUTS,
    PAST,
    WINDOWS,
    IoSpec,
    LookShape,
    ProgramShape,
    TensorSpec,
    program_spec,
)
from lrkit.contract.bundle.manifest import Manifest, ProgramEntry, Role
from lrkit.contract.generated import WITHOUT_LATENTS

MAX_FIXED_BYTES = 2 << 30
"""Of all inputs, or all outputs, of fixed size that one graph may declare: the host makes room for them."""
MAX_PICTURE_BYTES = 512 << 20
"""Of all patches of one prompt: a picture of 179 megapixels, more than is ever decoded."""
_HOST_MADE = (
    "token_ids", "num_tokens", "finished", "latent_steps", "spoken_steps", "ar_steps", "halting",
)  # fmt: skip
_BYTES = {"int64": 8, "float32": 4, "float16": 2, "uint8": 1, "bool": 1}
_FROM_PROMPT = {"wants": "bool", "token": "int64", "position": "int64"}


def spec_problems(manifest: Manifest) -> Iterator[str]:
    """One sentence for the first declaration that contradicts itself, the limits or the tokens."""
    for role, entry in manifest.programs.items():
        for graph, spec in [("", entry.spec), *((f"'s step {name}", one.spec) for name, one in entry.steps.items())]:
            if problem := _unusable(spec):
                yield f"bundle.json declares {problem} of the {role} program{graph}"
                return
        for problem in (*_whole(manifest, role, entry), *_steps(entry)):
            yield f"bundle.json declares {problem} of the {role} program"
            return


def _unusable(spec: IoSpec) -> str | None:
    for kind, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        names = [one.name for one in tensors]
        if len(set(names)) < len(names):
            return f"two {kind} of one name"
        if (size := sum(_fixed_bytes(one) for one in tensors)) > MAX_FIXED_BYTES:
            return f"{kind} of {size} bytes, where at most {MAX_FIXED_BYTES} are taken,"
    return None


def _fixed_bytes(tensor: TensorSpec) -> int:
    size = _BYTES[tensor.dtype]
    for axis in tensor.shape:
        size *= axis if isinstance(axis, int) else 1
    return size


def _whole(manifest: Manifest, role: Role, entry: ProgramEntry) -> Iterator[str]:
    """An answer's inputs and outputs against what a program with its settings has."""
    found = {one.name: one for one in entry.spec.outputs}
    capacity = _axis(found, "token_ids", 0)
    steps = _axis(found, "latent_states", 0)
    given = {one.name: one for one in entry.spec.inputs}
    # Nobody looks closer who takes no latent steps.
    fine = steps > 0 and entry.settings.replay.source == "fine"
    window = (_axis(given, WINDOWS, 1), _axis(given, WINDOWS, 2))
    shape = ProgramShape(
        prompt_inputs=tuple(
            one for one in entry.spec.inputs if one.name not in (*OWN_INPUTS, WINDOWS) and not one.name.startswith(PAST)
        ),
        vocabulary=_axis(found, "prefill_logits", 0),
        width=_axis(found, "latent_states", 1),
        max_latent_steps=steps,
        max_new_tokens=capacity,
        replay_slots=_axis(found, "replayed", 1),
        routed_layers=entry.routed_layers,
        latent_chunk=_axis(found, "routed_latents", 2) or 1,
        look=_look(entry),
        window=window if fine else None,
    )
    expected = program_spec(shape)
    if problem := _other("input", entry.spec.inputs, expected.inputs):
        yield problem
    needed = [one for one in expected.outputs if one.name in (*_HOST_MADE, "prefill_logits") or one.name in found]
    if problem := _other("output", entry.spec.outputs, needed):
        yield problem
    if _kind(given.get("position_ids")) != ("int64", (_axis(given, "position_ids", 0), "P")):
        yield "no positions (position_ids)"
    if not (patch := _axis(given, "pixel_values", 1)):
        yield "no pictures (pixel_values)"
    if (size := manifest.limits.max_patches * patch) > MAX_PICTURE_BYTES:
        yield f"pictures of {size} bytes (max_patches), where at most {MAX_PICTURE_BYTES} are taken,"
    windows = manifest.limits.max_patches // manifest.token_patches * window[0] * window[1]
    if fine and not 0 < windows <= MAX_PICTURE_BYTES:
        yield f"windows of {windows} bytes (max_patches), where 1 to {MAX_PICTURE_BYTES} are taken,"
    if manifest.limits.max_new_tokens > capacity:
        yield f"room for {capacity} tokens, below its limit max_new_tokens of {manifest.limits.max_new_tokens},"
    # A program that is only asked without latents has no room for them, whatever its settings say.
    wanted = 0 if role in WITHOUT_LATENTS else entry.settings.think.max_latent_steps
    if min(manifest.limits.max_latent_steps, wanted) > steps:
        yield f"room for {steps} latent steps, fewer than its limits and settings say,"
    tokens = manifest.tokens
    if max(tokens.image, tokens.eos) >= shape.vocabulary:
        yield f"{shape.vocabulary} words, fewer than the ids under tokens say,"
    if any(layer >= entry.num_layers for layer in entry.routed_layers):
        yield f"routed layers {list(entry.routed_layers)[:20]}, beyond its {entry.num_layers} layers,"


def _look(entry: ProgramEntry) -> LookShape | None:
    """What a look leaves, by the declared inputs; None for a program without scenes."""
    given = {one.name: one for one in entry.spec.inputs}
    if not any(name.startswith(PAST) for name in given):
        return None
    keys, visual, refined = f"{PAST}keys", f"{PAST}visual", f"{PAST}refined"
    return LookShape(
        floats=given[keys].dtype if keys in given else "float32",
        num_layers=entry.num_layers,
        num_key_heads=_axis(given, keys, 2),
        head_width=_axis(given, keys, 4),
        row_width=_axis(given, visual, 1),
        depth=_axis(given, refined, 2),
        refined=_axis(given, refined, 4),
    )


def _axis(tensors: Mapping[str, TensorSpec], name: str, number: int) -> int:
    """A size in a declared shape; 0 where there is none."""
    shape = tensors[name].shape if name in tensors else ()
    size = shape[number] if number < len(shape) else 0
    return size if isinstance(size, int) else 0


def _other(kind: str, found: tuple[TensorSpec, ...], expected: "tuple[TensorSpec, ...] | list[TensorSpec]") -> str:
    names, wanted = [one.name for one in found], [one.name for one in expected]
    if names != wanted:
        odd = sorted(set(names) ^ set(wanted))
        return f"other {kind}s than programs have ({', '.join(odd)[:120] or 'their order'})"
    for one, right in zip(found, expected, strict=True):
        if (one.dtype, one.shape) != (right.dtype, right.shape):
            return f"the {kind} {one.name} as {one.dtype} {list(one.shape)}, not {right.dtype} {list(right.shape)},"
    return ""


def _steps(entry: ProgramEntry) -> Iterator[str]:
    """The graphs that the host drives: each must give what the next one reads."""
    if not entry.steps:
        return
    if missing := {"prompt", "speak"} - set(entry.steps):
        yield f"no step {min(missing)}"
        return
    prompt, think = entry.steps["prompt"].spec, entry.steps.get("think")
    given = {one.name: one for one in entry.spec.inputs}
    if odd := [one.name for one in prompt.inputs if (one.dtype, one.shape) != _kind(given.get(one.name))]:
        yield f"the input {odd[0]} of its prompt, which nothing gives,"
    made = {one.name: one.dtype for one in prompt.outputs}
    if odd := [name for name, dtype in _FROM_PROMPT.items() if made.get(name) != dtype]:
        yield f"a prompt that does not give {odd[0]}"
    held = set(made) | ({one.name for one in think.spec.inputs} if think else set())
    if odd := [one.name for one in entry.spec.outputs if one.name not in (*_HOST_MADE, *held)]:
        yield f"the output {odd[0]}, which no step gives,"
    for name, needs in (("think", ("wants", "token", "position")), ("speak", ("token", "position"))):
        if name in entry.steps:
            yield from _next(name, entry.steps[name].spec, needs)


def _kind(tensor: TensorSpec | None) -> "tuple[str, tuple[int | str, ...]] | None":
    return None if tensor is None else (tensor.dtype, tensor.shape)


def _next(name: str, spec: IoSpec, needs: tuple[str, ...]) -> Iterator[str]:
    """A step gives the new values of what it reads."""
    read = {one.name: one for one in spec.inputs}
    given = {one.name.removeprefix("new_"): one for one in spec.outputs}
    if odd := [one for one in needs if one not in given]:
        yield f"a step {name} that does not give new_{odd[0]}"
    for key, one in given.items():
        if key in read and _kind(one) != _kind(read[key]):
            yield f"a step {name} that gives {one.name} in another shape or type than it reads it"
