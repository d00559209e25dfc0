"""The first signal lets the step end, the second does not; before the steps there is nothing to wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from openrlhf_maestro.trainer.stopping import SIGNALS, StopRequest, ignored


def send(number: signal.Signals) -> None:
    """Python runs the handler before the next instruction of this thread."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_only_asks(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest() as stop:
        stop.begin_steps()
        assert not stop.requested
        send(number)
        assert stop.requested
    assert "finishing this step" in capfd.readouterr().err


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_one_stops_at_once(second: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.begin_steps()
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(second)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_it_stops_at_once(number: signal.Signals) -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        send(number)
    assert not stop.requested


def test_after_the_steps_it_stops_at_once() -> None:
    with StopRequest() as stop:
        stop.begin_steps()
        stop.end_steps()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_ignored_signals_do_nothing_here_and_in_what_is_started() -> None:
    """As Ray's processes, which Slurm's signal to the whole group must not end."""
    sleep = [sys.executable, "-c", "import sys, time; print(flush=True); time.sleep(60)"]
    with StopRequest() as stop:
        stop.begin_steps()
        with ignored(signal.SIGUSR1):
            send(signal.SIGUSR1)
            child = subprocess.Popen(sleep, stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()
        assert not stop.requested
        child.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.kill()
        child.communicate()
        send(signal.SIGUSR1)
        assert stop.requested


def test_what_was_ignored_before_stays_ignored() -> None:
    with ignored(signal.SIGINT), StopRequest() as stop:
        stop.begin_steps()
        send(signal.SIGINT)
        assert not stop.requested
        send(signal.SIGTERM)
        assert stop.requested


def test_handlers_are_put_back_and_can_be_put_in_place_again() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray puts its own there
        stop.install()
        stop.begin_steps()
        send(signal.SIGTERM)
        assert stop.requested
    assert [signal.getsignal(number) for number in SIGNALS] == before
