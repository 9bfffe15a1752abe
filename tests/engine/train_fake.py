"""What the tests start in two processes: trains the fake model of ``fakes.py`` four times.

python train_fake.py FOLDER leaves there ``plain``, ``mixed`` (two data sets), ``whole`` (dropout
and BatchNorm) and ``parts``, which is ``whole`` stopped by a signal that the last process alone
gets, and gone on with.
"""

import hashlib
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from fakes import make_config, make_trainer

from engine.stop import Stopped
from engine.update import Update
from utils.distributed import Processes, start_processes


class Interrupted(Update):
    """In its third update the last process gets a SIGTERM."""

    calls = 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        if self.calls == 3 and self.processes.rank == self.processes.world_size - 1:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(batch)


def train(folder: Path, processes: Processes, *, interrupt: bool = False, **options: Any) -> None:
    trainer = make_trainer(folder, make_config(), processes=processes, **options)
    if interrupt:
        trainer.update.__class__ = Interrupted
    try:
        trainer.fit()
    except Stopped as stopped:
        (folder / f"stopped{processes.rank}").write_text(f"{stopped.exit_code} {trainer.step}")
    state = torch.cat([v.flatten().double() for v in trainer.segmenter.state_dict().values()])
    digest = hashlib.sha256(state.numpy().tobytes()).hexdigest()
    (folder / f"digest{processes.rank}").write_text(digest)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with start_processes() as processes:
        train(folder / "plain", processes)
        train(folder / "mixed", processes, mixed=True)
        train(folder / "whole", processes, dropout=0.5, norm=True)
        train(folder / "parts", processes, dropout=0.5, norm=True, interrupt=True)
        train(folder / "parts", processes, dropout=0.5, norm=True)
