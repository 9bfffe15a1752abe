"""The data loader alone, on one core."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from engine.data import open_training
from engine.sampler import train_loader
from tools.benchmark.machine import Clock
from tools.benchmark.project import alone, configure
from tools.benchmark.samples import NAME, write_samples
from tools.benchmark.task import Repeat, Task


@contextmanager
def loader_samples(task: Task) -> Iterator[Repeat]:
    """Seconds a sample that the training loader takes for an epoch, in this process alone."""
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        write_samples(Path(root), task.num_images)
        options = [f"data.root={root}", f"data.dataset={NAME}", "data.workers=0"]
        config = configure(task, *options, "train.batch_size=4")
        if task.kind == "loader-pixels":
            from utils.prepare.pixels import pack_pixels  # an older checkout may lack it

            pack_pixels(root, NAME, config.data.image_size)
        processes, clock = alone(task), Clock(task)
        train_set, epochs = open_training(config), count()

        def repeat() -> dict[str, float]:
            loader = train_loader(train_set, config, processes, epoch=next(epochs), start=0)
            began = clock()
            num_samples = sum(len(batch["index"]) for batch in loader)
            seconds = (clock() - began) / num_samples
            return {"seconds": seconds, "samples_per_second": 1 / seconds}

        yield repeat
