"""Which number format a device computes in."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from engine import precision
from engine.precision import autocast, resolve_precision, scoring_precision, store_frozen
from engine.update import GuardedAdam, Update
from model import Segmenter, build_segmenter
from utils.config import Config, load_config
from utils.data.dataset import ReferDataset
from utils.demo.writer import write_demo
from utils.distributed import Processes
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source

ROOT = Path(__file__).parents[2]
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


def losses_by_format(build: Callable[[], Segmenter], batches: list[Any]) -> list[torch.Tensor]:
    """Losses in fp32, in fp32 with another draw of dropout, and in bf16, from the same weights."""
    losses = []
    for number_format, seed in (("fp32", 0), ("fp32", 1), ("bf16", 0)):
        segmenter = build().train()
        store_frozen(segmenter, number_format)
        groups = segmenter.parameter_groups(lr=3e-4, encoder_lr_scale=1.0)
        adam = GuardedAdam(groups, weight_decay=0.0)
        update = Update(segmenter, adam, processes=ALONE, precision=number_format)
        torch.manual_seed(seed)
        losses.append(torch.stack([update(batch)[0][0] for batch in batches]))
    return losses


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed demo of a few dozen references."""
    root = tmp_path_factory.mktemp("datasets")
    write_demo(root / "demo", num_train_objects=60, num_test_objects=3)
    pack_dataset(root, refer_source(root, "demo"))
    return root


@pytest.mark.skipif(
    resolve_precision("auto", CPU) != "bf16",
    reason="this processor has no bf16, which auto then never is: fifty steps would take minutes",
)
@pytest.mark.parametrize("name", ["etris", "etris_vit"])
def test_bf16_changes_fifty_losses_less_than_another_draw_of_dropout(
    name: str, demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(f"config/demo/{name}.yaml", ["model.decoder.dropout=0.1"])
    size = config.data.image_size
    train_set = ReferDataset(demo_root, "demo", "train", image_size=size, max_tokens=17)
    order = torch.randperm(50 * 4, generator=torch.Generator().manual_seed(0)) % len(train_set)
    batches = [default_collate([train_set[int(i)] for i in part]) for part in order.split(4)]

    def build() -> Segmenter:
        torch.manual_seed(0)
        return build_segmenter(config.model, image_size=size, max_tokens=17)

    plain, other_draw, rounded = losses_by_format(build, batches)
    assert plain[-10:].mean() < 0.8 * plain[:10].mean()
    assert (rounded - plain).abs().mean() < (other_draw - plain).abs().mean()


def test_bf16_changes_a_tiny_models_losses_less_than_another_draw_of_dropout(
    tiny_segmenter: Callable, batch: tuple[torch.Tensor, ...]
) -> None:
    """The same on every processor, also on one to which bf16 is foreign."""
    decoder = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32, "dropout": 0.1}
    parts = dict(zip(("image", "ids", "mask"), batch, strict=True))
    build = partial(tiny_segmenter, "vit", {"decoder": decoder})
    plain, other_draw, rounded = losses_by_format(build, [parts] * 12)
    assert plain[-5:].mean() < plain[:5].mean()
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
