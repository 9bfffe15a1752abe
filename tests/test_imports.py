"""Imports point down, and the code keeps to its size."""

from collections.abc import Mapping
from operator import gt
from pathlib import Path

import pytest

from tools.size import ROOT, imports_of, measure, read_modules

PARTS = ("model.adapters", "model.bridges", "model.side", "model.decoder")
MODEL = {"model", "model.backbones", *PARTS}
READING = {"utils", "utils.data"}
UTILS = READING | {"utils.prepare", "utils.demo"}
# What each group may import besides itself; a module belongs to its longest prefix.
ALLOWED: dict[str, set[str]] = {
    "model.backbones": set(),
    **{part: {"model.backbones"} for part in PARTS},
    "model": MODEL,
    "utils": READING,
    "utils.data": READING,
    "utils.prepare": UTILS,
    "utils.demo": UTILS,
    "engine": MODEL | READING,
    "tools": MODEL | UTILS | {"engine"},
    "ris_adapters": {"engine"},
    **{script: MODEL | READING | {"engine"} for script in ("train", "test", "predict")},
}


def group_of(module: str) -> str | None:
    """Find the group of ``ALLOWED`` that a module belongs to, None for a library."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ALLOWED), None)


def wrong_imports(sources: Mapping[str, str]) -> list[str]:
    """List every import that does not point down."""
    wrong = []
    for module, source in sources.items():
        above = group_of(module)
        assert above is not None, f"{module}: which group of ALLOWED does it belong to?"
        for target in imports_of(module, source, sources):
            below = group_of(target)
            if below not in {None, above} | ALLOWED[above]:
                wrong.append(f"{module} imports {target}: {above} must not import {below}")
    return wrong


def test_imports_point_down() -> None:
    modules = read_modules()
    assert {"utils.config", "utils.__init__", "tools.download_weights", "train"} <= set(modules)
    assert wrong_imports({name: path.read_text("utf-8") for name, path in modules.items()}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("utils.config", "import model"),
        ("utils.config", "def late():\n    from model.loss import loss"),
        ("utils.data.store", "from engine import metrics"),
        ("utils.data.store", "from utils.prepare.writer import Writer"),
        ("utils.data.store", "from ..prepare import writer"),
        ("engine.trainer", "import train"),
        ("engine.trainer", "from tools.train_demo import main"),
        ("engine.trainer", "from utils.prepare import pack"),
        ("model.segmenter", "from utils.config import ModelConfig"),
        ("model.segmenter", "from engine import trainer"),
        ("model.backbones.vit", "from model.adapters.lora import Lora"),
        ("model.backbones.vit", "from .. import adapters"),
        ("model.adapters.lora", "from model import bridges"),
        ("model.bridges.bridger", "from model.segmenter import Segmenter"),
        ("model.decoder", "from model import build_segmenter"),
        ("train", "from tools.train_demo import main"),
    ],
)
def test_wrong_imports_are_found(module: str, source: str) -> None:
    packages = ("model", "model.backbones", "model.adapters", "model.bridges", "engine")
    packages += ("utils.prepare",)
    sources = {f"{package}.__init__": "" for package in packages} | {module: source}
    assert len(wrong_imports(sources)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("train", "import engine.trainer, utils.config"),
        ("tools.parameters", "from model import build_segmenter"),
        ("engine.trainer", "from model.loss import loss\nfrom utils.logging import progress"),
        ("model.adapters.lora", "from model.backbones.slots import fill\nfrom . import ADAPTERS"),
        ("utils.prepare.pack", "import lmdb\nfrom utils.data import store"),
    ],
)
def test_right_imports_pass(module: str, source: str) -> None:
    sources = {"model.__init__": "", "model.adapters.__init__": "", module: source}
    assert wrong_imports(sources) == []


# Lines and files at most. What a newcomer has to read grows by decision, not by accident.
LIMITS = {
    "model": (3860, 34),
    "engine": (2920, 14),
    "utils": (1190, 11),
    "utils/data": (1150, 7),
    "source": (19600, 133),
    "tests": (15250, 97),
    "train.py + test.py reaches": (8750, 66),
}


def test_the_code_keeps_to_its_size() -> None:
    sizes = {name: (lines, files) for name, lines, files in measure()}
    over = {name: sizes[name] for name, limit in LIMITS.items() if any(map(gt, sizes[name], limit))}
    assert over == {}, "make size prints all; raise a limit only for what users need"


@pytest.mark.parametrize("path", sorted(read_modules().values()), ids=str)
def test_a_file_is_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 450, path.relative_to(ROOT)
