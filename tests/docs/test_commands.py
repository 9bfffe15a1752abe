"""Every command on a page runs here, in miniature, or says what it needs or which test runs it."""

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pages import PAGES, ROOT, Block, blocks, prose, script_of

from utils.config import load_config
from utils.demo import writer

torch.set_num_threads(1)
LANGUAGES = {"console", "text", "python", "yaml", "bash", "bibtex"}
NEEDS, RUN_BY = "needs: ", "run by: "
MARKS = f"'{NEEDS}WHAT' or '{RUN_BY}FILE::TEST'"
RUNNABLE = {"console", "python"}
BLOCKS = [block for page in PAGES for block in blocks(page)]
PROJECT = ("config", "docs", "pretrain", "results", "sweeps", "test.py", "train.py")
# What is added to a command so that it takes a second.
TRAIN_LITTLE = [
    "train.max_steps=2",
    "train.max_minutes=null",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "eval.batch_size=8",
]
WRITE_DEMO = writer.write_demo
PICTURE = "COCO_train2014_000000102082.jpg"  # of the whole demo, which pages show


def runs_here(block: Block) -> bool:
    return block.language in RUNNABLE and not block.mark


def shown_commands() -> dict[str, list[str]]:
    """Every command of ours in a block or a line of text, by how it is written."""
    commands = [words for block in BLOCKS for words in block.commands if block.language != "text"]
    for page in PAGES:
        for line in re.findall(r"`((?:python|torchrun|make) [^`]+)`", prose(page)):
            commands += Block(page, "console", line.replace("…", ""), "").commands
    return {" ".join(words): words for words in commands if script_of(words) or words[0] == "make"}


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}: what is this block? {block.text}"
        if block.language == "text":
            assert not block.commands, f"{page}: a command in a block of text: {block.text}"
        is_marked = block.language in RUNNABLE and block.mark.startswith((NEEDS, RUN_BY))
        assert is_marked or not block.mark, f"{page}: <!-- {block.mark} --> should say {MARKS}"
        if runs_here(block) and block.language == "console":
            assert all(script_of(words) is not None for words in block.commands), block.text


@pytest.mark.parametrize("command", shown_commands().values(), ids=shown_commands())
def test_commands_name_what_there_is(command: list[str]) -> None:
    if command[0] == "make":
        targets = {word for word in command[1:] if "=" not in word}
        assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        return
    place = script_of(command)
    assert place is not None
    words = command[place:]
    if command[0] != "python":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(command[command.index("torchrun") + 1 :])
        assert [parsed.training_script, *parsed.training_script_args] == words
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    assert {word for word in words if word.startswith("--") and f'"{word}"' not in source} == set()
    if "--config" in words and (path := ROOT / words[words.index("--config") + 1]).exists():
        load_config(path, [word for word in words if re.fullmatch(r"[a-z]+\.[\w.]+=.*", word)])


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.mark.startswith(RUN_BY)], ids=lambda block: block.page
)
def test_another_test_runs_it(block: Block) -> None:
    """That test is there, and its file names the scripts, or the page whose blocks it reads."""
    file, _, names = block.mark.removeprefix(RUN_BY).partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    for name in filter(None, names.split(", ")):
        assert f"\ndef {name}(" in source, f"{file} has no {name}"
    for words in block.commands:
        place = script_of(words)
        subject = Path(words[place]).stem if place is not None else _script_of_target(words[1])
        assert block.page in source or re.search(rf"\b{subject}\b", source), f"{file}: {subject}?"


def _script_of_target(target: str) -> str:
    """The script that ``make target`` starts, or the target itself."""
    recipe = (ROOT / "Makefile").read_text().partition(f"\n{target}:")[2].partition("\n\n")[0]
    found = re.search(r"tools/(\w+)\.py", recipe)
    return found[1] if found else target


def write_small_demo(folder: Path, **options: Any) -> None:
    WRITE_DEMO(folder, num_train_objects=8, num_test_objects=3, **options)
    images = sorted((folder / "images").iterdir())
    shutil.copy(images[0], images[0].with_name(PICTURE))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the project without data, a picture, and a demo that is small."""
    for name in PROJECT:
        (tmp_path / name).symlink_to(ROOT / name)
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((60, 90, 3), 128, np.uint8))
    monkeypatch.setattr(writer, "write_demo", write_small_demo)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes the small demo once, packed; returns its folder."""

    @cache
    def pack() -> Path:
        from utils.prepare.pack import pack_dataset
        from utils.prepare.refer import refer_source

        root = tmp_path_factory.mktemp("datasets")
        write_small_demo(root / "demo")
        pack_dataset(root, refer_source(root, "demo"))
        return root

    return pack


def run(command: list[str]) -> None:
    """Run a script of ours in this process, as the only one."""
    place = script_of(command)
    assert place is not None
    words = [path for word in command[place:] for path in _expanded(word)]
    if words[0] == "train.py":
        words += TRAIN_LITTLE if "--opts" in words else ["--opts", *TRAIN_LITTLE]
    if words[0] == "test.py":
        words += ["--pictures", "1"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert ended.value.code == 0, f"{' '.join(command)} ends with {ended.value.code}"


def _expanded(word: str) -> list[str]:
    """As a shell does it."""
    found = sorted(str(path) for path in Path().glob(word)) if "*" in word else []
    return found or [word]


def check_arrays(text: str, names: dict[str, Any]) -> None:
    """``mask = ...  # bool (H, W)`` holds what its comment says."""
    for name, kind, shape in re.findall(r"^(\w+) = .*  # (\w+) \((.+)\)$", text, re.MULTILINE):
        array, sizes = names[name], shape.split(", ")
        assert array.dtype == kind and array.ndim == len(sizes)
        wanted = {"H": 60, "W": 90}
        assert list(array.shape) == [wanted.get(size) or int(size) for size in sizes]


@pytest.mark.parametrize("page", [p for p in PAGES if any(runs_here(b) for b in blocks(p))])
def test_page_runs(
    page: str, project: Path, packed: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    if "--dataset demo\n" not in "".join(b.text for b in blocks(page) if runs_here(b)):
        (project / "datasets").symlink_to(packed())
    for block in filter(runs_here, blocks(page)):
        for command in block.commands if block.language == "console" else []:
            run(command)
        if block.language == "python":
            names: dict[str, Any] = {}
            exec(block.text, names)
            check_arrays(block.text, names)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_configurations_are_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    for base in ("base.yaml", "demo/base.yaml"):
        (tmp_path / base).write_text((ROOT / "config" / base).read_text("utf-8"))
    path = tmp_path / ("demo/one.yaml" if "config/demo/" in block.text else "one.yaml")
    path.write_text(block.text, encoding="utf-8")
    config = load_config(path)
    assert config.model.backbone.weights and (config.model.adapters or config.model.bridges)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=str)
def test_shell_scripts_parse(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
