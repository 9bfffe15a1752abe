"""What every command shares: a parser with examples, errors in one sentence, child processes."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO, Self

INTERRUPTED = 130
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def make_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """Make a parser whose ``--help`` ends with ``examples``; both texts keep their line breaks."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(command: Callable[[], int | None], *, on_interrupt: str = "stopped") -> int:
    """Run ``command`` and return its exit code, 0 if it returns None.

    A ``ValueError`` is printed as one sentence on stderr, code 2. Ctrl-C prints ``on_interrupt``,
    code 130.
    """
    try:
        return command() or 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(on_interrupt, file=sys.stderr)
        return INTERRUPTED


class Commands:
    """Context that runs our scripts as child processes and passes SIGTERM and Ctrl-C on to them.

    After a signal no script starts. The terminal and batch systems signal the scripts as well, so
    a script may get a signal twice; those that save do it on the first and ignore the second.

    Attributes:
        stopped: the number of the first signal, 0 before there is one.
    """

    def __init__(self) -> None:
        self.stopped = 0
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(
        self,
        words: Sequence[str],
        *,
        output: IO[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run ``python *words`` and return its exit code; any thread may call this.

        The code is 128 + n if signal n ended the script, or came before it started. ``output``
        receives what the script prints.
        """
        if self.stopped:
            return 128 + self.stopped
        errors = None if output is None else subprocess.STDOUT
        command = [sys.executable, *words]
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        self._running.add(process)
        if self.stopped:  # the signal came before the process was in the set
            process.send_signal(self.stopped)
        code = process.wait()
        self._running.discard(process)
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = self.stopped or number
        for process in tuple(self._running):
            process.send_signal(number)
