"""The order of samples."""

from itertools import chain

from engine.loaders import BatchOrder


def order(**options: int) -> list[list[int]]:
    defaults = {"num_samples": 23, "batch_size": 6, "seed": 0, "epoch": 0}
    return list(BatchOrder(**(defaults | options)))


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


def test_an_epoch_goes_on_at_any_batch() -> None:
    for start in range(4):
        assert order(start=start) == order()[start:]
