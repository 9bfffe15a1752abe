"""Which number format a device computes in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import precision
from engine.precision import autocast, resolve_precision, scoring_precision, store_frozen
from engine.update import GuardedAdam, Update
from utils.config import Config
from utils.distributed import Processes

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512_bf16 sse", "bf16"),
        ("amx_bf16 fpu", "bf16"),
        ("fpu avx2 avx512f", "fp32"),
        (None, "fp32"),
    ],
)
def test_auto_asks_the_processor(
    flags: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "cpuinfo"
    if flags is not None:
        listing.write_text(f"processor : 0\nmodel name : bf16 in a name\nflags\t\t: {flags}\n")
    monkeypatch.setattr(precision, "CPU_LISTING", listing)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")],
)
def test_auto_asks_the_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", GPU) == expected


def test_fp16_needs_a_gpu() -> None:
    assert resolve_precision("fp16", GPU) == "fp16"
    with pytest.raises(ValueError, match="fp16 needs a CUDA GPU and this run is on cpu"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_it(name: str, expected: torch.dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(name, CPU):
        assert (x @ x).dtype == expected


def test_bf16_changes_losses_less_than_another_draw_of_dropout(
    tiny_segmenter: Callable, batch: tuple[torch.Tensor, ...]
) -> None:
    decoder = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32, "dropout": 0.1}
    parts = dict(zip(("image", "ids", "mask"), batch, strict=True))
    losses = []
    for number_format, seed in (("fp32", 0), ("fp32", 1), ("bf16", 0)):
        segmenter = tiny_segmenter("vit", {"decoder": decoder}).train()
        store_frozen(segmenter, number_format)
        groups = segmenter.parameter_groups(lr=3e-4, encoder_lr_scale=1.0)
        adam = GuardedAdam(groups, weight_decay=0.0)
        update = Update(segmenter, adam, processes=ALONE, precision=number_format)
        torch.manual_seed(seed)
        losses.append(torch.stack([update(parts)[0][0] for _ in range(8)]))
    plain, other_draw, rounded = losses
    assert plain[-3:].mean() < plain[:3].mean()
    assert (rounded - plain).abs().mean() < (other_draw - plain).abs().mean()


@pytest.mark.parametrize(
    ("training", "masks", "device", "expected"),
    [
        ("fp16", None, GPU, "fp16"),
        ("fp16", None, CPU, "fp32"),
        ("fp16", "fp32", GPU, "fp32"),
        ("fp32", "bf16", CPU, "bf16"),
        ("bf16", None, CPU, "bf16"),
    ],
)
def test_precision_of_masks(
    training: str,
    masks: str | None,
    device: torch.device,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "CPU_LISTING", tmp_path / "none")
    config = Config.from_dict({"train": {"precision": training}, "eval": {"precision": masks}})
    assert scoring_precision(config, device) == expected
