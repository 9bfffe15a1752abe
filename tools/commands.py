"""Our scripts as child processes, one or several at a time, which a signal ends in good order."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from engine.signals import SignalHandler


class Commands(SignalHandler):
    """Context in which scripts run; SIGTERM and Ctrl-C are passed on to all, and none starts after.

    The terminal and batch systems signal the scripts too. They may therefore get a signal twice;
    those that save do so on the first and ignore the second.

    Attributes:
        stopped: the number of the first signal, 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.stopped = 0
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(
        self,
        words: Sequence[str],
        *,
        output: IO[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run ``python *words`` to its end, from any thread; return its exit code.

        That is 128 + n where signal n ended it, or has stopped all before it began. ``output``
        takes what it prints.
        """
        if self.stopped:
            return 128 + self.stopped
        errors = None if output is None else subprocess.STDOUT
        command = [sys.executable, *words]
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        self._running.add(process)
        if self.stopped:  # since the first look, when it was not yet among those running
            process.send_signal(self.stopped)
        code = process.wait()
        self._running.discard(process)
        return code if code >= 0 else 128 - code

    def receive(self, number: int) -> None:
        """Pass ``number`` on to all that run, and begin no other."""
        self.stopped = self.stopped or number
        for process in tuple(self._running):
            process.send_signal(number)
