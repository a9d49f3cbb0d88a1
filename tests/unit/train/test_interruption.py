"""The first signal is noted, the second ends at once; under a launcher its echo does not count."""

import os
import signal

import pytest

from train import interruption
from train.interruption import StopSignal
from train.launch import LAUNCHED


def test_a_second_signal_ends_it_at_once() -> None:
    stop = StopSignal()
    before = signal.getsignal(signal.SIGINT)
    with stop.watch():
        assert not stop.is_agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_agreed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_the_echo_of_a_signal_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHED, "mine")
    stop = StopSignal()
    with stop.watch():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(interruption, "SAME_SIGNAL_S", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == signal.SIGINT
