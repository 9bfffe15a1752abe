"""What a worker process is told to measure."""

from collections.abc import Callable
from dataclasses import dataclass

Repeat = Callable[[], dict[str, float]]  # runs a case once and returns its figures


@dataclass(frozen=True)
class Task:
    """A case and how to run it.

    Attributes:
        root: the checkout whose code runs.
        config: path of the YAML file.
        device: ``cpu`` or ``cuda``.
        clock: ``wall`` or ``processor``.
        opts: keys that go over the file's.
        profiles: whether to tell which operations take the time.
        batch_size: of a training step that takes what the loader gives.
        num_images: generated for the cases that read images.
    """

    name: str
    kind: str
    root: str
    config: str
    precision: str
    device: str
    threads: int
    clock: str = "wall"
    opts: tuple[str, ...] = ()
    profiles: bool = False
    batch_size: int = 32
    num_images: int = 48
