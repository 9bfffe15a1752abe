"""Measure one case in this process: ``python -m tools.benchmark.worker CASE``, CASE as JSON.

Models have random weights at their real sizes, pictures are generated. Prints JSON lines: whose
code runs, then the figures of each repetition.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import Tensor

from engine.evaluator import Scene, count_pixels, evaluate, predict_logits
from engine.loaders import open_split, open_training, train_loader
from engine.prediction import Predictor
from engine.results import provenance
from engine.trainer import Trainer
from engine.update import Update
from model import Segmenter, build_segmenter
from tools.benchmark import machine
from tools.benchmark.cases import Case
from utils.config import Config, load_config
from utils.data.tokenizer import tokenize
from utils.data.transforms import Letterbox, letterbox_image, restore_logits
from utils.distributed import start_processes
from utils.prepare.custom import jsonl_source
from utils.prepare.pack import pack_dataset
from utils.prepare.pixels import pack_pixels

Repeat = Callable[[], dict[str, float]]  # runs a case once and returns its figures
WARM_UPS = {"cpu": 1, "cuda": 3}
BATCH_SIZE = 4
BATCH_SIZE_END_TO_END = 32
NUM_IMAGES = 48
NUM_IMAGES_END_TO_END = 512  # enough steps that starting the loader's processes does not count
SIZE = (480, 640)  # of a picture
NAME = "bench"  # of the data set
STARTS = {
    "startup/train-help": ["train.py", "--help"],
    "startup/import-model": ["-c", "import model"],
}
STRIDE = 4  # pixels of the model's input per logit
THRESHOLD = 0.35
SENTENCES = [
    "the tall man in the blue shirt",
    "a man in blue",
    "left",
    "the woman behind the table",
    "second from the right",
    "the white bowl with rice in it",
    "dog",
    "person with an umbrella in front of the bus",
]


class Setup:
    """What every case needs: its configuration, processes, a clock and a folder for data."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.clock = machine.Clock(case.device, case.clock)
        self.device = torch.device(case.device)
        with start_processes() as processes:
            self.processes = replace(processes, device=self.device)

    def configure(self, *overrides: str) -> Config:
        """Read the configuration of the case, at its precision."""
        options = [*self.case.opts, f"train.precision={self.case.precision}", *overrides]
        return load_config(self.case.config, options)

    def configure_data(self, num_images: int, *overrides: str) -> Config:
        """Write a data set and read a configuration that uses it."""
        write_samples(self.folder, num_images)
        return self.configure(f"data.root={self.folder}", f"data.dataset={NAME}", *overrides)

    def build(self, config: Config) -> Segmenter:
        """Build the model with random weights, which take the same time as trained ones."""
        segmenter = build_segmenter(
            config.model,
            image_size=config.data.image_size,
            max_tokens=config.data.longest_sentence,
            load_weights=False,
        )
        segmenter.backbone["sha256"] = "0" * 64  # treated as a CLIP that has a file
        return segmenter.to(self.device)

    def build_update(self, config: Config, segmenter: Segmenter, samples: Any) -> Update:
        """Make the trainer's update, after everything else that a trainer does before it."""
        trainer = Trainer(
            segmenter, samples, {}, config, folder=Path("unused"), processes=self.processes
        )
        segmenter.train()
        return trainer.update


def prepare_training(setup: Setup) -> Repeat:
    """Time an update on a fixed batch, and its parts."""
    update, batch = make_training(setup)
    return lambda: time_parts(lambda: update(batch), setup.clock)


def prepare_memory(setup: Setup) -> Repeat:
    """Measure the memory of two updates; in the second Adam has its moments."""
    update, batch = make_training(setup)
    return lambda: machine.measure_peak(setup.device, lambda: (update(batch), update(batch)))


def make_training(setup: Setup) -> tuple[Update, dict[str, Tensor]]:
    """Make an update and a batch of noise with a mask and a sentence."""
    config = setup.configure(f"train.batch_size={BATCH_SIZE}")
    size, rng = config.data.image_size, np.random.default_rng(0)
    image = rng.integers(0, 256, (BATCH_SIZE, 3, size, size), dtype=np.uint8)
    batch = {
        "image": torch.from_numpy(image),
        "ids": tokenize(SENTENCES[:1] * BATCH_SIZE, config.data.longest_sentence)[0],
        "mask": torch.from_numpy(draw_ellipse(size, size)).to(torch.uint8).repeat(BATCH_SIZE, 1, 1),
        "index": torch.arange(BATCH_SIZE),
    }
    return setup.build_update(config, setup.build(config), range(BATCH_SIZE)), batch


def time_parts(step: Callable[[], Any], clock: machine.Clock) -> dict[str, float]:
    """Time a step: before, in and after ``backward``.

    ``forward`` includes the transfer of the batch and the loss, ``optimizer`` the gradient's norm.
    """
    marks: list[float] = []
    backward = torch.autograd.backward

    def timed_backward(*arguments: Any, **options: Any) -> None:
        marks.append(clock())
        backward(*arguments, **options)
        marks.append(clock())

    with mock.patch.object(torch.autograd, "backward", timed_backward):
        began = clock()
        step()
        ended = clock()
    return {
        "seconds": ended - began,
        "forward": marks[0] - began,
        "backward": marks[-1] - marks[0],
        "optimizer": ended - marks[-1],
    }


def prepare_sentences(setup: Setup, number: int) -> Repeat:
    """Time a picture and its first ``number`` sentences, as a user asks for them."""
    config, picture = setup.configure(), draw_photograph(0)
    predictor = Predictor(setup.build(config).eval(), config, name=NAME, device=setup.device)
    return lambda: {
        "seconds": setup.clock.time(lambda: predictor.logits(picture, SENTENCES[:number]))
    }


def prepare_pictures(setup: Setup) -> Repeat:
    """Time eight pictures with a sentence each, as scoring takes them."""
    config = setup.configure()
    predictor = Predictor(setup.build(config).eval(), config, name=NAME, device=setup.device)
    squares = [
        letterbox_image(draw_photograph(seed), config.data.image_size)
        for seed in range(len(SENTENCES))
    ]
    image = torch.stack([torch.from_numpy(square).permute(2, 0, 1) for square, _ in squares])
    image, ids = image.contiguous(), tokenize(SENTENCES, config.data.longest_sentence)[0]

    def work() -> list[Tensor]:
        logits = predict_logits(
            predictor.segmenter,
            image,
            list(ids[:, None]),
            precision=predictor.precision,
            device=setup.device,
        )
        return [restore_logits(one[0], box) for one, (_, box) in zip(logits, squares, strict=True)]

    return lambda: {"seconds": setup.clock.time(work)}


def prepare_scoring(setup: Setup) -> Repeat:
    """Time a sentence from logits to intersection and union, with about RefCOCO's numbers."""
    num_pictures, num_objects, num_sentences = 6, 2, 3
    size = setup.configure().data.image_size
    truths = torch.from_numpy(draw_ellipse(*SIZE)).repeat(num_objects, 1, 1)
    nothing, counts = torch.empty(0), [num_sentences] * num_objects
    scene = Scene([], nothing, nothing, Letterbox.fit(*SIZE, size), truths, counts)
    shape = (num_pictures, num_objects * num_sentences, size // STRIDE, size // STRIDE)
    logits = torch.randn(shape, device=setup.device)

    def repeat() -> dict[str, float]:
        seconds = setup.clock.time(
            lambda: [count_pixels(one, scene, THRESHOLD).tolist() for one in logits]
        )
        return {"seconds": seconds / (num_pictures * num_objects * num_sentences)}

    return repeat


def prepare_loader(setup: Setup, has_pixels: bool) -> Repeat:
    """Time the training loader in this process for an epoch, per sample."""
    config = setup.configure_data(NUM_IMAGES, "data.workers=0", "train.batch_size=4")
    if has_pixels:
        pack_pixels(setup.folder, NAME, config.data.image_size)
    train_set, epochs = open_training(config), count()

    def repeat() -> dict[str, float]:
        loader = train_loader(train_set, config, setup.processes, epoch=next(epochs), start=0)
        began = setup.clock()
        num_samples = sum(len(batch["index"]) for batch in loader)
        seconds = (setup.clock() - began) / num_samples
        return {"seconds": seconds, "samples_per_second": 1 / seconds}

    return repeat


def prepare_startup(setup: Setup) -> Repeat:
    """Time a new Python that shows the help of ``train.py`` or imports the model."""
    command = [sys.executable, *STARTS[setup.case.name]]
    run = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    return lambda: {"seconds": setup.clock.time(run)}


def prepare_end_to_end(setup: Setup) -> Repeat:
    """Time steps fed by the loader and by a fixed batch, then an evaluation."""
    size, clock = BATCH_SIZE_END_TO_END, setup.clock
    config = setup.configure_data(NUM_IMAGES_END_TO_END, f"train.batch_size={size}")
    train_set, val_set, epochs = open_training(config), open_split(config, NAME, "val"), count()
    segmenter = setup.build(config)
    update = setup.build_update(config, segmenter, train_set)

    def train(batches: Iterable[dict[str, Any]]) -> int:
        return sum(1 for batch in batches if update(batch))

    def repeat() -> dict[str, float]:
        epoch = train_loader(train_set, config, setup.processes, epoch=next(epochs), start=0)
        batches = iter(epoch)
        first = next(batches)  # the loader's processes have started when it arrives
        flops = machine.count_flops(lambda: update(first))
        rate = machine.measure_rates(clock)["bf16"]
        began = clock()
        num_steps = train(batches)
        fed = clock() - began
        resident = clock.time(lambda: train([first] * num_steps))
        began = clock()
        result = evaluate(
            segmenter,
            val_set,
            threshold=THRESHOLD,
            batch_size=config.eval.batch_size,
            precision=update.precision,
            processes=setup.processes,
            workers=config.data.workers,
        )
        return {
            "seconds": fed / num_steps,
            "share_of_bf16_rate": flops * num_steps / fed / 1e9 / rate,
            "share_waiting": max(0.0, 1 - resident / fed),
            "training_images_per_second": size * num_steps / fed,
            "evaluation_sentences_per_second": len(result.records) / (clock() - began),
        }

    return repeat


PREPARE: dict[str, Callable[[Setup], Repeat]] = {
    "train": prepare_training,
    "memory": prepare_memory,
    "predict-1": partial(prepare_sentences, number=1),
    "predict-8": prepare_pictures,
    "sentences-8": partial(prepare_sentences, number=8),
    "loader": partial(prepare_loader, has_pixels=False),
    "loader-pixels": partial(prepare_loader, has_pixels=True),
    "postprocess": prepare_scoring,
    "startup": prepare_startup,
    "end-to-end": prepare_end_to_end,
}


def draw_ellipse(height: int, width: int) -> np.ndarray:
    """Draw a mask in the middle of a picture, a fifth of its pixels: bool (H, W)."""
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (rows / 0.5) ** 2 + (columns / 0.5) ** 2 < 1


def draw_photograph(seed: int) -> np.ndarray:
    """Draw noise with the statistics of a photograph: uint8 (480, 640, 3).

    Amplitudes fall with the frequency (Field, 1987); with this contrast a pixel of the JPEG takes
    about half a byte, as in COCO. The third plane repeats the brightness of the first.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIZE[0])[:, None], np.fft.rfftfreq(SIZE[1])[None])
    frequency[0, 0] = np.inf  # no mean
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(rng.standard_normal(SIZE)) / frequency**1.2
        plane = np.fft.irfft2(spectrum, s=SIZE)
        planes.append(plane / plane.std())
    colours = planes[0] + 0.25 * np.stack([planes[1], 0 * planes[0], planes[2]])
    return np.clip(120 + 52 * colours, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def write_samples(root: Path, num_images: int) -> None:
    """Write and pack a data set: three objects a picture, three sentences each; an eighth is val.

    An outline is a star-shaped polygon of 27 corners, the mean of RefCOCO.
    """
    (root / "images").mkdir()
    lines = []
    for number in range(num_images):
        path, quality = root / f"images/{number}.jpg", [cv2.IMWRITE_JPEG_QUALITY, 90]
        cv2.imwrite(str(path), draw_photograph(number), quality)
        for place in range(3):
            rng = np.random.default_rng((number, place))
            angles = np.sort(rng.uniform(0, 2 * np.pi, 27))
            radii = rng.uniform(0.7, 1.0, 27) * rng.uniform(0.1, 0.3) * SIZE[0]
            middle = rng.uniform(0.3, 0.7, 2) * SIZE[::-1]
            corners = middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            line = {
                "image": path.name,
                "polygon": np.round(corners, 2).ravel().tolist(),
                "sentences": ["the tall man on the left", "a man in blue", "left"],
                "split": "val" if number % 8 == 0 else "train",
            }
            lines.append(json.dumps(line) + "\n")
    annotations = root / "annotations.jsonl"
    annotations.write_text("".join(lines), encoding="utf-8")
    pack_dataset(root, jsonl_source(annotations, images=root / "images", name=NAME))


def measure(case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield whose code runs, with a profile if asked, then figures, rates and load of others."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    setup = Setup(case, folder)
    repeat, flops, profile = PREPARE[case.kind](setup), 0, ""
    if not case.is_of_memory:
        machine.measure_rates(setup.clock)
        for _ in range(WARM_UPS[setup.device.type]):
            repeat()
    if case.profile:
        flops = machine.count_flops(repeat)
        profile = machine.profile(repeat, setup.device)
    yield {"provenance": provenance(setup.device), "profile": profile}
    for _ in range(1 if case.is_of_memory else case.rounds):
        began, others = time.perf_counter(), machine.seconds_of_others()
        # buffers of the rates would count as memory of the step
        rates = {} if case.is_of_memory else machine.measure_rates(setup.clock)
        figures = repeat()
        if flops:
            figures["floor"] = flops / rates[case.precision] / 1e9
        now, share = machine.seconds_of_others(), None
        if others is not None and now is not None:
            capacity = (time.perf_counter() - began) * (os.cpu_count() or 1)
            share = min(1.0, max(0.0, (now - others) / capacity))
        yield {"figures": figures, "calibration": rates, "others": share}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep prints of the project out of them
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for row in measure(Case(**json.loads(sys.argv[1])), Path(folder)):
            print(json.dumps(row), file=answers, flush=True)
