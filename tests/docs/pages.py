"""The project's pages as tests read them: blocks of code with their marks, commands, links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FILES = ("*.md", "docs/**/*.md", "datasets/*.md", "pretrain/*.md", "results/*.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for glob in FILES for path in ROOT.glob(glob))
BLOCK = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^]]+\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)")
COMMANDS = {"python", "torchrun", "srun", "sbatch", "make", "pip", "git", "python3", "."}


class Block(NamedTuple):
    """A block of code; ``mark`` is the comment before it that says how it is tested."""

    page: str
    language: str
    text: str
    mark: str

    @property
    def commands(self) -> list[list[str]]:
        """Its commands as words, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        starts = [line for line in lines if line.partition(" ")[0] in COMMANDS]
        return [shlex.split(line, comments=True) for line in starts]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page in their order, all or those of a language."""
    found = [Block(page, name, text, mark) for mark, name, text in BLOCK.findall(read(page))]
    return [block for block in found if language in (None, block.language)]


def prose(page: str) -> str:
    """A page without its blocks."""
    return BLOCK.sub("", read(page))


def script_of(command: list[str]) -> int | None:
    """Where the script of ours stands in a command that starts one."""
    if command[0] not in ("python", "torchrun", "srun"):
        return None
    return next((place for place, word in enumerate(command) if word.endswith(".py")), None)


def table(page: str, header: str) -> list[list[str]]:
    """The cells of the table whose first line begins with ``header``, from its third line on."""
    lines = read(page).partition(f"\n{header}")[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
