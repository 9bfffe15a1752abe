"""Training a whole CLIP: its rate, its checkpoint, its update."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_segmenter, read_checkpoint, save_checkpoint
from engine.loaders import check_batch_size
from engine.precision import store_frozen
from engine.update import GuardedAdam, Update
from model import build_segmenter
from utils.distributed import Processes

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


def test_the_trainer_gives_each_group_its_rate(
    config_of: Any, trainer_of: Any, fake_segmenter: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    given: list[dict[str, float]] = []
    groups = fake_segmenter.parameter_groups

    def spy(self: Any, **rates: float) -> Any:
        given.append(rates)
        return groups(self, **rates)

    monkeypatch.setattr(fake_segmenter, "parameter_groups", spy)
    (tmp_path / "run").mkdir()
    trainer_of(tmp_path / "run", config_of(train={"lr": 1e-3, "backbone_lr_scale": 0.5}))
    assert given == [{"lr": 1e-3, "encoder_lr_scale": 1.0, "backbone_lr_scale": 0.5}]


@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_a_checkpoint_holds_the_clip_that_trained(
    tuning: str, tiny_config: Callable, clip_file: Callable, batch: tuple, tmp_path: Path
) -> None:
    weights = tmp_path / "clip.pt"
    weights.write_bytes(clip_file("vit").read_bytes())
    backbone = {"name": None, "weights": str(weights), "tuning": tuning}
    config = tiny_config("vit", {"backbone": backbone})
    segmenter = build_segmenter(config.model, image_size=64, max_tokens=9)
    if tuning == "full":
        torch.nn.init.normal_(segmenter.encoder.clip.text.positions)
    path, (image, ids, _) = tmp_path / "best.safetensors", batch
    save_checkpoint(path, segmenter, config)
    assert (
        read_checkpoint(path).metadata["holds"]
        == {"full": "everything", "frozen": "trainable"}[tuning]
    )
    loaded = load_segmenter(read_checkpoint(path))
    with torch.no_grad():
        logits = [model.eval()(image, ids) for model in (loaded, segmenter)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world_size"), [(1, None, 1), (4, 1, 1), (6, 2, 2)]
)
def test_one_sentence_alone_has_nothing_to_be_normalised_by(
    config_of: Any, fake_set: Any, batch_size: int, micro_batch: int | None, world_size: int
) -> None:
    train = {"batch_size": batch_size, "micro_batch": micro_batch}
    processes = Processes(rank=0, world_size=world_size, device=torch.device("cpu"))
    check_batch_size(config_of(train=train), fake_set(), processes)
    cris = {"decoder": {"neck": "fpn"}}
    check_batch_size(config_of(model=cris), fake_set(), processes)
    with pytest.raises(ValueError, match=r"train\.micro_batch: .*neck: fpn"):
        check_batch_size(config_of(train=train, model=cris), fake_set(), processes)


def test_a_compiled_update_is_the_same_update(
    tiny_config: Callable, batch: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_quickly(module: torch.nn.Module) -> Any:
        compiled.append(module)
        return whole(module, backend="eager", fullgraph=True)

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", compile_quickly)
    rows = []
    for compiles in (False, True):
        torch.manual_seed(0)
        segmenter = build_segmenter(tiny_config("vit").model, image_size=64, max_tokens=9).train()
        groups = segmenter.parameter_groups(lr=1e-3, encoder_lr_scale=1.0)
        adam = GuardedAdam(groups, weight_decay=0.0)
        update = Update(segmenter, adam, processes=ALONE, precision="fp32", compiles=compiles)
        parts = dict(zip(("image", "ids", "mask"), batch, strict=True))
        rows.append([update(parts)[0] for _ in range(2)])
    assert compiled == [segmenter]
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_frozen_weights_in_bf16_change_no_bit_and_stay(
    kind: str, tiny_config: Callable, batch: tuple
) -> None:
    segmenter = build_segmenter(tiny_config(kind).model, image_size=64, max_tokens=9).eval()
    outcomes = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            logits = segmenter(*batch[:2])
        trains = [p for p in segmenter.parameters() if p.requires_grad]
        outcomes.append((logits, torch.autograd.grad(logits.float().sum(), trains)))
        store_frozen(segmenter, "bf16")
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)
    types = {name: value.dtype for name, value in segmenter.encoder.clip.named_parameters()}
    halves = {name for name, dtype in types.items() if dtype == torch.bfloat16}
    assert "visual.positions" not in halves and "text.token_embed.weight" not in halves
    assert {name for name in types if name.endswith("q_proj.weight")} <= halves
    assert all(p.dtype == torch.float32 for p in trains)
