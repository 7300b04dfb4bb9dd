"""What a signal does to a training: which ones ask to stop, how often, and with which exit code it ends."""

import signal

import pytest

from lrkit.cli.shared.old_spellings import modern
from lrkit.train.stop_signals import AGAIN, BY_HAND, TrainingInterrupted, stop_on_signals

SCHEDULERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU, signal.SIGHUP]


@pytest.mark.parametrize("number", SCHEDULERS)
def test_a_schedulers_signals_ask_once_however_often_they_come(number: signal.Signals) -> None:
    """torchrun under srun sends SIGTERM again, and the second one ended the run before it had saved."""
    before = signal.SIG_DFL
    outside = signal.signal(number, before)  # tests may run where SIGHUP is ignored (nohup)
    with stop_on_signals() as request:
        request.waits = True
        assert not request()
        for _ in range(3):
            signal.raise_signal(number)
        assert request() and request.exit_code == AGAIN
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


def test_a_second_ctrl_c_ends_the_program() -> None:
    with stop_on_signals() as request:
        request.waits = True
        signal.raise_signal(signal.SIGINT)
        assert request() and request.exit_code == BY_HAND
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, BY_HAND), (signal.SIGUSR1, AGAIN)])
def test_before_the_loop_a_signal_ends_the_run_at_once(number: signal.Signals, code: int) -> None:
    """SIGUSR1 while weights were loaded killed the process: exit code 138, and nothing was requeued."""
    with (
        pytest.raises(TrainingInterrupted, match=rf"stopped by {number.name}; .*--resume") as caught,
        stop_on_signals(),
    ):
        signal.raise_signal(number)
    assert caught.value.exit_code == code


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """nohup: the terminal is closed, and the run goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            request.waits = True
            signal.raise_signal(signal.SIGHUP)
            assert not request()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_caller_of_its_own_ends_as_by_hand() -> None:
    with stop_on_signals(lambda: True) as request:
        assert request() and request.exit_code == BY_HAND


@pytest.mark.parametrize(
    ("given", "today"),
    [
        (["train", "smoke", "--resume", "auto"], ["train", "smoke", "--resume"]),
        (["train", "--resume=auto", "smoke"], ["train", "--resume", "smoke"]),
        (["train", "auto", "--resume"], ["train", "auto", "--resume"]),
        (["train"], ["train"]),
    ],
)
def test_resume_auto_is_resume(given: list[str], today: list[str]) -> None:
    assert modern(given) == today
