"""SIGTERM and Ctrl-C: what they do while something runs that has to end in good order."""

import signal
from abc import ABC, abstractmethod
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHandler(ABC):
    """Context in which SIGTERM and Ctrl-C call ``receive``; after it they do what they did."""

    @abstractmethod
    def receive(self, number: int) -> None:
        """Do what signal ``number`` asks for."""

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.receive(number)


class StopSignal(SignalHandler):
    """Context in which SIGTERM and Ctrl-C only set ``number``, to be read between two updates.

    With ``at_once`` set, as while scoring after a save, the signal ends the process directly.
    Later signals change nothing: torchrun sends Ctrl-C a second time while the first still saves.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False

    def receive(self, number: int) -> None:
        """Remember the first ``number``; with ``at_once``, raise ``Stopped`` on it."""
        if not self.number:
            self.number = number
            if self.at_once:
                raise Stopped(number)


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """A signal ended the run after it had saved; ``exit_code`` is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def protect_worker(_: int) -> None:
    """Let a data loading process outlive the signal that the training process saves on.

    The terminal and batch systems signal whole groups of processes, and a dead loader would end
    the run before it saved. The second SIGTERM, which Python sends to children left over, counts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
