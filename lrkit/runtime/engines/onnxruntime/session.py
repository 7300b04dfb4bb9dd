"""One graph of a bundle in ONNX Runtime: loaded, run and ended early, each failure in one sentence. Torch-free.

Place in the pipeline: engine.py says what to load and on what -> `OrtGraph` -> program_engine.py or
programs/step_session.py.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lrkit.errors import BundleError, one_line
from lrkit.runtime.engines.common.stopping import current
from lrkit.runtime.engines.onnxruntime.device_value import Device, DeviceValue, run_bound

_QUIET = 4  # fatal only: what else it logs it also raises, and lrkit says it once


class OrtGraph:
    """A loaded graph. May be run by several threads at once."""

    def __init__(self, session: Any, path: Path, device: Device | None = None) -> None:
        """`device`: where what a run gives may be left; None: it always comes back to the host."""
        self._session = session
        self._path = path
        self._adapter: Any = None
        self.get_inputs: Callable[[], Sequence[Any]] = partial(inputs_of, session)
        self.get_outputs: Callable[[], Sequence[Any]] = session.get_outputs
        self.get_providers: Callable[[], list[str]] = session.get_providers
        self.get_session_options: Callable[[], Any] = session.get_session_options
        if device is not None:
            self.run_on_device = partial(self._run_on, device)

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any], /) -> list[Any]:
        """The outputs of those names, in that order. What ends the thread's `Running` ends it at its next node.

        Raises:
            BundleError: the program fails on these inputs.
            TimeoutExceeded, Cancelled: it was ended.
        """
        return self._ended(lambda options: self._session.run(output_names, input_feed, options))

    def with_adapter(self, adapter: Any) -> "OrtGraph":
        """The same session, run with an `onnxruntime.LoraAdapter` in place of the program's own."""
        made = OrtGraph(self._session, self._path)
        made._adapter = adapter
        return made

    def _run_on(
        self, device: Device, output_names: Sequence[str], input_feed: Mapping[str, Any], /
    ) -> list[DeviceValue]:  # fmt: skip
        """The same, left on the device. The feed may hold what a run before left there."""
        return self._ended(lambda options: run_bound(self._session, device, output_names, input_feed, options))

    def _ended(self, run: Callable[[Any], list[Any]]) -> list[Any]:
        import onnxruntime

        running = current()
        while True:
            options: Any = onnxruntime.RunOptions()
            if self._adapter is not None:
                options.add_active_adapter(self._adapter)
            running.ends_by(partial(setattr, options, "terminate", True))
            try:
                return run(options)
            except Exception as error:  # onnxruntime's own classes have no common base below Exception
                running.check()
                if running.was_interrupted():
                    continue
                raise BundleError(
                    f"{self._path}: ONNX Runtime cannot run it ({said(error)}); copy the bundle again, or ask for less"
                ) from error


def inputs_of(session: Any, swaps: Collection[str] = ()) -> list[Any]:
    """Inputs of an `onnxruntime.InferenceSession`: those that must be given, then those that have a default, without
    those that an adapter gives."""
    with_default = [one for one in session.get_overridable_initializers() if one.name not in swaps]
    return [*session.get_inputs(), *with_default]


def load_adapter(path: Path, swaps: Collection[str]) -> Any:
    """The `onnxruntime.LoraAdapter` of a file.

    Raises:
        BundleError: it is none, or has values for other inputs than `swaps`.
    """
    import onnxruntime

    try:
        file: Any = str(path)  # not what its annotations say
        found = onnxruntime.AdapterFormat.read_adapter(file).get_parameters().keys()
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(file)
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        raise BundleError(f"{path}: ONNX Runtime cannot load it ({said(error)}); copy the bundle again") from error
    if odd := sorted(set(found) ^ set(swaps)):
        raise BundleError(f"{path}: is no adapter of its program ({odd[0][:80]} differs); copy the bundle again")
    return adapter


def load_session(path: Path, options: Any, providers: Sequence[Any], optimizers_off: Sequence[str]) -> Any:
    """The `onnxruntime.InferenceSession` of a file. Raises what ONNX Runtime raises.

    Raises:
        TimeoutExceeded, Cancelled: it was ended while it loaded.
    """
    import onnxruntime

    options.log_severity_level = _QUIET
    running = current()
    while True:
        options.set_load_cancellation_flag(False)
        running.ends_by(partial(options.set_load_cancellation_flag, True))
        try:
            # Without enable_fallback=0 a provider that cannot start is replaced by the CPU, and its reason lost.
            return onnxruntime.InferenceSession(
                str(path),
                options,
                providers=list(providers),
                disabled_optimizers=list(optimizers_off),
                enable_fallback=0,
            )
        except Exception:
            running.check()
            if not running.was_interrupted():
                raise


def said(error: Exception) -> str:
    """ONNX Runtime's words in one line, without its mark, the place in its source and the path that is said anyway."""
    text = one_line(error, limit=1000).removeprefix("[ONNXRuntimeError] : ")
    text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"(^|\s)/\S+\.(?:cc|h):\d+ .*?\)\s+(?=[A-Z])", r"\1", text)
    text = re.sub(r"^Load model from .*? failed: ?", "", text)
    return one_line(text.rstrip("."))
