"""One TensorRT engine with its context, run like an `onnxruntime.InferenceSession`. Torch-free.

Place in the pipeline: engine.py loads an engine -> `EngineSession` -> program_engine.py or programs/step_session.py.

There is one context per engine and one stream per bundle. Runs follow one another, as they would on the GPU anyway, so
any number of threads may call `run`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.errors import BundleError, LrkitError, UserError, one_line
from lrkit.runtime.engines.common.stopping import current
from lrkit.runtime.engines.tensorrt.device_array import DeviceArray, Pool
from lrkit.runtime.engines.tensorrt.library import TensorRT
from lrkit.runtime.engines.tensorrt.plan import (
    IoTensor,
    Output,
    Range,
    Shape,
    choose_profile,
    differences,
    plan_outputs,
)

MAX_GRAPHS = 32
"""CUDA graphs kept per engine: one for each set of shapes and addresses."""
Key = tuple[tuple[str, Shape, int], ...]


def engine_tensors(library: TensorRT, engine: Any) -> tuple[list[IoTensor], list[IoTensor]]:
    """(inputs, outputs) of a loaded engine."""
    inputs: list[IoTensor] = []
    outputs: list[IoTensor] = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        tensor = IoTensor(name, engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))
        is_input = engine.get_tensor_mode(name) == library.module.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(tensor)
    return inputs, outputs


def engine_profiles(engine: Any, inputs: Sequence[IoTensor]) -> list[dict[str, Range]]:
    """Bounds of the inputs whose shape varies, per optimization profile."""
    free = [tensor.name for tensor in inputs if -1 in tensor.shape]
    return [
        {name: _bounds(engine.get_tensor_profile_shape(name, number)) for name in free}
        for number in range(engine.num_optimization_profiles)
    ]


def _bounds(dims: Sequence[Any]) -> Range:
    least, usual, most = (tuple(int(size) for size in one) for one in dims)
    return least, usual, most


class EngineSession:
    """A loaded engine. Thread-safe."""

    def __init__(
        self,
        library: TensorRT,
        engine: Any,
        context: Any,
        pool: Pool,
        spec: IoSpec,
        name: str,
        capture: bool = False,
        on_new_shapes: Callable[[], None] = lambda: None,
    ) -> None:
        """`name` begins every error; `capture` runs the engine as CUDA graphs; `on_new_shapes` is called after a run
        whose inputs have shapes that no run had before.

        Raises:
            BundleError: the engine is not the program that `spec` declares.
        """
        self._library, self._engine, self._context = library, engine, context
        self._pool, self._spec, self._name = pool, spec, name
        inputs, outputs = engine_tensors(library, engine)
        if found := differences(spec, inputs, outputs):
            raise BundleError(f"{name}: is not the program that bundle.json declares ({found[0]}); build it again")
        self._inputs = [one for one in spec.inputs if one.name in {tensor.name for tensor in inputs}]
        host = library.module.TensorLocation.HOST
        self._on_host = {one.name for one in [*inputs, *outputs] if engine.get_tensor_location(one.name) == host}
        if wrong := self._on_host & {one.name for one in outputs}:
            raise BundleError(f"{name}: gives {min(wrong)} in host memory, as no program of lrkit does; build it again")
        self._profiles = engine_profiles(engine, inputs)
        self._profile = 0
        self._capture, self._on_new_shapes = capture, on_new_shapes
        self._allocators: dict[str, Any] = {}
        """Kept, for the context has no hold on them."""
        self._graphs: dict[Key, Any] = {}
        self._shapes_seen: set[tuple[Shape, ...]] = set()

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any], /) -> list[np.ndarray]:
        """The outputs of those names, in that order, on the host.

        Raises:
            CapacityError: an input is larger than the engine was built for.
            LrkitError: the engine cannot run, or CUDA failed.
        """
        return [array.numpy() for array in self.run_on_device(output_names, input_feed)]

    def run_on_device(self, output_names: Sequence[str], input_feed: Mapping[str, Any], /) -> list[DeviceArray]:
        """The same, left on the device. The feed may hold what another engine of this bundle gave. Raises as `run`."""
        current().check()  # an engine that has started runs to its end
        shapes = {one.name: tuple(int(size) for size in input_feed[one.name].shape) for one in self._inputs}
        planned = plan_outputs(self._spec, shapes)
        profile = choose_profile(self._profiles, shapes, self._name) if any(self._profiles) else 0
        with self._pool.work:
            self._pool.memory.activate()
            self._library.log.take()
            given = {one.name: self._given(one.name, input_feed[one.name]) for one in self._inputs}
            self._set_shapes(shapes, profile)
            made = self._bind(given, [self._sized(output) for output in planned])
            self._execute(given, made)
            # Host inputs are read during the run, and whoever measures a step measures its work.
            self._pool.memory.synchronize()
            for allocator in self._allocators.values():
                allocator.owner = None  # its memory goes with what is returned
            if (seen := tuple(shapes.values())) not in self._shapes_seen:
                self._shapes_seen.add(seen)
                self._on_new_shapes()
        return [self._settled(made[name]) for name in output_names]

    def _given(self, name: str, value: Any) -> Any:
        if name in self._on_host:
            return np.ascontiguousarray(np.asarray(value)).reshape(value.shape)
        return (
            value
            if isinstance(value, DeviceArray) and value.pool is self._pool
            else self._pool.put(np.asarray(value), self._use(name))
        )

    def _use(self, name: str) -> str:
        """What the buffers of an input or output are for, in the pool that all engines of the bundle share."""
        return f"{self._name}/{name}"

    def _set_shapes(self, shapes: Mapping[str, Shape], profile: int) -> None:
        if profile != self._profile:
            self._demand(self._context.set_optimization_profile_async(profile, self._pool.memory.stream), "its profile")
            self._profile = profile
        for name, shape in shapes.items():
            self._demand(self._context.set_input_shape(name, shape), f"the shape {list(shape)} of {name}")

    def _sized(self, output: Output) -> Output:
        """An output that the declaration leaves open may be known to the context, now that it knows the inputs."""
        if output.shape is not None:
            return output
        shape = tuple(int(size) for size in self._context.get_tensor_shape(output.name))
        return output if -1 in shape else Output(output.name, output.dtype, shape)

    def _bind(self, given: Mapping[str, Any], planned: Sequence[Output]) -> "dict[str, DeviceArray | Allocation]":
        """Addresses of all inputs and outputs; gives the outputs."""
        for name, array in given.items():
            address = array.ctypes.data if isinstance(array, np.ndarray) else array.address
            self._demand(self._context.set_tensor_address(name, address), f"the address of {name}")
        made: dict[str, DeviceArray | Allocation] = {}
        for output in planned:
            if output.shape is None:
                made[output.name] = held = Allocation(self._pool, output.dtype, self._use(output.name))
                allocator = self._allocators.setdefault(output.name, make_allocator(self._library))
                allocator.owner = held
                done = self._context.set_output_allocator(output.name, allocator)
            else:
                made[output.name] = array = self._pool.empty(output.dtype, output.shape, self._use(output.name))
                done = self._context.set_tensor_address(output.name, array.address)
            self._demand(done, f"the address of {output.name}")
        return made

    def _execute(self, given: Mapping[str, Any], made: "Mapping[str, DeviceArray | Allocation]") -> None:
        stream = self._pool.memory.stream
        if not self._capture or self._library.kind == "tensorrt-rtx":  # RTX records by itself, as its context was told
            if self._capture and not self._shapes_seen and not self._context.is_stream_capturable(stream):
                raise self._not_capturable("it says so itself")
            self._demand(self._context.execute_async_v3(stream), "a run")
            return
        both = {**given, **made}
        arrays = {name: array for name, array in both.items() if isinstance(array, DeviceArray)}
        if len(arrays) < len(both):
            raise self._not_capturable("a size of it is known after the run only, or an input lies on the host")
        key = tuple((name, array.shape, array.address) for name, array in arrays.items())
        if key not in self._graphs:
            # A context prepares itself in its first run with new shapes; only what it does after that is the same
            # every time.
            self._demand(self._context.execute_async_v3(stream), "a run")
            self._remember(key)
        else:
            self._graphs[key]()

    def _remember(self, key: Key) -> None:
        self._pool.memory.synchronize()
        try:
            graph = self._pool.memory.capture(
                lambda: self._demand(self._context.execute_async_v3(self._pool.memory.stream), "a recorded run")
            )
        except LrkitError as error:
            raise self._not_capturable(str(error)) from error
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        self._graphs[key] = graph

    def _settled(self, made: "DeviceArray | Allocation") -> DeviceArray:
        return made if isinstance(made, DeviceArray) else made.array(self._name)

    def _demand(self, done: bool, what: str) -> None:
        if not done:
            said = self._library.log.take()
            reason = one_line(said[0]) if said else "it does not say why"
            raise LrkitError(f"{self._name}: the engine refused {what} ({reason}); export the bundle again")

    def _not_capturable(self, why: str) -> UserError:
        return UserError(
            f"{self._name}: cannot be recorded as a CUDA graph ({why}), as where a loop runs inside; "
            "leave it out of cuda_graphs"
        )


class Allocation:
    """Memory for an output whose size only the run tells."""

    def __init__(self, pool: Pool, dtype: Any, what: str = "") -> None:
        self._pool, self._dtype, self._what = pool, np.dtype(dtype), what
        self._held: DeviceArray | None = None
        self.shape: Shape | None = None
        """Known after the run."""

    def reserve(self, num_bytes: int) -> int:
        """Address of at least that many bytes."""
        if self._held is None or self._held.nbytes < num_bytes:
            self._held = self._pool.empty(np.uint8, (max(1, num_bytes),), self._what)
        return self._held.address

    def array(self, name: str) -> DeviceArray:
        """The output.

        Raises:
            LrkitError: the run told no shape.
        """
        if self.shape is None or self._held is None:
            raise LrkitError(f"{name}: the engine told no size for one of its outputs; build it again")
        return DeviceArray(self._pool, self._dtype, self.shape, self._what, self._held)


def make_allocator(library: TensorRT) -> Any:
    """An `IOutputAllocator` that asks its `owner`, an `Allocation`, which changes from run to run."""
    base: Any = library.module.IOutputAllocator

    class Allocator(base):
        owner: Allocation

        def __init__(self) -> None:
            base.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return self.owner.reserve(size)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.owner.reserve(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.owner.shape = tuple(int(size) for size in shape)

    return Allocator()
