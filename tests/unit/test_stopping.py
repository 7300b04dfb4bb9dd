"""Answers that are ended before their end: by time, by another thread, by Ctrl-C; in every form, and nothing is left
behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrkit.cli.main import main
from lrkit.errors import Cancelled, LrkitError, TimeoutExceeded, UserError
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.common.stopping import Running, Stop, current
from lrkit.runtime.engines.onnxruntime.session import OrtGraph
from lrkit.runtime.sdk import Reasoner
from tests.bundles import QUESTION, picture, torch_reasoner
from tests.hostile import endless


@pytest.fixture(scope="module")
def hanging(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that never answers."""
    import shutil

    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("endless") / "bundle"))
    endless(folder)
    return folder


def on_run(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Calls `act` in the thread that runs a graph, once it is set to be ended and before it computes."""
    ends_by = Running.ends_by

    def told(self: Running, end: Callable[[], None]) -> None:
        ends_by(self, end)
        act()

    monkeypatch.setattr(Running, "ends_by", told)


def test_a_loop_without_end_ends_in_time(hanging: Path) -> None:
    reasoner = Reasoner.load(hanging, threads=1)
    with pytest.raises(TimeoutExceeded, match=r"no answer within the 0.05 s that were allowed; allow more"):
        reasoner.ask(picture(), QUESTION, timeout=0.05)
    with pytest.raises(TimeoutExceeded):
        reasoner.ask_batch([(None, QUESTION)] * 2, timeout=0.05)
    assert current() is not None and threading.active_count() < 20


def test_the_command_line_gives_up(hanging: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["ask", str(hanging), QUESTION, "--timeout", "0.1"])
    assert left.value.code == 2
    assert "no answer within the 0.1 s" in " ".join(capsys.readouterr().err.split())


def test_another_thread_cancels(hanging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(hanging, threads=1)
    cancel = threading.Event()
    on_run(monkeypatch, cancel.set)
    with pytest.raises(Cancelled, match="was cancelled before it was complete; ask again"):
        reasoner.ask(None, QUESTION, cancel=cancel)
    with pytest.raises(Cancelled):  # set from the start: nothing is computed
        Reasoner.open(hanging).ask(None, QUESTION, cancel=cancel)


def test_ctrl_c_ends_a_loop_without_end(hanging: Path) -> None:
    """In a process of its own: where it did not work, only a kill would end it."""
    script = (
        "import os, signal, sys\n"
        "from lrkit import Reasoner\n"
        "from lrkit.runtime.engines.common.stopping import Running\n"
        "ends_by = Running.ends_by\n"
        "def told(self, end):\n"
        "    ends_by(self, end)\n"
        "    print('runs', flush=True)\n"
        "reasoner = Reasoner.load(sys.argv[1], threads=1)\n"
        "Running.ends_by = told\n"
        "try: reasoner.ask(None, sys.argv[2])\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    command = [sys.executable, "-c", script, str(hanging), QUESTION]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted\n"
    assert process.returncode == 0


def test_ctrl_c_in_a_question_leaves_the_next_one_whole(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(bundle, threads=1)
    expected = reasoner.ask(picture(), QUESTION).text
    with monkeypatch.context() as patch:
        on_run(patch, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            reasoner.ask(picture(), QUESTION)
    assert reasoner.ask(picture(), QUESTION).text == expected


def test_a_handler_of_the_users_own_comes_first(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        reasoner = Reasoner.load(bundle, threads=1)
        on_run(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
        assert reasoner.ask(picture(), QUESTION).text
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard


def test_sigterm_ends_a_loop_without_end_where_python_handles_it(
    hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line does, to leave nothing half-written."""

    class Ended(Exception):
        pass

    def leave(number: int, frame: object) -> None:
        raise Ended

    reasoner = Reasoner.load(hanging, threads=1)
    killed = f"import os, signal; os.kill({os.getpid()}, signal.SIGTERM)"
    killers: list[subprocess.Popen[bytes]] = []
    on_run(monkeypatch, lambda: killers.append(subprocess.Popen([sys.executable, "-S", "-c", killed])))
    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(Ended):
            reasoner.ask(None, QUESTION)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [killer.wait() for killer in killers] == [0]


def test_signals_of_an_event_loop_reach_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(bundle, threads=1)
    heard: list[str] = []

    async def serve() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.append, "usr1")
        with monkeypatch.context() as patch:
            on_run(patch, lambda: signal.raise_signal(signal.SIGUSR1))
            reasoner.ask(picture(), QUESTION)
        while not heard:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(serve(), 60))
    assert heard == ["usr1"]


def test_the_listener_of_before_is_back(bundle: Path) -> None:
    reasoner = Reasoner.load(bundle, threads=1)
    left, right = socket.socketpair()
    right.setblocking(False)
    before = signal.set_wakeup_fd(right.fileno())
    try:
        reasoner.ask(None, QUESTION)
        assert signal.set_wakeup_fd(right.fileno()) == right.fileno()
    finally:
        signal.set_wakeup_fd(before)
        left.close()
        right.close()


@pytest.mark.parametrize("form", ["steps of a bundle", "checkpoint"])
def test_between_steps(step_bundle: Path, form: str) -> None:
    """Both engines drive steps from the host: the answer ends before the next token."""
    reasoner = Reasoner.load(step_bundle, threads=1) if form == "steps of a bundle" else torch_reasoner()
    cancel, said = threading.Event(), list[object]()
    prompt = reasoner.processor.encode_prompt([picture()], QUESTION)

    def first_token(tokens: object) -> None:
        said.append(tokens)
        cancel.set()

    (whole,) = reasoner.engine.generate([prompt], AskOptions(max_new_tokens=4))
    assert len(whole.token_ids) > 1
    with pytest.raises(Cancelled):
        options = AskOptions(max_new_tokens=4, stop=Stop.within(cancel=cancel))
        reasoner.engine.generate([prompt], options, first_token)
    assert len(said) == 1
    (again,) = reasoner.engine.generate([prompt], AskOptions(max_new_tokens=4))
    assert again.token_ids == whole.token_ids


def test_threads_are_ended_one_by_one(hanging: Path, bundle: Path) -> None:
    """A time-out of one thread's question is not another's."""
    slow, quick = Reasoner.load(hanging, threads=1), Reasoner.load(bundle, threads=1)
    ended: list[str] = []

    def wait() -> None:
        try:
            slow.ask(None, QUESTION, timeout=0.2)
        except TimeoutExceeded:
            ended.append("slow")

    thread = threading.Thread(target=wait)
    thread.start()
    assert quick.ask(None, QUESTION, timeout=600).text is not None
    thread.join()
    assert ended == ["slow"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"timeout": 0}, "timeout is 0; give seconds above 0"),
        ({"timeout": -1.5}, "timeout is -1.5"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": True}, "timeout is of type bool; give seconds above 0"),
        ({"timeout": "5"}, "timeout is of type str; give seconds above 0"),
        ({"cancel": 1}, "cancel is of type int; give a threading.Event"),
        ({"cancel": "yes"}, "cancel is of type str"),
    ],
)
def test_what_cannot_end_anything(bundle: Path, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        Reasoner.open(bundle).ask(None, QUESTION, **given)
    assert expected in str(caught.value)


def test_a_time_out_longer_than_the_system_counts(bundle: Path) -> None:
    assert Reasoner.open(bundle).ask(None, QUESTION, timeout=1e300).spoken_tokens >= 0


def test_loading_can_be_ended(bundle: Path) -> None:
    stop = threading.Event()
    stop.set()
    engine: Any = Reasoner.open(bundle).engine
    prompt = engine.processor.encode_prompt([], QUESTION)
    with pytest.raises(Cancelled):
        engine.generate([prompt], AskOptions(stop=Stop.within(cancel=stop)))
    assert engine.sessions.loaded == ()


def test_an_error_of_the_library_is_no_stop(bundle: Path) -> None:
    engine: Any = Reasoner.load(bundle, threads=1).engine
    graph = engine.sessions.of("latent")
    assert isinstance(graph, OrtGraph)
    with pytest.raises(LrkitError, match="ONNX Runtime cannot run it") as caught:
        graph.run(["token_ids"], {})
    assert "\n" not in str(caught.value) and "[ONNX" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_answers_and_hears_ctrl_c(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(bundle, threads=2)
    expected = reasoner.ask(picture(), QUESTION).text
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            same = reasoner.ask(picture(), QUESTION, timeout=60).text == expected
            on_run(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
            try:
                reasoner.ask(picture(), QUESTION)
            except KeyboardInterrupt:
                status = 0 if same else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_flag_that_fails_leaves_the_time_outs_of_others(hanging: Path) -> None:
    """One thread looks at all runs: a caller's flag that raised ended it, and no answer of the process was in time."""

    class Failing:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            if self.asked > 1:
                raise ConnectionResetError("gone")
            return False

    reasoner = Reasoner.load(hanging, threads=1)
    with pytest.raises(UserError, match=r"cancel cannot be asked \(ConnectionResetError: gone\); give a"):
        reasoner.ask(None, QUESTION, cancel=Failing())
    with pytest.raises(TimeoutExceeded):
        reasoner.ask(None, QUESTION, timeout=0.05)
