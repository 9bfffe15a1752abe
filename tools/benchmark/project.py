"""The project's own functions as the cases call them.

The cases also run with the code of older checkouts. Where a function has changed its form, both
forms stand here and nowhere else.
"""

from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from engine import evaluator
from engine.prediction import Predictor
from engine.trainer import Trainer
from engine.update import Update
from model import Segmenter, build_segmenter
from tools.benchmark.task import Task
from utils.config import Config, load_config
from utils.data.dataset import MixedDataset
from utils.data.tokenizer import tokenize
from utils.data.transforms import Letterbox, restore_logits
from utils.distributed import Processes, start_processes

THRESHOLD = 0.35
# Commit d0bda65 and those before it restored and counted sentence by sentence.
SCORES_BY_IMAGE = hasattr(evaluator, "count_pixels")


def configure(task: Task, *overrides: str) -> Config:
    """The configuration of a case, at its precision."""
    path = Path(task.root) / task.config
    return load_config(path, [*task.opts, f"train.precision={task.precision}", *overrides])


def alone(task: Task) -> Processes:
    """This process as the only one, begun as ``train.py`` and ``test.py`` begin theirs."""
    with start_processes() as processes:
        return replace(processes, device=torch.device(task.device))


def build(config: Config, device: str | torch.device) -> Segmenter:
    """The model at its real size with random weights: they change no time."""
    segmenter = build_segmenter(
        config.model,
        image_size=config.data.image_size,
        max_words=config.data.longest_sentence,
        load_weights=False,
    )
    # A model whose CLIP has no file might be treated as one that must keep it.
    segmenter.backbone["sha256"] = "0" * 64
    return segmenter.to(device)


def build_update(
    config: Config, segmenter: Segmenter, processes: Processes, samples: Sized
) -> Update:
    """What the trainer moves the weights with, after all that it does to them before."""
    trainer = Trainer(
        segmenter,
        cast(MixedDataset, samples),  # which it only counts
        {},
        config,
        folder=Path("unused"),
        processes=processes,
    )
    segmenter.train()
    return trainer.update


def build_predictor(config: Config, device: str | torch.device) -> Predictor:
    """What a user calls with a picture and sentences."""
    segmenter = build(config, device).eval()
    return Predictor(segmenter, config, name="bench", device=torch.device(device))


def token_ids(texts: Sequence[str], config: Config) -> Tensor:
    """Tokens of sentences: (N, L)."""
    return tokenize(list(texts), config.data.longest_sentence)[0]


def predict_batch(
    predictor: Predictor, image: Tensor, ids: Tensor, letterboxes: Sequence[Letterbox]
) -> Sequence[Tensor]:
    """Logits (H, W) of pictures (N, 3, S, S) and their sentences (N, L), computed as in scoring."""
    predict: Any = evaluator.predict_logits
    options = {"precision": predictor.precision, "device": predictor.device}
    if not SCORES_BY_IMAGE:
        return predict(predictor.segmenter, image, ids, letterboxes, **options)
    logits = predict(predictor.segmenter, image, [one[None] for one in ids], **options)
    pairs = zip(logits, letterboxes, strict=True)
    return [restore_logits(one[0], letterbox) for one, letterbox in pairs]


def score(logits: Tensor, letterbox: Letterbox, truths: Tensor) -> list[list[int]]:
    """Pixels in both masks and in either, for each sentence about a picture.

    ``logits`` (R, N, h, w) are of N sentences about each of R objects, ``truths`` (R, H, W) bool.
    """
    num_objects, num_sentences = logits.shape[:2]
    if SCORES_BY_IMAGE:
        from engine.scenes import Scene

        counts, nothing = [num_sentences] * num_objects, torch.empty(0)
        scene = Scene([], nothing, nothing, letterbox, truths, counts)
        return evaluator.count_pixels(logits.flatten(0, 1), scene, THRESHOLD).tolist()
    sums = []
    for same, truth in zip(logits, truths, strict=True):
        for one in same:
            mask = restore_logits(one, letterbox).sigmoid() > THRESHOLD
            truth = truth.to(mask.device, non_blocking=True)
            sums.append(torch.stack([(mask & truth).sum(), (mask | truth).sum()]))
    return torch.stack(sums).tolist()


def ellipse(height: int, width: int) -> np.ndarray:
    """A mask in the middle of a picture, of a fifth of its pixels: bool (H, W)."""
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (rows / 0.5) ** 2 + (columns / 0.5) ** 2 < 1
