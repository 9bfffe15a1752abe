"""What scoring reads of a split: every image once, with all its sentences and their truths."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.signals import protect_worker
from utils.data.dataset import ReferDataset, Sample
from utils.data.transforms import Letterbox
from utils.distributed import Processes


class Scene(NamedTuple):
    """An image and its N sentences, those about one of its R references one after the other."""

    indices: list[int]  # of the N sentences in the data set
    image: Tensor  # (3, S, S) uint8, letterboxed
    ids: Tensor  # (N, L)
    letterbox: Letterbox
    truths: Tensor  # (R, H, W) bool
    counts: list[int]  # of the sentences about each reference


def by_image(samples: Sequence[Sample]) -> list[list[list[int]]]:
    """For every image, for every reference in it, the places of its sentences in ``samples``."""
    images: dict[str, dict[int, list[int]]] = {}
    for index, sample in enumerate(samples):
        images.setdefault(sample.file_name, {}).setdefault(sample.ref_id, []).append(index)
    return [list(references.values()) for references in images.values()]


class Scenes(Dataset[Scene]):
    """The images of ``dataset`` that ``groups``, of :func:`by_image`, name."""

    def __init__(self, dataset: ReferDataset, groups: Sequence[list[list[int]]]) -> None:
        self.dataset, self.groups = dataset, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, position: int) -> Scene:
        references = self.groups[position]
        indices = [index for sentences in references for index in sentences]
        truths = [self.dataset.truth(sentences[0]) for sentences in references]
        return Scene(
            indices,
            self.dataset.image(indices[0]),
            torch.stack([self.dataset.ids(index) for index in indices]),
            self.dataset.letterbox(indices[0]),
            torch.from_numpy(np.stack(truths)),
            [len(sentences) for sentences in references],
        )


def scene_loader(
    dataset: ReferDataset,
    groups: Sequence[list[list[int]]],
    *,
    batch_size: int,
    processes: Processes,
    workers: int,
) -> DataLoader[Any]:
    """Lists of ``batch_size`` scenes, in the order of ``groups``."""
    return DataLoader(
        Scenes(dataset, groups),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=protect_worker,
        pin_memory=processes.device.type == "cuda",
        generator=torch.Generator(),  # its own, so that scoring draws nothing from the run's
    )
