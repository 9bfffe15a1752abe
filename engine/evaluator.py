"""Score a model: masks at the size of every picture, for every sentence exactly once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.metrics import RULE, Metrics, Record, metrics_from_records, threshold_logit
from engine.precision import autocast
from engine.stop import protect_worker
from model import Segmenter
from utils.config import Config
from utils.data.dataset import ReferDataset, Sample
from utils.data.transforms import Letterbox, restore_logits, warp_to_image
from utils.distributed import Processes
from utils.logging import progress_bar

MOST_SENTENCES = 8  # of a forward pass
CPU_PIXELS = MOST_SENTENCES * 160**2  # of a forward pass on a CPU, unless it is one sentence


@dataclass(frozen=True)
class Protocol:
    """A way to score: from logits of the square to a mask of the picture.

    Attributes:
        number: the version; a change of what the protocol computes gives it another number.
        resize, comparison: what it does, for results files.
        masks: logits ``(N, h, w)`` of the square, its letterbox and the threshold -> masks of 0 and
            1 at the size of the picture, float32 ``(N, H, W)``, on the logits' device.
    """

    number: int
    resize: str
    comparison: str
    masks: Callable[[Tensor, Letterbox, float], Tensor]


def native_masks(logits: Tensor, letterbox: Letterbox, threshold: float) -> Tensor:
    """Compute ``sigmoid(logit) > threshold``, logits sampled once, bilinearly, at each pixel."""
    return restore_logits(logits, letterbox).gt_(threshold_logit(threshold, logits.device))


def released_masks(logits: Tensor, letterbox: Letterbox, threshold: float) -> Tensor:
    """Compute ``warp(resize(sigmoid(logit))) > threshold``: probabilities resampled twice."""
    masks = torch.from_numpy(released_probability(logits, letterbox) > threshold)
    return masks.to(logits.device, torch.float32)


def released_probability(logits: Tensor, letterbox: Letterbox) -> np.ndarray:
    """Resample probabilities as the released code does: float32 (N, H, W), on the CPU for OpenCV.

    First to the square, bicubic with ``align_corners=True``, then to the picture, bicubic by the
    inverse matrix of the letterbox, 0 beyond the square.
    """
    size = (letterbox.size, letterbox.size)
    probability = logits.float().sigmoid()[:, None]
    square = F.interpolate(probability, size, mode="bicubic", align_corners=True)[:, 0]
    return np.stack([warp_to_image(one, letterbox) for one in square.cpu().numpy()])


# ``released`` is that of the released code of CRIS and ETRIS, which made the papers' figures.
PROTOCOLS = {
    "native": Protocol(
        1,
        "letterbox to a square; logits to the original pixels by one bilinear resampling",
        "sigmoid(logit) > threshold, at the original size",
        native_masks,
    ),
    "released": Protocol(
        1,
        "letterbox to a square; probabilities to the square, bicubic with align_corners, then to "
        f"the original pixels by warpAffine, bicubic (OpenCV {cv2.__version__.split('.')[0]})",
        "probability > threshold, at the original size",
        released_masks,
    ),
}


def describe_protocol(
    config: Config, max_words: Any, *, precision: str, name: str, length: int
) -> dict[str, Any]:
    """Return all that fixes the numbers of ``evaluate``, for results files.

    ``max_words``: tokens at which sentences are cut; ``length``: to which they are padded.
    """
    protocol = PROTOCOLS[name]
    return {
        "name": name,
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


class Scene(NamedTuple):
    """An image with its N sentences, grouped by the R references that they are about."""

    indices: list[int]  # of the N sentences in the data set
    image: Tensor  # (3, S, S) uint8, letterboxed
    ids: Tensor  # (N, L)
    letterbox: Letterbox
    truths: Tensor  # (R, H, W) bool
    counts: list[int]  # of the sentences about each reference


class Scenes(Dataset):
    """The scenes of a data set: for each image the sentence indices of every reference in it."""

    def __init__(self, dataset: ReferDataset, groups: Sequence[list[list[int]]]) -> None:
        self.dataset, self.groups = dataset, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: int) -> Scene:
        dataset, references = self.dataset, self.groups[place]
        indices = [index for sentences in references for index in sentences]
        return Scene(
            indices,
            dataset.image(indices[0]),
            torch.stack([dataset.ids(index) for index in indices]),
            dataset.letterbox(indices[0]),
            torch.from_numpy(np.stack([dataset.truth(first) for first, *_ in references])),
            [len(sentences) for sentences in references],
        )


def group_by_image(samples: Sequence[Sample]) -> list[list[list[int]]]:
    """Group the indices of ``samples`` by image, and for each image by reference."""
    images: dict[str, dict[int, list[int]]] = {}
    for index, sample in enumerate(samples):
        images.setdefault(sample.file_name, {}).setdefault(sample.ref_id, []).append(index)
    return [list(references.values()) for references in images.values()]


@dataclass(frozen=True)
class Result:
    """The scores of a split and the row of every sentence, in the order of the data set."""

    metrics: Metrics
    records: list[Record]


def evaluate(
    segmenter: Segmenter, dataset: ReferDataset, *, protocol: str = "native", **options: Any
) -> Result:
    """Score by one protocol; see :func:`evaluate_by`."""
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

    Process ``rank`` scores all sentences of every ``world_size``-th image, and every process
    returns the result of all; their number changes no score. The mode of the segmenter (training
    or not) is as before.

    Args:
        threshold: a pixel belongs to the mask if its probability is above it.
        batch_size: images that are loaded at a time; it changes no score.
        precision: of the forward passes: fp32, bf16 or fp16.
        first_sentences: only the first sentence about each reference counts.
    """
    samples = [dataset.info(index) for index in range(len(dataset))]
    groups = group_by_image(samples)[processes.rank :: processes.world_size]
    if first_sentences:
        groups = [[sentences[:1] for sentences in references] for references in groups]
    loader = DataLoader(
        Scenes(dataset, groups),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=protect_worker,
        pin_memory=processes.device.type == "cuda",
        generator=torch.Generator(),  # its own, so that scoring draws nothing from the run's
    )
    was_training = segmenter.training
    segmenter.eval()
    counts: list[list[int]] = []
    total = sum(len(sentences) for references in groups for sentences in references)
    with progress_bar(shown=processes.is_main, total=total, desc="scoring", leave=False) as bar:
        for scenes in loader:
            counts += _count_scenes(
                segmenter, scenes, protocols, threshold, precision, processes.device
            )
            bar.update(sum(len(scene.indices) for scene in scenes))
    segmenter.train(was_training)
    rows = sorted(row for part in processes.gather(counts) for row in part)
    records: dict[str, list[Record]] = {protocol: [] for protocol in protocols}
    for index, *pixels in rows:
        one = samples[index]
        pairs = zip(protocols, pixels[::2], pixels[1::2], strict=True)
        for protocol, *pair in pairs:
            row = Record(index, one.ref_id, one.sentence_id, one.sentence, *pair)
            records[protocol].append(row)
    return {name: Result(metrics_from_records(some), some) for name, some in records.items()}


def evaluate_together(
    segmenter: Segmenter, datasets: Mapping[str, ReferDataset], split: str, **options: Any
) -> dict[str, dict[str, float]]:
    """Score all sentences together, by ``split``, and each of several data sets, by its label.

    ``options`` are those of :func:`evaluate`.
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
    """Compute logits ``(N, h, w)`` for the N sentences of each image, float32, on ``device``.

    Images pass through their tower one by one, sentences in groups of :func:`sentences_per_pass`,
    whichever images they are about. So the logits of a sentence have the same bits whatever it is
    batched with.

    Args:
        image: (B, 3, S, S) uint8, letterboxed; the logits cover the square.
        ids: (N, L) for each image.
    """
    size = sentences_per_pass(image.shape[-1], device)
    image = image.to(device, non_blocking=True)
    sentences = torch.cat(list(ids)).to(device, non_blocking=True)
    owners = [place for place, one in enumerate(ids) for _ in one]  # the image of each sentence
    logits: list[Tensor] = []
    with autocast(precision, device):
        states = [segmenter.begin(one[None]) for one in image]
        for start in range(0, len(owners), size):
            part, places = sentences[start : start + size], owners[start : start + size]
            # Repeat the last sentence to fill the group: another size would round differently.
            missing = size - len(places)
            part = torch.cat([part, part[-1:].expand(missing, -1)])
            places += places[-1:] * missing
            answer = segmenter.finish([states[place] for place in places], part)  # (size, 1, h, w)
            logits.append(answer[: size - missing, 0].float())
    return list(torch.cat(logits).split([len(one) for one in ids]))


def sentences_per_pass(image_size: int, device: torch.device) -> int:
    """Return how many sentences pass through the model together, repeated ones included.

    Matrix kernels sum in an order that depends on the size of the batch, so that only one size on a
    device makes a mask depend on no batch. Fewer than eight leave a GPU idle. A CPU takes large
    images one by one just as fast, and then computes no repeated sentences.
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
    """Compute again the masks, bool (H, W), that ``evaluate`` counted for these items."""
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
    """Count pixels in both masks and in either, for each sentence of ``scene``: int64 (N, 2).

    ``logits`` (N, h, w) stay on their device. Masks are numbers here, 0 and 1: a CPU converts bytes
    and sums floats several times as fast as bools, and a float counts a row exactly.
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


def _count_scenes(
    segmenter: Segmenter,
    scenes: Sequence[Scene],
    protocols: Sequence[str],
    threshold: float,
    precision: str,
    device: torch.device,
) -> list[list[int]]:
    """Return ``[index, intersection, union, ...]`` of each sentence, a pair for each protocol."""
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
    numbers = torch.cat(counts).tolist()  # one transfer from the device
    return [[index, *pixels] for index, pixels in zip(indices, numbers, strict=True)]
