"""Imports point down: scripts, engine, model, its parts, model.backbones; utils stands alone."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = {"model.adapters", "model.bridges", "model.side", "model.decoder"}
MODEL = {"model", "model.backbones"} | PARTS
BELOW_SCRIPTS = {"engine", "utils"} | MODEL
# What each group may import besides itself; a module belongs to its longest prefix.
ALLOWED: dict[str, set[str]] = {
    "model.backbones": set(),
    **{part: {"model.backbones"} for part in PARTS},
    "model": MODEL,
    "utils": set(),
    "engine": {"utils"} | MODEL,
    "tools": BELOW_SCRIPTS,
    "train": BELOW_SCRIPTS,
    "test": BELOW_SCRIPTS,
    "predict": BELOW_SCRIPTS,
}


def read_project() -> dict[str, str]:
    """Source text of every module of ours, by its dotted name."""
    paths = [*ROOT.glob("*.py")]
    for folder in ("model", "engine", "utils", "tools"):
        paths += (ROOT / folder).rglob("*.py")
    # A package keeps its __init__, which relative imports count from.
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name: path.read_text("utf-8") for name, path in zip(names, paths, strict=True)}


def imports_of(module: str, source: str, modules: set[str]) -> Iterator[str]:
    """Dotted names of what ``module`` imports, wherever in its text, submodules told apart."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if {inner, f"{inner}.__init__"} & modules else base


def group(module: str) -> str | None:
    """The group a module belongs to, None for libraries."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ALLOWED), None)


def violations(sources: Mapping[str, str]) -> list[str]:
    """One line for every import that does not point down."""
    modules, found = set(sources), []
    for module, source in sources.items():
        above = group(module)
        assert above is not None, f"{module}: which group of ALLOWED does it belong to?"
        for target in imports_of(module, source, modules):
            below = group(target)
            if below is not None and below != above and below not in ALLOWED[above]:
                found.append(f"{module} imports {target}: {above} must not import {below}")
    return found


def test_imports_point_down() -> None:
    assert violations(read_project()) == []


def test_the_project_is_read_whole() -> None:
    modules = read_project()
    assert {"utils.config", "utils.__init__", "tools.download_weights"} <= set(modules)
    found = imports_of("utils.config", modules["utils.config"], set(modules))
    assert "utils.yaml_files" in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("utils.config", "import model"),
        ("utils.data.store", "from engine import metrics"),
        ("utils.config", "def late():\n    from model.loss import loss"),
        ("engine.trainer", "import train"),
        ("engine.trainer", "from tools.train_demo import main"),
        ("model.segmenter", "from utils.config import ModelConfig"),
        ("model.segmenter", "from engine import trainer"),
        ("model.backbones.vit", "from model.adapters.lora import Lora"),
        ("model.backbones.vit", "from model import adapters"),
        ("model.backbones.vit", "from .. import adapters"),
        ("model.backbones.vit", "from ..adapters import lora"),
        ("model.adapters.__init__", "from model.bridges import bridger"),
        ("model.adapters.lora", "from model import bridges"),
        ("model.bridges.bridger", "import model.adapters.lora"),
        ("model.bridges.bridger", "from model.segmenter import Segmenter"),
        ("model.decoder", "from model import build_segmenter"),
        ("model.side.gst", "from model.decoder import Neck"),
        ("train", "from tools.train_demo import main"),
    ],
)
def test_wrong_imports_are_found(module: str, source: str) -> None:
    packages = ("model", "model.backbones", "model.adapters", "model.bridges", "engine")
    sources = {f"{package}.__init__": "" for package in packages} | {module: source}
    assert len(violations(sources)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("train", "import engine.trainer, utils.config"),
        ("tools.parameters", "from model import build_segmenter"),
        ("engine.trainer", "from model.loss import loss\nfrom utils.logging import progress"),
        (
            "model.__init__",
            "from .adapters import ADAPTERS\nfrom model.backbones.vit import V",
        ),
        (
            "model.adapters.lora",
            "from model.backbones.vit import V\nfrom . import ADAPTERS",
        ),
        ("model.backbones.vit", "import torch\nfrom .common import Residual\nfrom torch import nn"),
        ("utils.data.store", "import lmdb\nfrom utils.data import refer"),
    ],
)
def test_right_imports_pass(module: str, source: str) -> None:
    assert violations({"model.__init__": "", "model.adapters.__init__": "", module: source}) == []
