"""Checkpoints of a real model on a tiny CLIP: what they hold, and what they refuse."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from engine.checkpoint import (
    Checkpoint,
    choose_config,
    describe_differences,
    find_backbone,
    find_differences,
    load_segmenter,
    load_state,
    open_run,
    read_checkpoint,
    save_checkpoint,
    save_state,
)
from model import Segmenter, build_segmenter
from model.backbones import weights as load
from model.bridges import Bridger
from utils.config import Config

Make = Callable[..., Any]


@pytest.fixture
def trained(tiny_config: Make, tiny_segmenter: Make, tmp_path: Path) -> tuple[Config, Segmenter]:
    """A model whose weights are no longer those of its initialisation, saved in ``tmp_path``."""
    config, segmenter = tiny_config("vit"), tiny_segmenter("vit")
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    save_checkpoint(tmp_path / "best.safetensors", segmenter.eval(), config)
    return config, segmenter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best.safetensors"


def changed(config: Config, *place: str | int, value: Any) -> Config:
    """``config`` with ``value`` at ``place`` in its section ``model``."""
    values = config.to_dict()
    section: Any = values["model"]
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    return Config.from_dict(values)


def logits_of(segmenter: Segmenter, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return segmenter.eval()(*batch[:2])


@pytest.mark.parametrize("everything", [False, True])
def test_a_loaded_model_computes_the_same(
    trained: Any, batch: Any, path: Path, everything: bool
) -> None:
    config, segmenter = trained
    save_checkpoint(path, segmenter, config, everything=everything, extra={"step": 7})
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata["holds"] == ("everything" if everything else "trainable")
    assert checkpoint.metadata["step"] == 7 and checkpoint.config == config
    assert len(checkpoint.metadata["backbone"]["sha256"]) == len(checkpoint.sha256) == 64
    expected = segmenter.state_dict() if everything else segmenter.trainable_state()
    assert set(load_file(path)) == set(expected)
    assert torch.equal(logits_of(load_segmenter(checkpoint), batch), logits_of(segmenter, batch))
    assert [file.name for file in path.parent.iterdir()] == ["best.safetensors"]


def test_everything_needs_no_file_of_clip_weights(
    trained: Any, batch: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, segmenter = trained
    sizes = load.sizes_of_state(load.read_weights(config.model.backbone.weights))
    monkeypatch.setitem(load.BACKBONES, "tiny", sizes)
    named = changed(config, "backbone", value={"name": "tiny", "weights": None})
    save_checkpoint(path, segmenter, named, everything=True)
    loaded = load_segmenter(read_checkpoint(path))
    assert torch.equal(logits_of(loaded, batch), logits_of(segmenter, batch))
    segmenter.backbone["sha256"] = None  # random weights, which nothing could find again
    save_checkpoint(path, segmenter, config)
    assert read_checkpoint(path).metadata["holds"] == "everything"


def test_positions_of_longer_sentences_stay(tiny_config: Make, batch: Any, path: Path) -> None:
    """A model trained on 22 tokens reads 9 as before, whatever data set it is tested on."""
    longer = {"data": {"dataset": ["refcoco", "refcocog_u"], "max_words": None}}
    config = tiny_config("vit", {"train_positions": True}, **longer)
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=22)
    save_checkpoint(path, segmenter, config)
    checkpoint = read_checkpoint(path)
    chosen = choose_config(checkpoint, None, ["data.dataset=refcoco"])
    loaded = load_segmenter(checkpoint, chosen)
    assert loaded.encoder.clip.text.positions.shape[0] == 22
    assert torch.equal(logits_of(loaded, batch), logits_of(segmenter, batch))
    with pytest.raises(ValueError, match="positions"):
        load_segmenter(checkpoint, choose_config(checkpoint, None, ["data.max_words=23"]))


def test_heads_that_no_shape_shows_are_compared(
    trained: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the configuration leaves them at a default that has changed since."""
    config, segmenter = trained
    config = changed(config, "bridges", 0, value={"name": "bridger", "dim": 16})
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9)
    save_checkpoint(path, segmenter, config)
    checkpoint = read_checkpoint(path)
    stored = checkpoint.metadata["hyperparameters"]
    assert stored["heads"]["encoder.bridges.0.stages.0.image_interactor.attention"] == 8
    assert stored["stride"]["encoder.clip.visual.patch_embed"] == 16
    load_segmenter(checkpoint)
    monkeypatch.setitem(Bridger.__init__.__kwdefaults__, "heads", 4)
    with pytest.raises(ValueError, match=r"best\.safetensors: .*attention has heads 8 .* 4 in"):
        load_segmenter(checkpoint)


@pytest.mark.parametrize(("key", "value"), [("dim", 32), ("heads", 2)])
def test_another_architecture_is_refused_by_name(
    trained: Any, path: Path, key: str, value: int
) -> None:
    """Also where all shapes agree, as with the number of heads; options of training may differ."""
    checkpoint, config = read_checkpoint(path), trained[0]
    with pytest.raises(ValueError, match=rf"model\.bridges\.0\.{key} .* {value} "):
        load_segmenter(checkpoint, changed(config, "bridges", 0, key, value=value))
    other = changed(config, "decoder", "dropout", value=0.0)
    load_segmenter(checkpoint, changed(other, "bridges", 0, "lr_scale", value=10))


def test_weights_that_lack_a_key_are_refused(trained: Any, path: Path) -> None:
    config, segmenter = trained
    state = segmenter.trainable_state()
    lost = next(iter(state))
    state.pop(lost)
    segmenter.trainable_state = lambda: state
    save_checkpoint(path, segmenter, config)
    with pytest.raises(ValueError, match=re.escape(lost)):
        load_segmenter(read_checkpoint(path))


def test_other_files_are_told_apart(clip_file: Make, tmp_path: Path) -> None:
    missing, text, foreign = (tmp_path / name for name in ("no.safetensors", "a.txt", "b.st"))
    text.write_text("hello")
    save_file({"x": torch.zeros(1)}, foreign)
    for path, word in (
        (missing, "no such checkpoint"),
        (tmp_path, "folder"),
        (text, "not a checkpoint"),
        (foreign, "format"),
        (clip_file("vit"), "model.backbone.weights"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(word)}"):
            read_checkpoint(path)


def test_the_config_is_the_checkpoints_own_unless_another_is_given(
    trained: Any, path: Path
) -> None:
    checkpoint = read_checkpoint(path)
    assert choose_config(checkpoint, None, []) == trained[0]
    assert choose_config(checkpoint, None, ["eval.threshold=0.5"]).eval.threshold == 0.5
    given = path.with_name("given.yaml")
    given.write_text("eval: {threshold: 0.6}")
    assert choose_config(checkpoint, given, []).eval.threshold == 0.6
    with pytest.raises(ValueError, match="treshold"):
        choose_config(checkpoint, None, ["eval.treshold=0.5"])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("RN101", "python tools/download_weights.py RN101"),
        ("demo-vit", "git restore pretrain/demo-vit.pt"),
    ],
)
def test_a_missing_backbone_says_where_to_get_it(
    tiny_config: Make, path: Path, name: str, way: str
) -> None:
    config = tiny_config("vit", {"backbone": {"name": name, "weights": "pretrain/none.pt"}})
    metadata = {"holds": "trainable", "backbone": {"name": name, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match=f"{name}.*{'0' * 64}.*{re.escape(way)}"):
        find_backbone(config, Checkpoint(path, config, metadata))


def test_differences_name_dotted_keys() -> None:
    ours = {"a": {"b": 1, "c": [{"d": 2}]}, "e": [], "run": {"folder": "a"}}
    theirs = {"a": {"b": 1, "c": [{"d": 3}, {"d": 4}]}, "e": [5], "run": {"folder": "b"}}
    assert find_differences(ours, ours) == {}
    found = find_differences(ours, theirs, ignored=("run.",))
    assert found["a.c.0.d"] == (2, 3) and found["a.c.1.d"][1] == 4 and found["e"] == ([], [5])
    assert describe_differences(found).startswith("a.c.0.d is 2, was 3; ")
    assert find_differences(ours, theirs, ignored=("run.", "a.", "e")) == {}


def test_a_clip_that_trains_is_saved_whole(tiny_config: Make, batch: Any, path: Path) -> None:
    config = tiny_config("vit")
    backbone = config.model.backbone.model_dump() | {"tuning": "full"}
    config = changed(config, "backbone", value=backbone)
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9)
    torch.nn.init.normal_(segmenter.encoder.clip.text.positions)
    save_checkpoint(path, segmenter, config)
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata["holds"] == "everything"
    assert torch.equal(logits_of(load_segmenter(checkpoint), batch), logits_of(segmenter, batch))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)


def test_a_flipped_byte_is_refused_or_changes_nothing(trained: Any, path: Path) -> None:
    content, (_, segmenter) = path.read_bytes(), trained
    wanted = {key: value.clone() for key, value in segmenter.trainable_state().items()}
    start = 8 + int.from_bytes(content[:8], "little")  # of the tensors
    num_refused = 0
    places = [*range(0, start, start // 25), *range(start, len(content), len(content) // 15)]
    for place in places:
        flip(path, place)
        try:
            found = load_segmenter(read_checkpoint(path)).trainable_state()
        except ValueError:
            num_refused += 1
        else:
            assert place < start and all(torch.equal(found[key], wanted[key]) for key in wanted)
        path.write_bytes(content)
    assert num_refused > 0.8 * len(places)


def test_checkpoints_without_a_checksum_are_read(trained: Any, path: Path, batch: Any) -> None:
    """As earlier versions wrote them."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    del header["sha256"]
    path.write_bytes(save(load_file(path), metadata=header))
    loaded = load_segmenter(read_checkpoint(path))
    assert torch.equal(logits_of(loaded, batch), logits_of(trained[1], batch))


def test_a_flipped_byte_of_a_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_state(path, {"step": 3, "trainable": torch.arange(5000.0)})
    size = path.stat().st_size
    for place in range(size // 4, size - size // 4, size // 20):
        flip(path, place)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_state(path)
        flip(path, place)
    assert load_state(path)["step"] == 3


@pytest.mark.parametrize("content", [{"step": 3}, [1, 2], torch.zeros(3)])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt"):
        open_run(Config(), tmp_path, fresh=False)
