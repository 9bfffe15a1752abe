"""A process that measures one case with the code of any checkout: python worker.py ROOT TASK.

It answers in lines of JSON: first what it runs, then the figures of a repetition for every line
that it reads, until there are no more.
"""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def use_checkout(root: str) -> None:
    """Import all from ``root`` but ``tools.benchmark``, which stays that of this file."""
    folder = Path(__file__).resolve().parent
    sys.path[0] = root  # in place of the folder of this file
    spec = spec_from_file_location(
        "tools.benchmark", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules["tools.benchmark"] = module_from_spec(spec)


def main(root: str, task: str) -> int:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # what the project prints must not stand between the answers
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(row: dict[str, Any]) -> None:
        answers.write(json.dumps(row) + "\n")
        answers.flush()

    use_checkout(root)
    try:
        from tools.benchmark.serving import serve
        from tools.benchmark.task import Task

        serve(Task(**json.loads(task)), sys.stdin, answer)
    except Exception as error:
        # Any: an older checkout may lack what a case needs, and the other cases go on.
        answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
