"""The first signal lets the step end, the second does not; before the steps there is nothing to wait for."""

from __future__ import annotations

import os
import signal

import pytest

from openrlhf_maestro.trainer.stopping import SIGNALS, StopRequest


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


def test_while_the_run_closes_signals_do_nothing() -> None:
    with StopRequest() as stop:
        stop.begin_steps()
        send(signal.SIGTERM)
        stop.begin_closing()
        send(signal.SIGTERM)
        send(signal.SIGINT)


def test_handlers_are_put_back_and_can_be_put_in_place_again() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray puts its own there
        stop.install()
        stop.begin_steps()
        send(signal.SIGTERM)
        assert stop.requested
    assert [signal.getsignal(number) for number in SIGNALS] == before
