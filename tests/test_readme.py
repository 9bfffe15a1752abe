"""The README keeps its word: its adapter trains, its commands parse, its numbers are counted."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from engine.parameters import count
from model.adapters import ADAPTERS
from model.loss import text_to_pixel_loss
from utils.config import load_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = {
    "positions": "inside the towers",
    "SNF": "inside the towers",
    "Bridger": "bridger",
    "intertwining": "intertwine",
    "global shortcut": "gst",
    "connect": "connect",
    "neck": "neck",
    "decoder": "decoder",
    "projector": "projector",
}
TOTALS = {
    "attached": "attached",
    "CLIP": "backbone",
    "head": "head",
    "trains": "trainable",
    "frozen": "frozen",
}


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def sizes() -> dict[str, dict[str, str]]:
    """The rows of the tables of parameters by their configuration: each cell by its column."""
    rows, header = {}, None
    for line in TEXT.splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name == "configuration":
            header = cells
        elif not line.startswith("|"):
            header = None
        elif header is not None and name.startswith("`"):
            rows[name.strip("`")] = dict(zip(header, cells, strict=True))
    return rows


def commands() -> list[list[str]]:
    """Every command that starts one of our scripts, once, as words from the script's name on."""
    text = "".join(blocks("")).replace("\\\n", " ")
    lines = re.findall(r"^(?:python|torchrun) .*?([\w/]+\.py .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in dict.fromkeys(re.sub(" +", " ", line) for line in lines)]


@pytest.fixture
def adapter(tmp_path: Path) -> ModuleType:
    """The README's adapter file as a module."""
    path = tmp_path / "ssf.py"
    path.write_text(blocks("python")[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("readme_ssf", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adapter_starts_at_clip_trains_and_only_adds_state(
    adapter: ModuleType,
    kind: str,
    tiny_segmenter: Callable,
    batch: tuple[torch.Tensor, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, ids, mask = batch
    plain = tiny_segmenter(kind, {"bridges": []}).eval()
    monkeypatch.setitem(ADAPTERS, "ssf", adapter.add_ssf)
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
    logits, _ = adapted.train()(image, ids)
    text_to_pixel_loss(logits, mask).backward()
    torch.optim.SGD(adapted.parameter_groups(lr=0.1, encoder_lr_scale=1.0)).step()
    changed = {key for key, value in adapted.state_dict().items() if not value.equal(before[key])}
    assert changed <= adapted.trainable_state().keys()
    assert {f"encoder.{name}" for name in added} <= changed


def test_call_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", np.full((60, 90, 3), 128, np.uint8))
    code = blocks("python")[0].replace('"pretrain/', f'"{ROOT.as_posix()}/pretrain/')
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["mask"].shape == (60, 90) and names["mask"].dtype == bool


def test_registry_lines_belong_to_the_file() -> None:
    registry, source = blocks("python")[2], (ROOT / "model/adapters/__init__.py").read_text("utf-8")
    declaration = registry[registry.index("ADAPTERS") :].partition("=")[0]
    assert f"\n{declaration}=" in source
    assert "def add_ssf(" in blocks("python")[1] and '"ssf": add_ssf' in registry


def test_configuration_of_the_adapter_is_read(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((ROOT / "config/base.yaml").read_text("utf-8"))
    (tmp_path / "ssf.yaml").write_text(blocks("yaml")[0])
    assert load_config(tmp_path / "ssf.yaml").model.adapters == [{"name": "ssf", "towers": "both"}]


@pytest.mark.parametrize("command", commands(), ids=shlex.join)
def test_commands_name_what_there_is(command: list[str]) -> None:
    source = (ROOT / command[0]).read_text(encoding="utf-8")
    options = {word for word in command if word.startswith("--")}
    assert {option for option in options if f'"{option}"' not in source} == set()
    if "--config" in command:
        overrides = [word for word in command if re.fullmatch(r"[a-z]+\.[\w.]+=.*", word)]
        load_config(ROOT / command[command.index("--config") + 1], overrides)


@pytest.mark.parametrize(("name", "row"), sizes().items(), ids=sizes())
def test_parameters_are_counted(name: str, row: dict[str, str]) -> None:
    counts = count(load_config(ROOT / f"config/{name}.yaml"))
    wanted = {column: f"{counts['parts'].get(part, 0):,}" for column, part in PARTS.items()}
    wanted |= {column: f"{counts[total]:,}" for column, total in TOTALS.items()}
    for tower in ("the image tower", "both towers"):
        share = counts[f"attached_share_of_{tower.removeprefix('the ').replace(' ', '_')}"]
        wanted[f"of {tower}"] = f"{100 * share:.2f} %" if share is not None else "–"
    if row.get("published") != "–":
        wanted["published"] = f"{counts['attached'] / 1e6:.2f} M"
    assert row == {column: wanted.get(column, "–") for column in row}


def test_every_full_size_configuration_is_counted() -> None:
    files = {path.stem for path in (ROOT / "config").glob("*.yaml")} - {"base"}
    tables = set(re.findall(r"`config/(\w+)\.yaml`", (ROOT / "docs/tables.md").read_text("utf-8")))
    assert sizes().keys() <= files
    assert {name for name in files if name.removesuffix("_mixed") not in sizes()} <= tables


def test_links_lead_somewhere() -> None:
    files = re.findall(r"(?<!!)\[[^]]+\]\((?!https?://|#)([^)#]+)", TEXT)
    assert files and [file for file in files if not (ROOT / file).exists()] == []
