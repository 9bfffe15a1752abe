"""One update: what fp16's scaler adds, and what reaches the weights."""

from typing import Any

import pytest
import torch

from engine.update import GuardedAdam, Update
from utils.distributed import Processes

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def parts(fake_segmenter: Any, fake_set: Any) -> tuple[Any, Any, Any]:
    """A segmenter, its update in fp16 (which a CPU computes too) and a batch."""
    torch.manual_seed(0)
    segmenter, dataset = fake_segmenter(), fake_set(4)
    optimizer = GuardedAdam(
        segmenter.parameter_groups(lr=1e-2, encoder_lr_scale=1.0), weight_decay=0.0
    )
    update = Update(segmenter, optimizer, processes=ALONE, precision="fp16", micro_batch=2)
    batch = torch.utils.data.default_collate([dataset[index] for index in range(4)])
    return segmenter, update, batch


def weights(segmenter: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in segmenter.parameters() if p.requires_grad])


def test_fp16_trains_with_gradients_of_true_size(parts: Any) -> None:
    _, update, batch = parts
    rows = [update(batch)[0] for _ in range(20)]
    assert rows[-1][0] < rows[0][0] and 0.01 < rows[0][1] < 10 and not rows[-1][2]


def test_fp16_leaves_out_an_overflow_and_goes_on(parts: Any) -> None:
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


def test_what_is_frozen_stays(parts: Any) -> None:
    segmenter, update, batch = parts
    before = segmenter.frozen.weight.clone()
    update(batch)
    assert torch.equal(segmenter.frozen.weight, before)
