"""Which samples make up each update: fixed by the seed and the epoch, and by nothing else."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from engine.signals import protect_worker
from utils.config import Config
from utils.data.dataset import MixedDataset
from utils.distributed import Processes


class BatchOrder(Sampler[list[int]]):
    """This process's part of every batch of one epoch, from batch ``start`` on.

    The order is a permutation by ``(seed, epoch)``. Batch ``b`` is its entries
    ``[b * batch_size, (b + 1) * batch_size)``, of which process ``rank`` takes every
    ``world_size``-th; the last, incomplete batch is left out. Neither the number of workers nor
    that of processes changes what an update sees, and any batch can be continued at.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(num_samples)
        num_batches = num_samples // batch_size
        batches = order[: num_batches * batch_size].reshape(num_batches, batch_size)
        self.batches = batches[start:, rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches.tolist())

    def __len__(self) -> int:
        return len(self.batches)


def check_batch_size(config: Config, train_set: MixedDataset, processes: Processes) -> None:
    """``ValueError`` for a batch that the processes cannot share or the data cannot fill."""
    batch_size = config.train.batch_size
    if batch_size % processes.world_size:
        raise ValueError(
            f"train.batch_size: {batch_size} cannot be shared equally by {processes.world_size} "
            "processes; make it a multiple"
        )
    if len(train_set) < batch_size:
        raise ValueError(
            f"train.batch_size: {batch_size} is more than the {len(train_set)} references of "
            f"{' and '.join(config.data.datasets)} to train on; make it smaller"
        )
    share = batch_size // processes.world_size
    smallest_part = share // -(-share // (config.train.micro_batch or share))
    if config.model.decoder.neck == "fpn" and smallest_part == 1:
        raise ValueError(
            "train.micro_batch: a forward pass over one sample leaves model.decoder.neck: fpn "
            f"nothing to normalise sentences by ({share} samples per process); make it larger"
        )


def train_loader(
    train_set: MixedDataset, config: Config, processes: Processes, *, epoch: int, start: int
) -> DataLoader:
    """Batches of ``epoch`` from batch ``start`` on, as this process sees them."""
    train_set.set_epoch(epoch)
    order = BatchOrder(
        len(train_set),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        epoch=epoch,
        start=start,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    return DataLoader(
        train_set,
        batch_sampler=order,
        num_workers=config.data.workers,
        pin_memory=processes.device.type == "cuda",
        worker_init_fn=protect_worker,
        generator=torch.Generator(),  # its own, so that a continued epoch draws nothing twice
    )
