"""Scoring: masks at the original size of every picture, for every sentence, each exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from engine.metrics import RULE, Metrics, Record, metrics_from_records
from engine.precision import autocast
from engine.signals import protect_worker
from model import Segmenter
from utils.config import Config
from utils.data.dataset import ReferDataset
from utils.data.transforms import Letterbox, restore_logits
from utils.distributed import Processes
from utils.logging import progress_bar

# Matrix kernels sum in an order that depends on the size of the batch, and bf16 shows it in the
# second digit of a logit. With one size for all, scores depend on no batch and no set.
FORWARD_SIZE = 8


@dataclass(frozen=True)
class Result:
    """The scores of a split and the row of every sentence, in the order of the data set."""

    metrics: Metrics
    records: list[Record]


def evaluate(
    segmenter: Segmenter,
    dataset: ReferDataset,
    *,
    threshold: float,
    batch_size: int,
    precision: str,
    processes: Processes,
    workers: int = 0,
) -> Result:
    """Score ``segmenter`` on ``dataset``; every process returns the whole result.

    A pixel belongs to the mask if its probability, computed in ``precision`` (fp32, bf16 or fp16),
    is above ``threshold``. Process ``rank`` scores
    every ``world_size``-th sentence, none twice, ``batch_size`` fetched at a time; neither number
    changes any score. The segmenter returns in the mode (training or not) it came in.
    """
    indices = range(processes.rank, len(dataset), processes.world_size)
    loader = DataLoader(
        _Cases(dataset, indices),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=protect_worker,
        pin_memory=processes.device.type == "cuda",
        generator=torch.Generator(),  # its own, so that scoring draws nothing from the run's
    )
    was_training = segmenter.training
    segmenter.eval()
    counts: list[tuple[int, int, int]] = []
    bar = progress_bar(shown=processes.is_main, total=len(indices), desc="scoring", leave=False)
    with bar:
        for batch in loader:
            logits = predict_logits(
                segmenter,
                batch["image"],
                batch["ids"],
                batch["letterbox"],
                precision=precision,
                device=processes.device,
            )
            counts += _count(batch, [found(one, threshold) for one in logits])
            bar.update(len(logits))
    segmenter.train(was_training)
    everyone = sorted(row for rows in processes.gather(counts) for row in rows)
    records = [_record(dataset, *row) for row in everyone]
    return Result(metrics_from_records(records), records)


def evaluate_together(
    segmenter: Segmenter, datasets: Mapping[str, ReferDataset], split: str, **options: Any
) -> dict[str, dict[str, float]]:
    """Scores of all sentences together by ``split``, and of each data set, if several, by label.

    ``options`` are those of ``evaluate``.
    """
    results = {label: evaluate(segmenter, one, **options) for label, one in datasets.items()}
    together = [record for result in results.values() for record in result.records]
    scores = {split: metrics_from_records(together).to_dict()}
    if len(results) > 1:
        scores |= {label: result.metrics.to_dict() for label, result in results.items()}
    return scores


@torch.no_grad()
def predict_logits(
    segmenter: Segmenter,
    image: Tensor,
    ids: Tensor,
    letterboxes: Sequence[Letterbox],
    *,
    precision: str,
    device: torch.device,
) -> list[Tensor]:
    """Logits ``(H, W)`` at each picture's own size, float32, on ``device``.

    ``image (B, 3, S, S)`` letterboxed uint8, ``ids (B, L)``. The one path from pixels to a mask:
    scoring, pictures and ``predict.py`` all take it, and it gives a sample the same logits to the
    last bit whatever it is batched with.
    """
    image, ids = image.to(device, non_blocking=True), ids.to(device, non_blocking=True)
    restored: list[Tensor] = []
    for start in range(0, len(letterboxes), FORWARD_SIZE):
        part = letterboxes[start : start + FORWARD_SIZE]
        # The last sample fills what is missing: a pass of another size rounds otherwise.
        rows = torch.arange(start, start + FORWARD_SIZE, device=device).clamp(max=len(ids) - 1)
        with autocast(precision, device):
            logits, _ = segmenter(image[rows], ids[rows])  # (FORWARD_SIZE, 1, h, w)
        pairs = zip(logits[: len(part)].float(), part, strict=True)
        restored += [restore_logits(one, letterbox) for one, letterbox in pairs]
    return restored


def found(logits: Tensor, threshold: float) -> Tensor:
    """The mask: where ``sigmoid(logits) > threshold``."""
    return logits.sigmoid() > threshold


def protocol(config: Config, max_words: Any, *, precision: str) -> dict[str, Any]:
    """All that fixes the numbers of ``evaluate``, for result files."""
    return {
        "image_size": config.data.image_size,
        "resize": "letterbox to a square; logits to the original pixels by one bilinear resampling",
        "threshold": config.eval.threshold,
        "samples_per_forward_pass": FORWARD_SIZE,
        "comparison": "sigmoid(logit) > threshold, at the original size",
        "sentences": "every sentence of every reference, once",
        "max_words": max_words,
        "precision": precision,
        "metrics": RULE,
    }


class _Cases(Dataset[dict[str, Any]]):
    """The samples ``indices`` of ``dataset`` with what scoring needs beside the model's input."""

    def __init__(self, dataset: ReferDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self.indices[position]
        item = self.dataset[index]
        return {
            "index": index,
            "image": item["image"],
            "ids": item["ids"],
            "letterbox": self.dataset.letterbox(index),
            "truth": torch.from_numpy(self.dataset.truth(index)),
        }


def _collate(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the model's input; pictures have different sizes, so their masks stay a list."""
    stacked = default_collate([{key: case[key] for key in ("image", "ids")} for case in cases])
    return stacked | {key: [case[key] for case in cases] for key in ("index", "letterbox", "truth")}


def _count(batch: dict[str, Any], masks: list[Tensor]) -> list[tuple[int, int, int]]:
    """``(index, intersection, union)`` of each sample, fetched from the device at once."""
    sums = []
    for mask, truth in zip(masks, batch["truth"], strict=True):
        truth = truth.to(mask.device, non_blocking=True)
        sums.append(torch.stack([(mask & truth).sum(), (mask | truth).sum()]))
    pairs = torch.stack(sums).tolist()
    return [(index, *pair) for index, pair in zip(batch["index"], pairs, strict=True)]


def _record(dataset: ReferDataset, index: int, intersection: int, union: int) -> Record:
    sample = dataset.info(index)
    return Record(index, sample.ref_id, sample.sentence_id, sample.sentence, intersection, union)
