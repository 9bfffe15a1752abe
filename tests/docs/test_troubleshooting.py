"""docs/troubleshooting.md quotes messages that the code raises, and none that it does not."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import ROOT, read

TEXT = read("docs/troubleshooting.md")
QUOTED = re.findall(r"^- \*\*`(.+?)`\*\*", TEXT, re.MULTILINE)
SOURCES = ("*.py", "engine", "model", "tools", "utils")
VALUE = "\0"  # stands for what an f-string fills in


def template(node: ast.JoinedStr) -> str:
    parts = (part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return "".join(map(str, parts))


@cache
def messages() -> frozenset[str]:
    """Every text in the code, ``VALUE`` where it is filled in, and the lines of the Makefile."""
    paths = [path for name in SOURCES for path in ROOT.glob(name)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    found = {VALUE.join(re.split(r"\$+\([^)]*\)+", (ROOT / "Makefile").read_text("utf-8")))}
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {template(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
        found |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return frozenset(found)


def matches(quoted: str, message: str) -> bool:
    """Whether ``quoted`` is a part of ``message``, its ``...`` the values and nothing else."""
    parts = (re.escape(part) for part in quoted.split("..."))
    return re.search(f"{VALUE}+".join(parts), message) is not None


@pytest.mark.parametrize("quoted", QUOTED)
def test_message_is_in_the_code(quoted: str) -> None:
    assert any(matches(quoted, message) for message in messages()), quoted


def test_there_are_messages_and_each_is_quoted_once() -> None:
    assert len(QUOTED) > 40 and len(set(QUOTED)) == len(QUOTED)
    of_ours = TEXT.partition("## Messages of other programs")[0]
    items = re.findall(r"^- ", of_ours, re.MULTILINE)
    assert len(items) == len(QUOTED), "every item quotes a message in bold"
