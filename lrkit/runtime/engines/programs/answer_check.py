"""Checks that a program's output is an answer. A file may say anything, so counts, ids and shapes are checked before
use. Torch-free.

Place in the pipeline: program_engine.py asks after each run, before an answer is decoded or streamed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import EMPTY, HALTING, IoSpec
from lrkit.contract.bundle.manifest import ProgramEntry
from lrkit.errors import BundleError


class AnswerCheck:
    """What the answers of one program must look like."""

    def __init__(self, entry: ProgramEntry, image_id: int, name: str) -> None:
        """`name` begins every error."""
        self._name, self._image_id = name, image_id
        self._outputs = {one.name: one for one in entry.spec.outputs}
        self._dtypes = {one.name: np.dtype(one.dtype) for one in entry.spec.outputs}
        self._vocabulary = vocabulary_of(entry.spec)
        self._depth = entry.settings.routing.depth

    def __call__(self, out: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> None:
        """Looks at the outputs `out` that `feed` gave.

        Raises:
            BundleError: they are none of a program of lrkit.
        """
        sizes = {"P": len(feed["input_ids"]), "N": len(feed["pixel_values"])}
        self._shapes(out, sizes)
        spoken, latents = int(out["num_tokens"]), int(out["latent_steps"])
        self._within("num_tokens", spoken, 0, int(feed["max_new_tokens"]))
        self._within("latent_steps", latents, 0, int(feed["max_latent_steps"]) if feed["think"] else 0)
        self._within("halting", int(out["halting"]), 0, len(HALTING) - 1)
        self._within("ar_steps", int(out["ar_steps"]), latents, latents + spoken)
        self._all_within("token_ids", out["token_ids"][:spoken], 0, self._vocabulary - 1)
        if "replayed" in out:
            visual = int(np.count_nonzero(feed["input_ids"] == self._image_id)) + len(feed.get("past_visual", ()))
            self._all_within("replayed", out["replayed"][:latents], EMPTY, visual - 1)
            if not np.isfinite(out["replay_weights"][:latents]).all():
                self._refuse("replay_weights that are no finite numbers")
        most = self._depth * max(sizes["P"], self._slots("routed_latents"))
        for name, bound in (("routed_depths", most), ("routed_prompt", self._depth), ("routed_latents", self._depth)):
            if name in out:
                self._all_within(name, out[name], 0, bound)

    def left(self, out: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> None:
        """Looks at the outputs `out` that a look leaves; `feed` gave them. Raises as a call."""
        visual = int(np.count_nonzero(feed["input_ids"] == self._image_id))
        self._shapes(out, {"P": len(feed["input_ids"]), "N": len(feed["pixel_values"]), "V": visual})
        for name, array in out.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self._refuse(f"{name} with numbers that are not finite")
        if "routed_prompt" in out:
            self._all_within("routed_prompt", out["routed_prompt"], 0, self._depth)

    def _shapes(self, out: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        for name, array in out.items():
            declared = self._outputs[name]
            shape = tuple(sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in declared.shape)
            if array.shape != shape or array.dtype != self._dtypes[name]:
                self._refuse(f"{name} as {array.dtype} {list(array.shape)}, not {declared.dtype} {list(shape)}")

    def _slots(self, name: str) -> int:
        last = self._outputs[name].shape[-1] if name in self._outputs else 0
        return last if isinstance(last, int) else 0

    def _within(self, name: str, value: int, least: int, most: int) -> None:
        if not least <= value <= most:
            self._refuse(f"{name} = {value}, where {least} to {most} is possible")

    def _all_within(self, name: str, values: np.ndarray, least: int, most: int) -> None:
        if values.size and (values.min() < least or values.max() > most):
            wrong = values[(values < least) | (values > most)].flat[0]
            self._refuse(f"{wrong} in {name}, where {least} to {most} is possible")

    def _refuse(self, what: str) -> None:
        raise BundleError(f"{self._name}: its program gives {what}; do not use this bundle, or export it again")


def vocabulary_of(spec: IoSpec) -> int:
    """Rows of the language head, as an answer declares them."""
    (logits,) = [one for one in spec.outputs if one.name == "prefill_logits"]
    return int(logits.shape[0])


class StepCheck:
    """What one step of the form `step` must give: the declared types and fixed sizes."""

    def __init__(self, name: str, spec: IoSpec) -> None:
        self._name = name
        self._outputs = [(one.name, np.dtype(one.dtype), one.shape) for one in spec.outputs]

    def __call__(self, found: "list[Any] | tuple[Any, ...]") -> None:
        """Looks at the outputs in the order of the declaration: arrays on the host or on a device.

        Raises:
            BundleError: one is of another type or shape.
        """
        for (name, dtype, shape), array in zip(self._outputs, found, strict=True):
            real = tuple(array.shape)
            fits = len(real) == len(shape) and all(
                isinstance(want, str) or want == size for want, size in zip(shape, real, strict=True)
            )
            if not fits or array.dtype != dtype:
                raise BundleError(
                    f"the step {self._name} gives {name} as {array.dtype} {list(real)}, where bundle.json declares "
                    f"{dtype} {list(shape)}; do not use this bundle, or export it again"
                )
