"""The order of samples, and the sizes of batches."""

from itertools import chain

import pytest
import torch
from fakes import FakeSet, make_config

from engine.loaders import batch_order, check_batch_size
from utils.distributed import Processes


def order(**options: int) -> list[list[int]]:
    defaults = {"num_samples": 23, "batch_size": 6, "seed": 0, "epoch": 0}
    return batch_order(**(defaults | options))


def test_each_sample_once_but_for_the_incomplete_batch() -> None:
    batches = order()
    seen = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [6, 6, 6] and len(set(seen)) == 18


def test_order_follows_from_seed_and_epoch_alone() -> None:
    assert order() == order()
    assert order() != order(epoch=1) != order(seed=1) != order()


def test_processes_share_every_batch() -> None:
    parts = [order(rank=rank, world_size=3) for rank in range(3)]
    for batch, *shares in zip(order(), *parts, strict=True):
        assert sorted(batch) == sorted(chain(*shares)) and {len(s) for s in shares} == {2}


def test_an_epoch_continues_at_any_batch() -> None:
    for start in range(4):
        assert order(start=start) == order()[start:]


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world_size"), [(1, None, 1), (4, 1, 1), (6, 2, 2)]
)
def test_one_sentence_alone_has_nothing_to_be_normalised_by(
    batch_size: int, micro_batch: int | None, world_size: int
) -> None:
    train = {"batch_size": batch_size, "micro_batch": micro_batch}
    processes = Processes(rank=0, world_size=world_size, device=torch.device("cpu"))
    check_batch_size(make_config(train=train), FakeSet(), processes)
    cris = {"decoder": {"neck": "fpn"}}
    check_batch_size(make_config(model=cris), FakeSet(), processes)
    with pytest.raises(ValueError, match=r"train\.micro_batch: .*neck: fpn"):
        check_batch_size(make_config(train=train, model=cris), FakeSet(), processes)
