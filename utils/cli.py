"""What every command shares: a parser that shows examples, and errors in one sentence."""

import argparse
import sys
from collections.abc import Callable

INTERRUPTED = 130


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
