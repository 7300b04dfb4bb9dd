"""What happens around a run of an engine: shapes, profiles, addresses, recorded runs, threads. By answers, over
tests/host_engine.py; no TensorRT engine runs here."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import EngineKind, GraphName, ProgramEntry, Role
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError, CapacityError, LrkitError, UserError
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.engines.programs.program_engine import ProgramEngine
from lrkit.runtime.engines.programs.program_sessions import ProgramSessions
from lrkit.runtime.engines.tensorrt.device_array import Pool
from lrkit.runtime.engines.tensorrt.library import TensorRT, load_library
from lrkit.runtime.engines.tensorrt.plan import Range
from lrkit.runtime.engines.tensorrt.session import EngineSession
from lrkit.runtime.sdk import Reasoner
from tests.bundles import CAPACITY, QUESTION, picture
from tests.host_engine import HostContext, HostEngine
from tests.unit.test_device_array import ProcessMemory

pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
SAMPLES = trail_set("main", "test", 6)
TOKENS = CAPACITY["max_prompt_tokens"]
MOST = {"P": TOKENS, "N": CAPACITY["max_patches"], "L": TOKENS, "L+P": TOKENS, "L+P+K": TOKENS + 4, "V0": TOKENS}


def profile(spec: IoSpec, least: int, most: dict[str, int]) -> dict[str, Range]:
    """From `least` to `most` of each free axis; what an earlier look left may be empty."""
    free = [given for given in spec.inputs if any(isinstance(axis, str) for axis in given.shape)]

    def sized(shape: tuple[int | str, ...], sizes: dict[str, int]) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in shape)

    low = dict.fromkeys(most, least) | {"L": 0, "V0": 0}
    return {given.name: (sized(given.shape, low), sized(given.shape, most), sized(given.shape, most)) for given in free}


class HostSessions(ProgramSessions):
    """As TensorRtSessions, with engines of tests/host_engine.py."""

    name = "host"

    def __init__(self, bundle: Any, kind: EngineKind = "tensorrt", capture: tuple[str, ...] = ()) -> None:
        super().__init__(bundle)
        real = load_library("tensorrt-rtx")
        self.library = TensorRT(kind, real.module, real.version, real.log)
        self.pool, self.capture = Pool(ProcessMemory()), capture
        self.contexts: dict[str, HostContext] = {}
        self.new_shapes: list[str] = []

    def open_graph(self, role: Role, entry: ProgramEntry, graph: GraphName, file: str, spec: IoSpec) -> EngineSession:
        profiles = [profile(spec, 1, dict.fromkeys(MOST, 40)), profile(spec, 1, MOST)]
        engine = HostEngine(self.library, self.bundle.folder / file, spec, profiles)
        self.contexts[graph] = HostContext(engine)
        return EngineSession(
            self.library, engine, self.contexts[graph], self.pool, spec, f"{role}.{graph}", graph in self.capture,
            lambda: self.new_shapes.append(graph),
        )  # fmt: skip


def over(folder: Path, **how: Any) -> Reasoner:
    return Reasoner(ProgramEngine.over(folder, True, lambda bundle: HostSessions(bundle, **how)))


def sessions_of(reasoner: Reasoner) -> HostSessions:
    found = reasoner.engine.sessions  # pyright: ignore
    assert isinstance(found, HostSessions)
    return found


def facts(answer: Answer) -> dict[str, object]:
    return answer.to_dict() | {"timings": None}


def test_a_whole_program(bundle: Path) -> None:
    expected, engine = Reasoner.load(bundle, threads=1), over(bundle)
    for images, question in [*((s.images, s.question) for s in SAMPLES), (None, "Read the signs."), (None, QUESTION)]:
        assert facts(engine.ask(images, question)) == facts(expected.ask(images, question))
    spoken = expected.baseline("cot").ask(picture(), QUESTION, "cot")
    assert facts(engine.baseline("cot").ask(picture(), QUESTION, "cot")) == facts(spoken)


def test_the_form_step_leaves_its_state_on_the_device(step_bundle: Path) -> None:
    expected, engine = Reasoner.load(step_bundle, threads=1), over(step_bundle)
    for sample in SAMPLES:
        found = facts(engine.ask(sample.images, sample.question))
        assert found == facts(expected.ask(sample.images, sample.question))
    contexts, memory = sessions_of(engine).contexts, sessions_of(engine).pool.memory
    assert isinstance(memory, ProcessMemory)
    assert set(contexts["prompt"].allocators) == {"saliency", "free", "new_visual"}, "no inputs have sizes K and V"
    memory.copied.clear()
    engine.ask(picture(), QUESTION)
    caches = [array for array in contexts["speak"].engine.spec.inputs if array.name.startswith(("prompt_", "latent_"))]
    assert len(caches) == 16
    assert sum(memory.copied) < 100_000, "pixels, empty caches, counters and what was asked for; no cache comes back"


def test_the_nearest_profile_is_set(bundle: Path) -> None:
    engine = over(bundle)
    engine.ask(None, "Read the signs.")
    (context,) = sessions_of(engine).contexts.values()
    assert context.profile == 0
    engine.ask(picture(), QUESTION)
    assert context.profile == 1
    engine.ask(None, "Read the signs.")
    assert context.profile == 0
    assert sessions_of(engine).new_shapes == ["program"] * 2, "once for each set of shapes"


def test_recorded_runs_say_the_same(step_bundle: Path) -> None:
    """The first run with a set of addresses is recorded, the next ones are launched; here a launch is a plain run."""
    expected, engine = Reasoner.load(step_bundle, threads=1), over(step_bundle, capture=("speak", "think"))
    for _ in range(3):
        for sample in SAMPLES[:2]:
            found = facts(engine.ask(sample.images, sample.question))
            assert found == facts(expected.ask(sample.images, sample.question))
    session: Any = sessions_of(engine).of("latent")
    graphs = {name: session._sessions[name]._graphs for name in ("prompt", "think", "speak")}
    runs = sessions_of(engine).contexts["speak"].runs
    assert graphs["prompt"] == {}
    # From empty caches to A, from A to B, from B to A; the prompts of both pictures have one length.
    assert len(graphs["think"]) == len(graphs["speak"]) == 3
    assert runs == 3 * 2 * 5, "five tokens are fed back in each answer"


def test_what_cannot_be_recorded_is_named(step_bundle: Path) -> None:
    """The prompt's graph has outputs whose size is known after the run only."""
    with pytest.raises(
        UserError, match=r"latent.prompt: cannot be recorded as a CUDA graph .*leave it out of cuda_graphs"
    ):
        over(step_bundle, capture=("prompt",)).ask(picture(), QUESTION)


def test_threads_take_turns(step_bundle: Path) -> None:
    engine = over(step_bundle)
    alone = [facts(engine.ask(sample.images, sample.question)) for sample in SAMPLES]
    started = threading.Barrier(4)

    def ask_all(_: int) -> list[dict[str, object]]:
        started.wait()
        return [facts(engine.ask(sample.images, sample.question)) for sample in SAMPLES]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask_all, range(4))) == [alone] * 4


def test_memory_does_not_grow_with_the_answers(step_bundle: Path) -> None:
    engine = over(step_bundle)
    pool = sessions_of(engine).pool
    engine.ask(picture(), QUESTION)
    held = pool.num_bytes
    for _ in range(5):
        engine.ask(picture(), QUESTION)
    assert pool.num_bytes == held > 0


def test_a_shape_that_no_profile_holds(bundle: Path) -> None:
    engine = over(bundle)
    sessions_of(engine).of("latent")._profiles.pop()
    with pytest.raises(CapacityError, match=r"latent.program: the input .* has shape .*, and the engine was built for"):
        engine.ask(picture(), QUESTION)


def test_a_refusal_holds_the_packages_words(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = over(bundle)
    session = sessions_of(engine).of("latent")
    log = sessions_of(engine).library.log

    def refuse(stream: int) -> bool:
        log.errors.append("out of nowhere")
        return False

    monkeypatch.setattr(session._context, "execute_async_v3", refuse)
    with pytest.raises(LrkitError, match=r"latent.program: the engine refused a run \(out of nowhere\)"):
        engine.ask(picture(), QUESTION)


def test_an_engine_of_another_program(bundle: Path) -> None:
    sessions = sessions_of(over(bundle))
    entry = sessions.bundle.program("cot")
    with pytest.raises(
        BundleError, match=r"latent.program: is not the program that bundle.json declares \(the outputs are"
    ):
        spec = sessions.bundle.program("latent").spec
        engine = HostEngine(sessions.library, sessions.bundle.folder / entry.file, entry.spec, [])
        EngineSession(sessions.library, engine, HostContext(engine), sessions.pool, spec, "latent.program")
