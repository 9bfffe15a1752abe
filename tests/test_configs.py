"""Every experiment in config/ can be built, and trains as its paper says."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from model import build_segmenter
from utils.config import load_config

ROOT = Path(__file__).parents[1]
# A base is no experiment: it has what several share.
CONFIGS = sorted(p for p in (ROOT / "config").rglob("*.yaml") if not p.name.startswith("base"))

# What all papers have: 50 epochs, a tenth of the rate from epoch 35 on.
COMMON = {
    "train.epochs": 50,
    "train.schedule": "step",
    "train.milestones": [35],
    "train.gamma": 0.1,
    "train.weight_decay": 0.0,
}
ETRIS = {"data.image_size": 416, "train.lr": 1e-4, "train.batch_size": 32}
BARLERIA = ETRIS | {"train.encoder_lr_scale": 1.0}
LARGE = {"data.image_size": 420, "train.lr": 2e-4, "train.batch_size": 64}
MIXED = {"data.dataset": ["refcoco", "refcoco+", "refcocog_u"], "data.max_words": 22}
CRIS = {
    "train.lr": 1e-4,
    "train.backbone_lr_scale": 0.1,
    "train.batch_size": 64,
    "model.backbone.tuning": "full",
    "model.decoder.neck": "fpn",
    "model.decoder.layers": 3,
    "model.decoder.heads": 8,
    "model.decoder.feedforward": 2048,
}
RELEASED = ETRIS | {
    "train.encoder_lr_scale": 1.0,
    "train.target": "nearest",
    "train.precision": "fp16",
    "eval.protocol": "released",
    "eval.precision": "fp32",
    "eval.metric": "mIoU",
    "eval.first_sentences": True,
    "eval.threshold": 0.35,
    "model.train_positions": True,
    "model.decoder.project_sentence": True,
    "model.decoder.initial_kernel": "default",
}
RELEASED_RESNET = {"model.backbone_norm": "batch", "model.decoder.train_connect": False}
RELEASED_VIT = {"model.backbone_norm": "frozen", "model.decoder.train_connect": True}


def bridger(dim: int, heads: int) -> dict[str, Any]:
    return {"model.bridges": [{"name": "bridger", "dim": dim, "heads": heads}]}


PUBLISHED: dict[str, dict[str, Any]] = {
    "etris_rn50": ETRIS | bridger(56, 4) | {"train.encoder_lr_scale": 1.0},
    "etris_rn101": ETRIS | bridger(64, 4) | {"train.encoder_lr_scale": 1.0},
    "etris_vitb16": ETRIS | bridger(128, 8) | {"train.encoder_lr_scale": 10.0},
    "etris_rn50_released": RELEASED | bridger(64, 4) | RELEASED_RESNET,
    "etris_rn101_released": RELEASED | bridger(64, 4) | RELEASED_RESNET,
    "etris_vitb16_released": RELEASED | bridger(64, 8) | RELEASED_VIT,
    "cris_rn50": CRIS,
    "cris_rn101": CRIS,
    "barleria_vitb16": BARLERIA,
    "barleria_vitb16_mixed": BARLERIA | MIXED,
    "no_global_vitb16": BARLERIA,
    "snf_vitb16": BARLERIA,
    "barleria_vitl14": BARLERIA | LARGE,
    "barleria_vitl14_mixed": BARLERIA | LARGE | MIXED,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_config_builds_and_names_its_command(path: Path) -> None:
    config, data = load_config(path), load_config(path).data
    with torch.device("meta"):  # shapes without memory: sizes are what is tested
        segmenter = build_segmenter(
            config.model,
            image_size=data.image_size,
            max_tokens=data.longest_sentence,
            load_weights=False,
        )
    groups = segmenter.parameter_groups(
        lr=config.train.lr, encoder_lr_scale=config.train.encoder_lr_scale
    )
    rates = {group["name"]: group["lr"] for group in groups}
    attached = config.model.bridges or config.model.adapters
    trains_encoder = bool(attached) or config.model.train_positions
    assert ("encoder" in rates) == trains_encoder and rates["decoder"] == config.train.lr
    assert ("side" in rates) == (config.model.side is not None)
    name = path.relative_to(ROOT).as_posix()
    assert f"# python train.py --config {name}\n" in path.read_text()
    if path.name.startswith("etris_rn"):
        assert config.model.bridges[0]["heads"] == 4  # as in the released configurations


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiment_trains_as_published(name: str) -> None:
    config = load_config(ROOT / f"config/{name}.yaml")
    expected = COMMON | {"data.dataset": "refcoco"} | PUBLISHED[name]
    assert {key: attrgetter(key)(config) for key in expected} == expected
    assert config.data.longest_sentence == (22 if name.endswith("_mixed") else 17)
