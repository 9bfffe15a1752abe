"""Every experiment in config/ can be built: names, options and sizes fit one another."""

from pathlib import Path

import pytest
import torch

from model import build_segmenter
from utils.config import load_config

ROOT = Path(__file__).parents[1]
# A base is no experiment: it has what several share.
CONFIGS = sorted(p for p in (ROOT / "config").rglob("*.yaml") if not p.name.startswith("base"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_config_builds_and_names_its_command(path: Path) -> None:
    config, data = load_config(path), load_config(path).data
    with torch.device("meta"):  # shapes without memory: sizes are what is tested
        segmenter = build_segmenter(
            config.model,
            image_size=data.image_size,
            max_words=data.longest_sentence,
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


@pytest.mark.parametrize(
    ("name", "image_size", "batch_size", "lr"),
    [
        ("barleria_vitb16", 416, 32, 1e-4),
        ("barleria_vitb16_mixed", 416, 32, 1e-4),
        ("no_global_vitb16", 416, 32, 1e-4),
        ("snf_vitb16", 416, 32, 1e-4),
        ("barleria_vitl14", 420, 64, 2e-4),
        ("barleria_vitl14_mixed", 420, 64, 2e-4),
    ],
)
def test_barleria_trains_as_published(
    name: str, image_size: int, batch_size: int, lr: float
) -> None:
    """Section A.2: one rate for everything, 50 epochs, a tenth of it from epoch 35 on."""
    config = load_config(ROOT / f"config/{name}.yaml")
    train = config.train
    assert (config.data.image_size, train.batch_size, train.lr) == (image_size, batch_size, lr)
    assert (train.epochs, train.schedule, train.milestones, train.gamma) == (50, "step", [35], 0.1)
    assert train.encoder_lr_scale == 1.0
    is_mixed = name.endswith("_mixed")
    assert (len(config.data.datasets) == 3) == is_mixed
    assert config.data.longest_sentence == (22 if is_mixed else 17)
