"""The pages on adding modules: the adapter is added step by step, bridge and side network train."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from pages import ROOT, blocks, read

from engine.checkpoint import read_checkpoint
from engine.parameters import count
from model.adapters import ADAPTERS
from model.bridges import BRIDGES
from model.loss import text_to_pixel_loss
from model.side import SIDES
from utils.config import load_config
from utils.demo.writer import write_demo
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source

PAGE = "docs/adding-an-adapter.md"
SOURCE, IMPORT, ENTRY = (block.text for block in blocks(PAGE, "python"))
(CONFIG,) = (block.text for block in blocks(PAGE, "yaml"))
(COMMANDS,) = (block.commands for block in blocks(PAGE, "console"))
NEEDED = ("config", "engine", "model", "tools", "utils", "train.py", "test.py")
MINIATURE = "train.max_steps=2 train.warmup_steps=0 train.batch_size=4 eval.batch_size=8"
# All commands in one process, since reading torch takes longer than they do.
RUN_ALL = """
import json, runpy, sys
sys.path.insert(0, "")
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's file as an adapter of this process."""
    module = ModuleType("ssf")
    exec(SOURCE, vars(module))
    monkeypatch.setitem(ADAPTERS, "ssf", module.add_ssf)


def test_the_page_is_followed_in_a_copy_of_the_project(tmp_path: Path) -> None:
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "pretrain").symlink_to(ROOT / "pretrain")
    write_demo(tmp_path / "datasets/demo", num_train_objects=8, num_test_objects=3)
    pack_dataset(tmp_path / "datasets", refer_source(tmp_path / "datasets", "demo"))

    assert "`model/adapters/ssf.py`" in read(PAGE) and "`config/demo/ssf_vit.yaml`" in read(PAGE)
    (tmp_path / "model/adapters/ssf.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "config/demo/ssf_vit.yaml").write_text(CONFIG, encoding="utf-8")
    registry = tmp_path / "model/adapters/__init__.py"
    text = registry.read_text("utf-8").replace("from .snf", IMPORT + "from .snf")
    registry.write_text(text.replace('    "snf":', ENTRY + '    "snf":'), encoding="utf-8")

    commands = [command[1:] for command in COMMANDS]
    commands[1] += ["--opts", *MINIATURE.split()]
    commands[2] += ["--pictures", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "9,216" in ran.stdout and "shows 9,216 parameters attached" in read(PAGE)
    folder = tmp_path / "runs/demo-ssf_vit"
    assert read_checkpoint(folder / "best.safetensors").metadata["step"] == 2
    scores = json.loads((folder / "test/results.json").read_text())["splits"]
    assert set(scores) == {"val", "testA", "testB"}


def test_it_starts_at_clip_trains_and_only_adds_state(
    adapter: None, kind: str, tiny_segmenter: Callable, batch: tuple[torch.Tensor, ...]
) -> None:
    image, ids, mask = batch
    plain = tiny_segmenter(kind, {"bridges": []}).eval()
    options = {"bridges": [], "adapters": [{"name": "ssf"}]}
    adapted = tiny_segmenter(kind, options).eval()
    assert plain.state_dict().keys() < adapted.state_dict().keys()
    with torch.no_grad():
        for first, second in zip(
            plain.encoder(image.float(), ids), adapted.encoder(image.float(), ids), strict=True
        ):
            torch.testing.assert_close(first, second)

    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    added = {
        name for name, parameter in adapted.encoder.named_parameters() if parameter.requires_grad
    }
    assert len(added) == 2 * 2 * 12 * (2 if kind == "vit" else 1)
    logits = adapted.train()(image, ids)
    text_to_pixel_loss(logits, mask).backward()
    torch.optim.SGD(adapted.parameter_groups(lr=0.1, encoder_lr_scale=1.0)).step()
    changed = {key for key, value in adapted.state_dict().items() if not value.equal(before[key])}
    assert changed <= adapted.trainable_state().keys()
    assert {f"encoder.{name}" for name in added} <= changed


def test_its_size_on_a_vit_is_as_told(adapter: None) -> None:
    config = load_config(
        ROOT / "config/frozen_vitb16.yaml", ["model.adapters=[{name: ssf, towers: both}]"]
    )
    assert f"on ViT-B/16 they are {count(config)['attached']:,}" in read(PAGE)


def test_the_lines_of_the_dictionary_fit() -> None:
    source = (ROOT / "model/adapters/__init__.py").read_text("utf-8")
    assert "\nADAPTERS: dict[" in source and '\n    "snf": add_snf,' in source
    assert "def add_ssf(" in SOURCE and "add_ssf" in IMPORT and '"ssf": add_ssf' in ENTRY


def test_every_kind_of_method_has_its_folder() -> None:
    for folder in ("adapters", "bridges", "side"):
        assert f"`model/{folder}/`" in read(PAGE) and (ROOT / "model" / folder).is_dir()


@pytest.mark.parametrize(
    ("page", "registry", "name", "model"),
    [
        ("docs/adding-a-bridge.md", BRIDGES, "MeanExchange", {"bridges": [{"name": "new"}]}),
        (
            "docs/adding-a-side-network.md",
            SIDES,
            "MapSum",
            {"bridges": [], "side": {"name": "new"}},
        ),
    ],
)
def test_bridge_and_side_network_start_at_clip_and_train(
    page: str,
    registry: dict,
    name: str,
    model: dict,
    monkeypatch: pytest.MonkeyPatch,
    tiny_segmenter: Callable,
    batch: tuple[torch.Tensor, ...],
) -> None:
    (source,) = (block.text for block in blocks(page, "python"))
    module = ModuleType("new")
    exec(source, vars(module))
    monkeypatch.setitem(registry, "new", getattr(module, name))
    image, ids, mask = batch
    plain, changed = (tiny_segmenter("vit", part).eval() for part in ({"bridges": []}, model))
    changed.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(changed(image, ids), plain(image, ids))
    added = changed.trainable_state().keys() - plain.trainable_state().keys()
    before = {key: value.clone() for key, value in changed.state_dict().items()}
    text_to_pixel_loss(changed.train()(image, ids), mask).backward()
    torch.optim.SGD(changed.parameter_groups(lr=0.1, encoder_lr_scale=1.0)).step()
    moved = {key for key, value in changed.state_dict().items() if not value.equal(before[key])}
    assert added and added <= moved <= changed.trainable_state().keys()
