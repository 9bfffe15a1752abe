"""Every configuration, the rows of the papers' tables among them, trained on the demo's weights."""

from pathlib import Path

import pytest
import torch

from engine.update import GuardedAdam, Update
from model import build_segmenter
from utils.config import Config, load_config
from utils.distributed import Processes

ROOT = Path(__file__).parents[2]
ALL = sorted(p for p in (ROOT / "config").rglob("*.yaml") if not p.name.startswith("base"))
# of equal models one
FILES = {load_config(path).model.model_dump_json(): path for path in ALL}.values()
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
SIZES = {"resnet": 160, "vit": 80}  # what the demo's CLIPs were trained for


def on_demo_weights(path: Path) -> Config:
    """The configuration with the demo's CLIP of the same kind, and a narrow decoder."""
    name = load_config(path).model.backbone.name
    kind = "resnet" if name.startswith(("demo-resnet", "RN")) else "vit"
    backbone = [f"name=demo-{kind}", f"weights={ROOT}/pretrain/demo-{kind}.pt"]
    decoder = ["dim=64", "heads=4", "feedforward=64"]
    keys = [f"data.image_size={SIZES[kind]}", *(f"model.backbone.{key}" for key in backbone)]
    return load_config(path, keys + [f"model.decoder.{key}" for key in decoder])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_two_steps(path: Path) -> None:
    """What trains moves, all of it, and nothing else does."""
    config = on_demo_weights(path)
    size, train = config.data.image_size, config.train
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, image_size=size, max_tokens=17).train()
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    rates = {"encoder_lr_scale": train.encoder_lr_scale, "backbone_lr_scale": 0.1}
    adam = GuardedAdam(segmenter.parameter_groups(lr=1e-3, **rates), weight_decay=0.0)
    update = Update(segmenter, adam, processes=ALONE, precision="fp32")
    image = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    ids = torch.tensor([[49406, 736, 2866, 49407], [49406, 1746, 49407, 0]])
    mask = (image.float().mean(dim=1) > 128).to(torch.uint8)
    for _ in range(2):
        row, _ = update({"image": image, "ids": ids, "mask": mask})
        assert row.isfinite().all() and row[1] > 0 and not row[2]
    changed = {k for k, value in segmenter.state_dict().items() if not value.equal(before[k])}
    trains = {name for name, value in segmenter.named_parameters() if value.requires_grad}
    assert changed <= segmenter.trainable_state().keys()
    towers = {name.split(".")[2] for name in changed if name.startswith("encoder.clip.")}
    assert config.model.backbone.tuning == "frozen" or towers == {"visual", "text"}
    # a key's bias adds the same to every score of a query, which a softmax doesn't see
    assert all(name.endswith("k_proj.bias") for name in trains - changed)
