"""Open the data of a configuration, and load the batches of training in a fixed order."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from engine.stop import protect_worker
from utils.config import Config
from utils.data.dataset import MixedDataset, ReferDataset, open_mixture
from utils.data.store import ReferStore
from utils.distributed import Processes


def open_training(config: Config) -> MixedDataset:
    """Open the train splits of all data sets; ``ValueError`` names one that is not there."""
    data = config.data
    return open_mixture(
        data.root,
        data.datasets,
        image_size=data.image_size,
        length=data.longest_sentence,
        max_tokens=data.max_words,
        seed=config.train.seed,
        allow_leakage=data.allow_leakage,
        target=config.train.target,
    )


def open_split(config: Config, dataset: str, split: str, length: int | None = None) -> ReferDataset:
    """Open a split for scoring: every sentence, cut as ``dataset`` has it, padded to ``length``.

    The default length is that of a model trained with ``config``.
    """
    data = config.data
    return ReferDataset(
        data.root,
        dataset,
        split,
        image_size=data.image_size,
        max_tokens=data.max_words,
        length=length or data.longest_sentence,
        all_sentences=True,
    )


def open_validation(config: Config) -> dict[str, ReferDataset]:
    """Open ``eval.split`` of every data set, by label; ``ValueError`` names one that lacks it."""
    names, split = config.data.datasets, config.eval.split
    return {_label(name, split, names): open_split(config, name, split) for name in names}


def open_tests(
    config: Config, splits: list[str], length: int | None = None
) -> dict[str, ReferDataset]:
    """Open ``splits`` of each data set that has them, by label.

    Args:
        splits: empty for all splits but train that have references.
        length: tokens of a sentence with padding, as the model reads it.

    Raises:
        ValueError: no data set has one of ``splits``, or a data set is not packed.
    """
    names = config.data.datasets
    stores = [ReferStore(config.data.root, name) for name in names]
    for split in splits:  # opening a single data set names what it has
        if len(stores) > 1 and not any(split in store.splits for store in stores):
            listed = "; ".join(f"{one.dataset} has {', '.join(one.splits)}" for one in stores)
            raise ValueError(f"no data set has a split {split!r}: {listed}")
    chosen = {}
    for store in stores:
        counts = store.header["splits"]
        filled = [split for split in store.splits if split != "train" and counts[split]["refs"]]
        for split in splits or filled:
            if split in store.splits or len(stores) == 1:
                chosen[_label(store.dataset, split, names)] = (store.dataset, split)
    if not chosen:
        raise ValueError(f"{', '.join(names)}: no split but train; score that with --splits train")
    return {label: open_split(config, *place, length) for label, place in chosen.items()}


def _label(dataset: str, split: str, datasets: tuple[str, ...]) -> str:
    """Return the name of a split's scores: ``val``, or among several data sets ``refcoco/val``."""
    return split if len(datasets) == 1 else f"{dataset}/{split}"


def batch_order(
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """List this process's part of every batch of one epoch, from batch ``start`` on.

    The order is a permutation by ``(seed, epoch)``; the last, incomplete batch is dropped. Of every
    batch process ``rank`` takes each ``world_size``-th sample. So neither the number of workers nor
    that of processes changes what an update reads, and an epoch can continue at any batch.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    num_batches = num_samples // batch_size
    batches = order[: num_batches * batch_size].reshape(num_batches, batch_size)
    return batches[start:, rank::world_size].tolist()


def check_batch_size(config: Config, train_set: MixedDataset, processes: Processes) -> None:
    """Raise ``ValueError`` if the processes cannot share the batch or the data cannot fill it."""
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
            f"train.micro_batch: model.decoder.neck: fpn normalises over the sentences of a "
            f"forward pass, and one pass would have a single sentence ({share} samples per "
            "process); make it larger"
        )


def train_loader(
    train_set: MixedDataset, config: Config, processes: Processes, epoch: int, start: int = 0
) -> DataLoader:
    """Load this process's part of the batches of ``epoch``, from batch ``start`` on."""
    train_set.set_epoch(epoch)
    order = batch_order(
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
