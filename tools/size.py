"""Count lines and files by folder, and what each script reaches through imports.

Blank lines, comments and docstrings count: they are read too. `tests/test_imports.py` holds the
numbers to the limits below.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "engine", "utils", "tools", "ris_adapters")
SCRIPTS = ("train", "test", "predict")
Modules = dict[str, Path]


def read_modules(root: Path = ROOT) -> Modules:
    """Map the dotted name of every module outside ``tests/`` to its file.

    A package keeps its ``__init__`` in the name, since relative imports count from there.
    """
    paths = [*root.glob("*.py"), *(p for name in PACKAGES for p in (root / name).rglob("*.py"))]
    return {".".join(p.relative_to(root).with_suffix("").parts): p for p in sorted(paths)}


def imports_of(module: str, source: str, modules: Iterable[str]) -> Iterator[str]:
    """Yield the names that ``module`` imports anywhere in its text, submodules told apart."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if {inner, f"{inner}.__init__"} & set(modules) else base


def reach(scripts: Iterable[str], modules: Modules) -> set[str]:
    """Find the modules of ours that ``scripts`` import, directly or through others."""
    reached: set[str] = set()
    waiting = list(scripts)
    while waiting:
        module = waiting.pop()
        if module in reached or module not in modules:
            continue
        reached.add(module)
        for target in imports_of(module, modules[module].read_text("utf-8"), modules):
            parts = target.split(".")
            packages = [".".join([*parts[:end], "__init__"]) for end in range(1, len(parts) + 1)]
            waiting += [target, *packages]
    return reached


def count_lines(paths: Iterable[Path]) -> int:
    """Count the lines of some files together."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in paths)


def folder_of(path: Path) -> str:
    """Name the folder that a file is counted in: one level deep, two below ``utils``."""
    parts = path.relative_to(ROOT).parts[:-1]
    return "/".join(parts[: 2 if parts[:1] == ("utils",) else 1]) or "scripts"


def measure() -> list[tuple[str, int, int]]:
    """List name, lines and files of each folder, of all source, of tests, of what is reached."""
    modules = read_modules()
    folders: dict[str, list[Path]] = {}
    for path in modules.values():
        folders.setdefault(folder_of(path), []).append(path)
    groups = [*sorted(folders.items()), ("source", list(modules.values()))]
    groups.append(("tests", sorted((ROOT / "tests").rglob("*.py"))))
    for scripts in (["train"], ["test"], ["predict"], ["train", "test"]):
        reached = [modules[name] for name in reach(scripts, modules)]
        groups.append((" + ".join(f"{name}.py" for name in scripts) + " reaches", reached))
    return [(name, count_lines(paths), len(paths)) for name, paths in groups]


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/size.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    print(tabulate(measure(), headers=["folder", "lines", "files"], intfmt=","))
    return 0


if __name__ == "__main__":
    sys.exit(main())
