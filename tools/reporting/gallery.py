"""Choose a few sentences of each split and draw their masks.

A test keeps how many pixels agree for each sentence, not the mask: the masks of all sentences of
RefCOCO would be far larger than the run. So the best checkpoint segments the chosen ones again.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from engine.checkpoint import load_for_inference, read_checkpoint
from engine.evaluator import find_masks
from tools.reporting.runs import Run, Sets
from tools.reporting.statistics import Pair
from utils.data.dataset import ReferDataset
from utils.images import PREDICTION, TRUTH, overlay

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


def choose_cases(
    run: Run, pairs: Mapping[str, Sequence[Pair]], sets: Sequence[Sets], num: int
) -> Chosen:
    """Choose by change in ``pairs`` of two tested runs, by IoU of one tested run, else at random.

    Only splits in all ``sets`` are chosen.
    """
    seed = run.config.train.seed
    labels = [label for label in sets[0] if all(label in own for own in sets)]
    if pairs:
        rises = {x: {a.index: b.iou - a.iou for a, b in both} for x, both in pairs.items()}
        kinds = ("improved", "got worse")
    elif run.records:
        rises = {x: {row.index: row.iou for row in rows} for x, rows in run.records.items()}
        kinds = ("best", "worst")
    else:
        return {x: _choose_randomly(range(len(sets[0][x])), 3 * num, seed) for x in labels}
    return {x: _choose(scores, num, kinds, seed) for x, scores in rises.items() if x in labels}


def _choose(
    scores: Mapping[int, float], num: int, kinds: tuple[str, str], seed: int
) -> dict[int, str]:
    """Choose the ``num`` highest scores, the ``num`` lowest, and ``num`` random others."""
    ranked = sorted(scores, key=lambda index: (-scores[index], index))
    num = min(num, (len(ranked) + 1) // 2)
    last = max(num, len(ranked) - num)
    chosen = dict.fromkeys(ranked[:num], kinds[0]) | dict.fromkeys(ranked[last:], kinds[1])
    return chosen | _choose_randomly(ranked[num:last], num, seed)


def _choose_randomly(indices: Sequence[int], num: int, seed: int) -> dict[int, str]:
    order = np.random.default_rng(seed).permutation(len(indices))[:num]
    return {indices[position]: RANDOM for position in sorted(order)}


def draw_cases(
    runs: Sequence[Run], sets: Sequence[Sets], chosen: Chosen, device: torch.device
) -> list[Case]:
    """Draw each chosen sentence: its picture, the truth, and what each run finds.

    ``sets`` are the opened splits of each run.
    """
    masks = [_segment(run, own, chosen, device) for run, own in zip(runs, sets, strict=True)]
    captions = ["prediction"] if len(runs) == 1 else [run.name for run in runs]
    cases = []
    for label, kinds in chosen.items():
        for index, kind in kinds.items():
            found = zip(captions, (one[label, index] for one in masks), strict=True)
            cases.append(_draw_case(label, kind, sets[0][label], index, list(found)))
    return cases


def _segment(
    run: Run, sets: Sets, chosen: Chosen, device: torch.device
) -> dict[tuple[str, int], np.ndarray]:
    """Return the masks (H, W) that the best checkpoint of ``run`` finds, by split and sentence."""
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


def _draw_case(
    label: str,
    kind: str,
    dataset: ReferDataset,
    index: int,
    masks: Sequence[tuple[str, np.ndarray]],
) -> Case:
    image, truth = dataset.original(index)
    ious = [float((m & truth).sum() / max(1, (m | truth).sum())) for _, m in masks]
    small = _resize(image, cv2.INTER_AREA if max(truth.shape) > SIDE else cv2.INTER_CUBIC)
    pictures = [("image", _data_uri(small))]
    for caption, mask, colour in [("truth", truth, TRUTH), *((*one, PREDICTION) for one in masks)]:
        # drawn at the size of the page, so that outlines keep their width
        shrunk = _resize(mask.astype(np.uint8), cv2.INTER_NEAREST) > 0
        pictures.append((caption, _data_uri(overlay(small, shrunk, colour))))
    return Case(label, kind, dataset.info(index).sentence, ious, pictures)


def _resize(picture: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=interpolation)


def _data_uri(image: np.ndarray) -> str:
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
