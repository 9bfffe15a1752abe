"""Checkpoints of a real model on a tiny CLIP: what they hold, and what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import (
    Checkpoint,
    choose_config,
    find_backbone,
    load_segmenter,
    read_checkpoint,
    save_checkpoint,
)
from model import Segmenter, build_segmenter
from model.backbones import weights as load
from model.bridges import Bridger
from utils.config import Config

Make = Callable[..., Any]


@pytest.fixture
def trained(tiny_config: Make, tiny_segmenter: Make) -> tuple[Config, Segmenter]:
    """A model whose trainable weights are no longer those of its initialisation."""
    config, segmenter = tiny_config("vit"), tiny_segmenter("vit")
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return config, segmenter.eval()


def logits_of(segmenter: Segmenter, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return segmenter.eval()(*batch[:2])


@pytest.mark.parametrize("everything", [False, True])
def test_a_loaded_model_computes_the_same(
    trained: Any, batch: Any, tmp_path: Path, everything: bool
) -> None:
    config, segmenter = trained
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config, everything=everything, extra={"step": 7})
    metadata = read_checkpoint(path).metadata
    assert metadata["holds"] == ("everything" if everything else "trainable")
    assert metadata["step"] == 7 and read_checkpoint(path).config == config
    assert len(metadata["backbone"]["sha256"]) == 64
    expected = segmenter.state_dict() if everything else segmenter.trainable_state()
    assert set(load_file(path)) == set(expected)
    loaded = load_segmenter(read_checkpoint(path), config)
    assert torch.equal(logits_of(loaded, batch), logits_of(segmenter, batch))
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_everything_needs_no_file_of_clip_weights(
    trained: Any, batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, segmenter = trained
    sizes = load.sizes_of_state(load.read_weights(config.model.backbone.weights))
    monkeypatch.setitem(load.BACKBONES, "tiny", sizes)
    values = config.to_dict()
    values["model"]["backbone"] = {"name": "tiny", "weights": None}
    path = tmp_path / "whole.safetensors"
    save_checkpoint(path, segmenter, Config.from_dict(values), everything=True)
    loaded = load_segmenter(read_checkpoint(path))
    assert torch.equal(logits_of(loaded, batch), logits_of(segmenter, batch))


def test_a_random_backbone_is_kept_whole_unasked(tiny_config: Make, tmp_path: Path) -> None:
    """Nothing could name it, so what trained on it would be lost."""
    config = tiny_config("vit")
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9)
    segmenter.backbone["sha256"] = None
    save_checkpoint(tmp_path / "x.safetensors", segmenter, config)
    assert read_checkpoint(tmp_path / "x.safetensors").metadata["holds"] == "everything"


def test_positions_of_longer_sentences_stay(tiny_config: Make, batch: Any, tmp_path: Path) -> None:
    """A model trained on 22 tokens reads 9 as before, whatever data set it is tested on."""
    longer = {"data": {"dataset": ["refcoco", "refcocog_u"], "max_words": None}}
    config = tiny_config("vit", {"train_positions": True}, **longer)
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=22)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config)
    chosen = choose_config(read_checkpoint(path), None, ["data.dataset=refcoco"])
    loaded = load_segmenter(read_checkpoint(path), chosen)
    assert loaded.encoder.clip.text.positions.shape[0] == 22
    assert torch.equal(logits_of(loaded, batch), logits_of(segmenter, batch))
    with pytest.raises(ValueError, match=r"of another shape .*positions"):
        load_segmenter(
            read_checkpoint(path), choose_config(read_checkpoint(path), None, ["data.max_words=23"])
        )


def test_heads_that_no_shape_shows_are_compared(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the configuration leaves them at a default that is another one today."""
    config = tiny_config("vit", {"bridges": [{"name": "bridger", "dim": 16}]})
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config)
    stored = read_checkpoint(path).metadata["hyperparameters"]
    assert stored["heads"]["encoder.bridges.0.stages.0.image_interactor.attention"] == 8
    assert stored["stride"]["encoder.clip.visual.patch_embed"] == 16
    load_segmenter(read_checkpoint(path), config)
    monkeypatch.setitem(Bridger.__init__.__kwdefaults__, "heads", 4)
    with pytest.raises(ValueError, match=r"best\.safetensors: .*attention has heads 8 .* 4 in"):
        load_segmenter(read_checkpoint(path), config)


def test_a_rate_of_a_module_is_no_architecture(tiny_config: Make, tmp_path: Path) -> None:
    bridger = {"name": "bridger", "dim": 16, "heads": 4}
    config = tiny_config("vit", {"bridges": [bridger]})
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, build_segmenter(config.model, image_size=64, max_tokens=9), config)
    load_segmenter(
        read_checkpoint(path), tiny_config("vit", {"bridges": [bridger | {"lr_scale": 10}]})
    )


def test_another_backbone_is_refused(trained: Any, tmp_path: Path) -> None:
    config, segmenter = trained
    path, other = tmp_path / "best.safetensors", tmp_path / "other.pt"
    save_checkpoint(path, segmenter, config)
    weights = load.read_weights(config.model.backbone.weights)
    torch.save({key: value.half() * 1.5 for key, value in weights.items()}, other)
    values = config.to_dict()
    values["model"]["backbone"]["weights"] = str(other)
    with pytest.raises(ValueError, match="SHA-256") as error:
        load_segmenter(read_checkpoint(path), Config.from_dict(values))
    assert str(other) in str(error.value) and segmenter.backbone["sha256"] in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("dim", 32), ("heads", 2)])
def test_another_architecture_is_refused_by_name(
    trained: Any, tmp_path: Path, key: str, value: int
) -> None:
    """Also where all shapes agree, as with the number of heads."""
    config, segmenter = trained
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config)
    values = config.to_dict()
    was = values["model"]["bridges"][0][key]
    values["model"]["bridges"][0][key] = value
    message = f"model.bridges.0.{key} is {was} in it and {value} in the config"
    with pytest.raises(ValueError, match=message):
        load_segmenter(read_checkpoint(path), Config.from_dict(values))


def test_dropout_is_no_other_architecture(trained: Any, tmp_path: Path) -> None:
    config, segmenter = trained
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config)
    values = config.to_dict()
    values["model"]["decoder"]["dropout"] = 0.0
    load_segmenter(read_checkpoint(path), Config.from_dict(values))


def test_weights_that_lack_a_key_are_refused(trained: Any, tmp_path: Path) -> None:
    config, segmenter = trained
    state = segmenter.trainable_state()
    lost = next(iter(state))
    state.pop(lost)
    segmenter.trainable_state = lambda: state
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config)
    with pytest.raises(ValueError, match="1 missing") as error:
        load_segmenter(read_checkpoint(path), config)
    assert lost in str(error.value)


def test_other_files_are_told_apart(clip_file: Make, tmp_path: Path) -> None:
    missing, text, foreign = (tmp_path / name for name in ("no.safetensors", "a.txt", "b.st"))
    text.write_text("hello")
    save_file({"x": torch.zeros(1)}, foreign)
    for path, message in (
        (missing, "no such checkpoint"),
        (tmp_path, "is a folder; give the best.safetensors"),
        (text, "not a checkpoint"),
        (foreign, "not a checkpoint of this project"),
        (clip_file("vit"), "set model.backbone.weights to CLIP weights"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ")


def test_the_config_is_the_checkpoints_own_unless_another_is_given(
    trained: Any, tmp_path: Path
) -> None:
    config, segmenter = trained
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, segmenter, config)
    assert choose_config(read_checkpoint(path), None, []) == config
    assert choose_config(read_checkpoint(path), None, ["eval.threshold=0.5"]).eval.threshold == 0.5
    given = tmp_path / "given.yaml"
    given.write_text("eval: {threshold: 0.6}")
    assert choose_config(read_checkpoint(path), given, []).eval.threshold == 0.6
    with pytest.raises(ValueError, match="did you mean 'threshold'"):
        choose_config(read_checkpoint(path), None, ["eval.treshold=0.5"])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("RN101", "get it with `python tools/download_weights.py RN101`"),
        ("demo-vit", "git restore pretrain/demo-vit.pt"),
    ],
)
def test_a_backbone_that_is_nowhere_says_where_to_get_it(
    tiny_config: Make, tmp_path: Path, name: str, way: str
) -> None:
    config = tiny_config("vit", {"backbone": {"name": name, "weights": "pretrain/none.pt"}})
    metadata = {"holds": "trainable", "backbone": {"name": name, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match=f"the {name} with SHA-256 000.*{way}"):
        find_backbone(config, Checkpoint(tmp_path / "best.safetensors", config, metadata))
