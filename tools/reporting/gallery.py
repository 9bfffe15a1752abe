"""The pictures of a report: a few sentences of each split, segmented again.

A test keeps of each sentence how many pixels agree, not the mask: masks of all sentences of RefCOCO
would be far larger than the run. So the best checkpoint finds the few that are shown once more.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from engine.checkpoint import load_for_inference, read_checkpoint
from engine.evaluator import find_masks
from utils.data.dataset import ReferDataset
from utils.images import PREDICTION, TRUTH, overlay

from .runs import Run

SIDE = 240  # longer side of a picture, in pixels: about 10 kB as JPEG
QUALITY = 80
RANDOM = "random"
Chosen = Mapping[str, Mapping[int, str]]  # by label of the split: index of a sentence -> its kind


class Case(NamedTuple):
    """One sentence with its pictures; ``ious`` are those of the masks shown, one for each run."""

    split: str
    kind: str
    sentence: str
    ious: list[float]
    pictures: list[tuple[str, str]]  # caption, data URI


def choose(
    scores: Mapping[int, float], num: int, kinds: tuple[str, str], seed: int
) -> dict[int, str]:
    """``num`` sentences with the highest score, ``num`` with the lowest, ``num`` random others."""
    ranked = sorted(scores, key=lambda index: (-scores[index], index))
    num = min(num, (len(ranked) + 1) // 2)
    last = max(num, len(ranked) - num)
    chosen = dict.fromkeys(ranked[:num], kinds[0]) | dict.fromkeys(ranked[last:], kinds[1])
    return chosen | choose_randomly(ranked[num:last], num, seed)


def choose_randomly(indices: Sequence[int], num: int, seed: int) -> dict[int, str]:
    """``num`` of ``indices``, or all if they are fewer."""
    order = np.random.default_rng(seed).permutation(len(indices))[:num]
    return {indices[position]: RANDOM for position in sorted(order)}


def draw_cases(
    runs: Sequence[Run],
    sets: Sequence[Mapping[str, ReferDataset]],
    chosen: Chosen,
    device: torch.device,
) -> list[Case]:
    """Each chosen sentence: its picture, the truth, and what each run finds.

    ``sets`` are the opened splits by their labels, as each run reads them.
    """
    found_by = [_segment(run, own, chosen, device) for run, own in zip(runs, sets, strict=True)]
    return [
        _case(label, kind, index, runs, sets[0][label], [masks[label, index] for masks in found_by])
        for label, kinds in chosen.items()
        for index, kind in kinds.items()
    ]


def _segment(
    run: Run, sets: Mapping[str, ReferDataset], chosen: Chosen, device: torch.device
) -> dict[tuple[str, int], np.ndarray]:
    """The masks (H, W) that the best checkpoint of ``run`` finds, by split and sentence."""
    model = load_for_inference(read_checkpoint(run.checkpoint), run.config, device)
    masks: dict[tuple[str, int], np.ndarray] = {}
    for label, kinds in chosen.items():
        found = find_masks(
            model.segmenter,
            sets[label],
            list(kinds),
            protocol=run.config.eval.protocol,
            threshold=run.config.eval.threshold,
            precision=model.precision,
            device=device,
        )
        masks |= {(label, index): mask for index, mask in zip(kinds, found, strict=True)}
    return masks


def _case(
    label: str,
    kind: str,
    index: int,
    runs: Sequence[Run],
    dataset: ReferDataset,
    masks: Sequence[np.ndarray],
) -> Case:
    image, truth = dataset.original(index)
    ious = [float((mask & truth).sum() / max(1, (mask | truth).sum())) for mask in masks]
    captions = ["prediction"] if len(runs) == 1 else [run.name for run in runs]
    small = _fit(image, cv2.INTER_AREA if max(truth.shape) > SIDE else cv2.INTER_CUBIC)
    pictures = [("image", _data_uri(small)), ("truth", _data_uri(_lay(small, truth, TRUTH)))]
    pictures += [
        (caption, _data_uri(_lay(small, mask, PREDICTION)))
        for caption, mask in zip(captions, masks, strict=True)
    ]
    return Case(label, kind, dataset.info(index).sentence, ious, pictures)


def _lay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """``mask`` over ``image``, which has the size of the page already, so that outlines stay."""
    return overlay(image, _fit(mask.astype(np.uint8), cv2.INTER_NEAREST) > 0, colour)


def _fit(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """``picture`` with its longer side at ``SIDE``."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=interpolation)


def _data_uri(image: np.ndarray) -> str:
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
