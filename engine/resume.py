"""``last.pt``: all that a run needs to go on as if it had never stopped."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from utils.distributed import Processes

State = dict[str, Any]


def save_state(path: Path, state: State) -> None:
    """Write ``state``, tensors and plain types only, to ``path`` whole or not at all."""
    aside = path.with_name(f"{path.name}.part")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def load_state(path: Path) -> State:
    """Read what ``save_state`` wrote, on the CPU; no code in the file is run.

    Raises ``ValueError`` if it is something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}); start over with --fresh, "
            "which moves the folder aside"
        ) from error


def check_backbone(state: State, backbone: Mapping[str, str | None], path: Path) -> None:
    """Raise ``ValueError`` if the run of ``state``, read from ``path``, has another CLIP."""
    if state["backbone"] != backbone["sha256"]:
        raise ValueError(
            f"{path}: was trained on CLIP weights with SHA-256 {state['backbone']}, but "
            f"{backbone['weights']} has {backbone['sha256']}; name the right file or use --fresh"
        )


def seed_process(seed: int, rank: int) -> None:
    """Seed torch so that each process draws other numbers for its dropout."""
    torch.manual_seed(int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Where torch's generators of this process stand."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore(states: Sequence[dict[str, Tensor]], processes: Processes, *, seed: int) -> None:
    """Put torch's generators where ``random_state`` found them; seed them for other processes."""
    if len(states) != processes.world_size:
        seed_process(seed, processes.rank)
        logger.warning(
            f"saved by {len(states)} processes, continued by {processes.world_size}: "
            "same samples, other dropout"
        )
        return
    state, device = states[processes.rank], processes.device
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
