"""Scoring: masks at the original size of every picture, for every sentence, each exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.metrics import RULE, Metrics, Record, metrics_from_records
from engine.precision import autocast
from engine.protocols import PROTOCOLS
from engine.scenes import Scene, by_image, scene_loader
from model import Segmenter
from utils.config import Config
from utils.data.dataset import ReferDataset, Sample
from utils.distributed import Processes
from utils.logging import progress_bar

MOST_SENTENCES = 8  # of a forward pass
CPU_PIXELS = MOST_SENTENCES * 160**2  # of a pass on a CPU, unless it is one sentence


@dataclass(frozen=True)
class Result:
    """The scores of a split and the row of every sentence, in the order of the data set."""

    metrics: Metrics
    records: list[Record]


def evaluate(
    segmenter: Segmenter, dataset: ReferDataset, *, protocol: str = "native", **options: Any
) -> Result:
    """:func:`evaluate_by` one protocol."""
    return evaluate_by([protocol], segmenter, dataset, **options)[protocol]


def evaluate_by(
    protocols: Sequence[str],
    segmenter: Segmenter,
    dataset: ReferDataset,
    *,
    threshold: float,
    batch_size: int,
    precision: str,
    processes: Processes,
    workers: int = 0,
    first_sentences: bool = False,
) -> dict[str, Result]:
    """Score ``segmenter`` on ``dataset`` by each of ``protocols``, in one pass through the model.

    Every process returns the whole result. A pixel belongs to the mask if its probability, computed
    in ``precision`` (fp32, bf16 or fp16), is above ``threshold``. Process ``rank`` scores all
    sentences of every ``world_size``-th image, none twice, ``batch_size`` images fetched at a time;
    neither number changes any score. With ``first_sentences`` only the first sentence about each
    reference counts. The segmenter returns in the mode (training or not) it came in.
    """
    samples = [dataset.info(index) for index in range(len(dataset))]
    groups = by_image(samples)[processes.rank :: processes.world_size]
    if first_sentences:
        groups = [[sentences[:1] for sentences in references] for references in groups]
    loader = scene_loader(
        dataset, groups, batch_size=batch_size, processes=processes, workers=workers
    )
    was_training = segmenter.training
    segmenter.eval()
    counts: list[list[int]] = []
    total = sum(len(sentences) for references in groups for sentences in references)
    with progress_bar(shown=processes.is_main, total=total, desc="scoring", leave=False) as bar:
        for scenes in loader:
            counts += _count(segmenter, scenes, protocols, threshold, precision, processes.device)
            bar.update(sum(len(scene.indices) for scene in scenes))
    segmenter.train(was_training)
    everyone = sorted(row for rows in processes.gather(counts) for row in rows)
    results = {}
    for place, protocol in enumerate(protocols):
        records = [
            _record(samples[index], index, *pixels[2 * place : 2 * place + 2])
            for index, *pixels in everyone
        ]
        results[protocol] = Result(metrics_from_records(records), records)
    return results


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
    ids: Sequence[Tensor],
    *,
    precision: str,
    device: torch.device,
) -> list[Tensor]:
    """Logits ``(N, h, w)`` of the N sentences of each image, float32, on ``device``.

    ``image (B, 3, S, S)`` letterboxed uint8, ``ids`` of each image ``(N, L)``; the logits cover the
    square. The one path from pixels to a mask: scoring, pictures and ``predict.py`` all take it.
    An image passes alone, so many sentences together as :func:`sentences_per_pass` says, whichever
    images they are about, and so a sentence has the same logits to the last bit whatever it is
    batched with.
    """
    size = sentences_per_pass(image.shape[-1], device)
    image = image.to(device, non_blocking=True)
    sentences = torch.cat(list(ids)).to(device, non_blocking=True)
    owners = [place for place, one in enumerate(ids) for _ in one]  # of each sentence its image
    logits: list[Tensor] = []
    with autocast(precision, device):
        seen = [segmenter.encode_image(one[None]) for one in image]
        for start in range(0, len(owners), size):
            part, places = sentences[start : start + size], owners[start : start + size]
            # The last one fills what is missing: a pass of another size rounds otherwise.
            missing = size - len(places)
            part = torch.cat([part, part[-1:].expand(missing, -1)])
            places += places[-1:] * missing
            answer = segmenter([seen[place] for place in places], part)  # (size, 1, h, w)
            logits.append(answer[: size - missing, 0].float())
    return list(torch.cat(logits).split([len(one) for one in ids]))


def sentences_per_pass(image_size: int, device: torch.device) -> int:
    """How many sentences pass together, be they asked for or there to fill the pass.

    Matrix kernels sum in an order that depends on the size of the batch, and bf16 shows it in the
    second digit of a logit. With one size on a device, a mask depends on no batch and no set. Fewer
    than eight leave a GPU idle, and a CPU where images are small. About large ones a CPU takes them
    one by one, as fast as together, so that nobody waits for seven that nobody asked for.
    """
    if device.type != "cpu":
        return MOST_SENTENCES
    return max(1, min(MOST_SENTENCES, CPU_PIXELS // image_size**2))


def find_masks(
    segmenter: Segmenter,
    dataset: ReferDataset,
    indices: Sequence[int],
    *,
    threshold: float,
    precision: str,
    device: torch.device,
    protocol: str = "native",
) -> list[np.ndarray]:
    """The masks, bool (H, W), that ``evaluate`` has counted for these items."""
    if not indices:
        return []
    logits = predict_logits(
        segmenter,
        torch.stack([dataset.image(index) for index in indices]),
        [dataset.ids(index)[None] for index in indices],
        precision=precision,
        device=device,
    )
    to_masks = PROTOCOLS[protocol].masks
    return [
        to_masks(one, dataset.letterbox(index), threshold)[0].bool().cpu().numpy()
        for one, index in zip(logits, indices, strict=True)
    ]


@torch.no_grad()
def count_pixels(
    logits: Tensor, scene: Scene, threshold: float, protocol: str = "native"
) -> Tensor:
    """Pixels in both masks and in either, for each sentence of ``scene``: int64 (N, 2).

    ``logits`` (N, h, w) stay where they are. Masks are numbers here, 0 and 1: a CPU converts bytes
    and sums floats several times as fast as it does bools, and a row of floats counts exactly.
    """
    to_masks = PROTOCOLS[protocol].masks
    truths = scene.truths.to(logits.device, non_blocking=True).view(torch.uint8).float()
    sums = []
    # one reference after the other: more would leave a CPU's cache
    for part, truth in zip(logits.split(scene.counts), truths, strict=True):
        mask = to_masks(part, scene.letterbox, threshold)  # (n, H, W)
        area = mask.sum(dim=2) + truth.sum(dim=1)  # (n, H)
        both = mask.mul_(truth).sum(dim=2)
        sums.append(torch.stack([both, area - both], dim=1))  # (n, 2, H)
    return torch.cat(sums).sum(dim=2, dtype=torch.int64)


def describe_protocol(
    config: Config, max_words: Any, *, precision: str, name: str, length: int
) -> dict[str, Any]:
    """All that fixes the numbers of ``evaluate``, for result files.

    ``max_words``: tokens at which sentences are cut; ``length``: to which they are padded.
    """
    protocol = PROTOCOLS[name]
    return {
        "name": protocol.name,
        "number": protocol.number,
        "image_size": config.data.image_size,
        "resize": protocol.resize,
        "threshold": config.eval.threshold,
        "samples_per_forward_pass": (
            f"{MOST_SENTENCES}; on a CPU 1 to {MOST_SENTENCES}, by the size of the image"
        ),
        "comparison": protocol.comparison,
        "sentences": "every sentence of every reference, once",
        "max_words": max_words,
        "padded_to": length,
        "precision": precision,
        "metrics": RULE,
    }


def _count(
    segmenter: Segmenter,
    scenes: Sequence[Scene],
    protocols: Sequence[str],
    threshold: float,
    precision: str,
    device: torch.device,
) -> list[list[int]]:
    """``[index, intersection, union, ...]`` of each sentence, two numbers for each protocol.

    They are fetched from the device at once.
    """
    logits = predict_logits(
        segmenter,
        torch.stack([scene.image for scene in scenes]),
        [scene.ids for scene in scenes],
        precision=precision,
        device=device,
    )
    counts = [
        torch.cat([count_pixels(one, scene, threshold, name) for name in protocols], dim=1)
        for one, scene in zip(logits, scenes, strict=True)
    ]
    indices = [index for scene in scenes for index in scene.indices]
    numbers = torch.cat(counts).tolist()
    return [[index, *pixels] for index, pixels in zip(indices, numbers, strict=True)]


def _record(sample: Sample, index: int, intersection: int, union: int) -> Record:
    return Record(index, sample.ref_id, sample.sentence_id, sample.sentence, intersection, union)
