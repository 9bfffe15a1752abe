"""Inference and what follows it: from pixels to logits, from logits to intersection and union."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tools.benchmark.machine import Clock
from tools.benchmark.project import (
    alone,
    build_predictor,
    configure,
    ellipse,
    predict_batch,
    score,
    token_ids,
)
from tools.benchmark.samples import SIZE, photograph
from tools.benchmark.task import Repeat, Task
from utils.data.transforms import Letterbox, letterbox_image

TEXTS = (
    "the tall man in the blue shirt",
    "a man in blue",
    "left",
    "the woman behind the table",
    "second from the right",
    "the white bowl with rice in it",
    "dog",
    "person with an umbrella in front of the bus",
)
# What is scored in one repetition; a picture of RefCOCO has 2.5 objects with 2.8 sentences each.
NUM_PICTURES, NUM_OBJECTS, NUM_SENTENCES = 6, 2, 3
STRIDE = 4  # pixels of the model's input that a logit covers


@contextmanager
def one_sentence(task: Task) -> Iterator[Repeat]:
    """Seconds for a picture and a sentence, as a user asks for them."""
    yield _asking(task, TEXTS[:1])


@contextmanager
def one_picture(task: Task) -> Iterator[Repeat]:
    """Seconds for a picture and eight sentences, as a user asks for them."""
    yield _asking(task, TEXTS)


def _asking(task: Task, texts: Sequence[str]) -> Repeat:
    predictor, picture = build_predictor(configure(task), task.device), photograph(0)
    return _timing(task, lambda: predictor.logits(picture, list(texts)))


@contextmanager
def eight_pictures(task: Task) -> Iterator[Repeat]:
    """Seconds for eight pictures with a sentence each, as scoring takes them."""
    config = configure(task)
    predictor, size = build_predictor(config, alone(task).device), config.data.image_size
    squares = [letterbox_image(photograph(seed), size) for seed in range(len(TEXTS))]
    image = torch.stack([torch.from_numpy(square).permute(2, 0, 1) for square, _ in squares])
    letterboxes, ids = [letterbox for _, letterbox in squares], token_ids(TEXTS, config)
    image = image.contiguous()
    yield _timing(task, lambda: predict_batch(predictor, image, ids, letterboxes))


@contextmanager
def post_processing(task: Task) -> Iterator[Repeat]:
    """Seconds a sentence from its logits to intersection and union with a truth of 640 x 480."""
    size, device = configure(task).data.image_size, alone(task).device
    letterbox = Letterbox.fit(*SIZE, size)
    truths = torch.from_numpy(np.stack([ellipse(*SIZE)] * NUM_OBJECTS))
    shape = (NUM_PICTURES, NUM_OBJECTS, NUM_SENTENCES, size // STRIDE, size // STRIDE)
    logits = torch.randn(shape, device=device)
    whole = _timing(task, lambda: [score(one, letterbox, truths) for one in logits])
    num_samples = NUM_PICTURES * NUM_OBJECTS * NUM_SENTENCES
    yield lambda: {"seconds": whole()["seconds"] / num_samples}


def _timing(task: Task, step: Callable[[], Any]) -> Repeat:
    clock = Clock(task)

    def repeat() -> dict[str, float]:
        began = clock()
        step()
        return {"seconds": clock() - began}

    return repeat
