"""Arrays that stay where they were computed, and buffers that are used again; over the memory of this process."""

import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrkit.contract.bundle.bundle_folder import open_bundle
from lrkit.errors import MissingExtraError
from lrkit.runtime.engines.onnxruntime.engine import Sessions
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.programs.step_session import StepSession
from lrkit.runtime.engines.tensorrt.device_array import DeviceArray, Pool
from lrkit.runtime.engines.tensorrt.device_memory import open_memory
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, picture


class ProcessMemory:
    """What `DeviceMemory` asks for, in ordinary memory, where a copy is done when the call returns."""

    name = "process"
    stream = 0

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.copied: list[int] = []

    def activate(self) -> None:
        pass

    def allocate(self, num_bytes: int) -> int:
        block = ctypes.create_string_buffer(num_bytes)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def upload(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.copied.append(array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.copied.append(array.nbytes)

    def synchronize(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


@pytest.fixture
def pool() -> Pool:
    return Pool(ProcessMemory())


@pytest.mark.parametrize(
    "array",
    [np.arange(12.0).reshape(3, 4), np.array(7), np.array([True]), np.zeros((0, 5), np.float16), np.arange(9)[::2]],
)
def test_what_is_put_comes_back(pool: Pool, array: np.ndarray) -> None:
    held = pool.put(array)
    assert (held.shape, held.dtype, held.nbytes) == (array.shape, array.dtype, array.nbytes)
    np.testing.assert_array_equal(np.asarray(held), array)
    assert np.asarray(held).shape == array.shape
    assert np.asarray(held, np.float32).dtype == np.float32


def test_it_is_fetched_once(pool: Pool) -> None:
    held = pool.put(np.arange(4))
    memory: Any = pool.memory
    memory.copied.clear()
    assert (int(held[1]), int(held[2])) == (1, 2)
    assert memory.copied == [32]


def test_a_loop_sees_the_same_two_buffers(pool: Pool) -> None:
    """State in, state out: the old state's buffer comes back when the new one has taken its place."""
    state, seen = pool.put(np.zeros(100)), []
    for number in range(1, 9):
        state = pool.put(np.full(100, number))
        seen.append(state.address)
    assert len(set(seen)) == 2 and seen[:2] * 4 == seen
    assert pool.num_bytes == 2 * 1024 and state[0] == 8


def test_a_buffer_is_used_again_for_the_same_thing_only(pool: Pool) -> None:
    """Many states of one size: without this each would find the others' buffers, in ever new arrangements."""
    names, seen = [f"new_key{layer}" for layer in range(8)], []
    state = {name: pool.put(np.zeros(100), name) for name in names}
    for _ in range(6):
        new = {name: pool.put(np.ones(100), name) for name in reversed(names)}
        state |= new
        del new
        seen.append(tuple(state[name].address for name in names))
    assert len(set(seen)) == 2 and pool.num_bytes == 16 * 1024


def test_an_array_inside_another_keeps_its_buffer(pool: Pool) -> None:
    whole = pool.put(np.arange(6, dtype=np.float32))
    inside = DeviceArray(pool, np.dtype(np.float32), (2,), inside=whole)
    del whole
    gc.collect()
    other = pool.put(np.full(6, 9, np.float32))
    assert other.address != inside.address
    np.testing.assert_array_equal(inside.numpy(), [0, 1])


class LeftThere:
    """A session of ONNX Runtime whose outputs are left in the pool, as an engine's are left on the GPU."""

    def __init__(self, session: Any, pool: Pool) -> None:
        self.session, self.pool = session, pool
        self.run = session.run
        self.given: list[str] = []

    def run_on_device(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[DeviceArray]:
        self.given += [name for name, value in feed.items() if isinstance(value, DeviceArray)]
        found = self.session.run(names, {name: np.asarray(value) for name, value in feed.items()})
        return [self.pool.put(array) for array in found]


def test_the_step_form_hands_arrays_from_graph_to_graph(step_bundle: Path, pool: Pool) -> None:
    class Left(Sessions):
        def open_graph(self, *where: Any) -> Any:
            return LeftThere(super().open_graph(*where), pool)

    left = Reasoner(ProgramEngine.over(step_bundle, True, lambda bundle: Left(bundle, threads=1)))
    expected = Reasoner.load(step_bundle, threads=1).ask(picture(), QUESTION)
    answer = left.ask(picture(), QUESTION)
    assert answer.to_dict() | {"timings": None} == expected.to_dict() | {"timings": None}
    session: Any = left.engine.sessions.of("latent")  # pyright: ignore
    assert isinstance(session, StepSession) and answer.latent_steps == 3
    handed = set(session._sessions["think"].given)
    assert {"prompt_key0", "prompt_value3", "hidden", "key0", "saliency"} <= handed
    assert "new_hidden" in {
        spec.name for spec in open_bundle(step_bundle).program("latent").steps["think"].spec.outputs
    }


def test_neither_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        open_memory(0, "tensorrt-rtx")
    assert str(caught.value) == (
        "an engine's buffers need cuda-python, or torch built with CUDA, and neither is installed; "
        'pip install cuda-python (or "lrkit[tensorrt-rtx]", which brings it)'
    )
