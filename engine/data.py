"""The data of a configuration: what is trained on, and the splits that are scored."""

from typing import NoReturn

from utils.config import Config
from utils.data.dataset import MixedDataset, ReferDataset, open_mixture
from utils.data.store import ReferStore


def open_training(config: Config) -> MixedDataset:
    """The train splits of all data sets of ``config``; ``ValueError`` for one that is not there."""
    data = config.data
    return open_mixture(
        data.root,
        data.datasets,
        image_size=data.image_size,
        length=data.longest_sentence,
        max_words=data.max_words,
        seed=config.train.seed,
        allow_leakage=data.allow_leakage,
        target=config.train.target,
    )


def open_split(config: Config, dataset: str, split: str, length: int | None = None) -> ReferDataset:
    """A split as it is scored: every sentence, cut as ``dataset`` has it, padded to ``length``.

    That is by default the length of a model trained with ``config``.
    """
    data = config.data
    return ReferDataset(
        data.root,
        dataset,
        split,
        image_size=data.image_size,
        max_words=data.max_words,
        length=length or data.longest_sentence,
        all_sentences=True,
    )


def open_validation(config: Config) -> dict[str, ReferDataset]:
    """``eval.split`` of every data set, by label; ``ValueError`` names one that lacks it."""
    names, split = config.data.datasets, config.eval.split
    return {_label(name, split, names): open_split(config, name, split) for name in names}


def open_tests(
    config: Config, splits: list[str], length: int | None = None
) -> dict[str, ReferDataset]:
    """Those of ``splits`` (empty: all but train with anything in them) of each data set, by label.

    ``length``: tokens of a sentence with padding, as the model reads it.

    Raises:
        ValueError: a split that no data set has, or a data set that is not packed.
    """
    names = config.data.datasets
    stores = [ReferStore(config.data.root, name) for name in names]
    for split in splits:
        if not any(split in store.splits for store in stores):
            _refuse_split(split, stores)
    chosen = {
        _label(store.dataset, split, names): (store.dataset, split)
        for store in stores
        for split in splits or _filled(store)
        if split in store.splits
    }
    if not chosen:
        raise ValueError(f"{', '.join(names)}: no split but train; score that with --splits train")
    return {label: open_split(config, *place, length) for label, place in chosen.items()}


def _filled(store: ReferStore) -> list[str]:
    counts = store.header["splits"]
    return [split for split in store.splits if split != "train" and counts[split]["refs"]]


def _refuse_split(split: str, stores: list[ReferStore]) -> NoReturn:
    if len(stores) == 1:
        stores[0].check_split(split)
    listed = "; ".join(f"{store.dataset} has {', '.join(store.splits)}" for store in stores)
    raise ValueError(f"no data set has a split {split!r}: {listed}")


def _label(dataset: str, split: str, datasets: tuple[str, ...]) -> str:
    """What scores of a split go by: ``val``, or among several data sets ``refcoco/val``."""
    return split if len(datasets) == 1 else f"{dataset}/{split}"
