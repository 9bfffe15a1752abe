"""One update: rates, what fp16's scaler adds, and what reaches the weights."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from fakes import FakeSegmenter, FakeSet

from engine.precision import store_frozen
from engine.update import GuardedAdam, Update, rate_factor
from model import build_segmenter
from utils.config import TrainConfig
from utils.distributed import Processes

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def parts() -> tuple[Any, Any, Any]:
    """A segmenter, its update in fp16 (which a CPU computes too) and a batch."""
    torch.manual_seed(0)
    segmenter, dataset = FakeSegmenter(), FakeSet(4)
    optimizer = GuardedAdam(
        segmenter.parameter_groups(lr=1e-2, encoder_lr_scale=1.0), weight_decay=0.0
    )
    update = Update(segmenter, optimizer, processes=ALONE, precision="fp16", micro_batch=2)
    batch = torch.utils.data.default_collate([dataset[index] for index in range(4)])
    return segmenter, update, batch


def weights(segmenter: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in segmenter.parameters() if p.requires_grad])


def test_fp16_trains_with_gradients_of_true_size(parts: Any) -> None:
    segmenter, update, batch = parts
    frozen = segmenter.frozen.weight.clone()
    rows = [update(batch)[0] for _ in range(20)]
    assert rows[-1][0] < rows[0][0] and 0.01 < rows[0][1] < 10 and not rows[-1][2]
    assert torch.equal(segmenter.frozen.weight, frozen)


def test_fp16_skips_an_overflow_and_continues(parts: Any) -> None:
    segmenter, update, batch = parts
    update(batch)
    before, scale = weights(segmenter), update.scaler.get_scale()
    hook = segmenter.head.weight.register_hook(lambda gradient: gradient * torch.inf)
    row, _ = update(batch)
    assert not row[2] and torch.equal(weights(segmenter), before)
    assert update.scaler.get_scale() == scale / 2
    hook.remove()
    update(batch)
    assert not torch.equal(weights(segmenter), before)


def test_fp16_stops_for_good_at_a_loss_that_is_not_finite(parts: Any) -> None:
    segmenter, update, batch = parts
    update(batch)
    before = weights(segmenter)
    hook = segmenter.head.register_forward_hook(lambda *args: args[2] * torch.nan)
    assert update(batch)[0][2] == 1
    hook.remove()
    assert update(batch)[0][2] == 1 and torch.equal(weights(segmenter), before)


def test_a_compiled_update_is_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own graph is compiled by the tests of the methods."""
    compiled, real = [], torch.compile

    def compile_quickly(module: torch.nn.Module) -> Any:
        compiled.append(module)
        return real(module, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    batch = torch.utils.data.default_collate([FakeSet(4)[index] for index in range(4)])
    rows = []
    for compiles in (False, True):
        torch.manual_seed(0)
        segmenter = FakeSegmenter()
        groups = segmenter.parameter_groups(lr=1e-3, encoder_lr_scale=1.0)
        adam = GuardedAdam(groups, weight_decay=0.0)
        update = Update(segmenter, adam, processes=ALONE, precision="fp32", compiles=compiles)
        rows.append([update(batch)[0] for _ in range(2)])
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


def factors(num: int, **options: object) -> list[float]:
    config = TrainConfig(**options)
    return [rate_factor(step, config, total_steps=num, steps_per_epoch=2) for step in range(num)]


def test_warmup_rises_linearly_and_steps_fall_at_each_milestone() -> None:
    expected = [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert factors(8, milestones=[1, 3], gamma=0.1) == pytest.approx(expected)
    assert factors(6, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_ends_near_zero_by_steps_or_by_time() -> None:
    values = factors(100, schedule="cosine")
    assert values[0] == 1 and values[50] == pytest.approx(0.5) and values[-1] < 1e-3
    assert all(a > b for a, b in pairwise(values))
    cosine, of_run = TrainConfig(schedule="cosine"), {"total_steps": 100, "steps_per_epoch": 2}
    for share, expected in ((0.5, 0.5), (1.2, 0)):
        factor = rate_factor(1, cosine, **of_run, time_share=share)
        assert factor == pytest.approx(expected)
