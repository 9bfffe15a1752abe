"""Stop a run after a signal only when it has saved: SIGTERM and Ctrl-C."""

import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """A signal ended the run after it had saved; ``exit_code`` is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopSignal:
    """Context in which SIGTERM and Ctrl-C only set ``number``, which is read between two updates.

    With ``at_once`` set, as while scoring after a save, the signal raises ``Stopped`` directly.
    Later signals change nothing: torchrun sends Ctrl-C a second time while the first still saves.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            if self.at_once:
                raise Stopped(number)


def protect_worker(_: int) -> None:
    """Let a data loading process outlive the signal on which the training process saves.

    The terminal and batch systems signal whole groups of processes, and the death of a loader
    would end the run before it saved. The second SIGTERM, which Python sends to leftover children,
    ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
