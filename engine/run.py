"""A training run and its folder: begun, gone on with, or found to be done."""

import shlex
import sys
from pathlib import Path

import torch
from loguru import logger

from engine.checkpoint import State, load_state
from engine.data import open_training, open_validation
from engine.differences import differences, list_changes
from engine.history import NotFinite
from engine.signals import Stopped
from engine.trainer import Trainer
from model import build_segmenter
from utils.config import Config
from utils.distributed import Processes
from utils.files import write_text
from utils.logging import start_logging

CONFIGS = Path(__file__).resolve().parent.parent / "config"
# May change while a run goes on: they move no loss and no choice.
FREE_KEYS = (
    "run.",
    "data.root",
    "data.workers",
    "eval.batch_size",
    "model.backbone.weights",  # the file may move; its hash is compared
    "train.max_minutes",
    "train.recompute_towers",
    "train.compile",
)


def train(
    config: Config,
    *,
    folder: Path,
    processes: Processes,
    config_file: Path | None = None,
    fresh: bool = False,
) -> int:
    """Train ``config`` in ``folder``, going on from its ``last.pt``; return the exit code.

    That is 0 at the end of a run (and if it was done already), 128 + the signal's number after one
    and 1 where a loss was not finite. The checkpoint names ``config_file``, from which ``config``
    was read, if it is in the project's ``config/``. ``fresh`` moves what is there aside and begins
    anew. Raises ``ValueError`` for a folder whose run has another config or other data.
    """
    state = processes.share(_open_folder(config, folder, fresh) if processes.is_main else None)
    start_logging(folder if processes.is_main else None, rank=processes.rank)
    if state is not None and is_finished(state, config):
        logger.info(f"{folder}: this run is done; --fresh begins it anew, its files moved aside")
        logger.info(_summary(folder, config, state["step"], state["elapsed"], state["best"]))
        return 0
    if processes.is_main:
        write_text(folder / "config.yaml", config.to_yaml())
    trainer = _make_trainer(config, folder, processes, state)
    trainer.config_file = _name_in_project(config_file)
    how = f"going on at step {trainer.step}" if state else "beginning"
    logger.info(
        f"{folder}: {how}, to step {trainer.length()}; {len(trainer.train_set)} references, "
        f"{processes.world_size} x {processes.device.type}, {trainer.update.precision}"
    )
    for line in trainer.train_set.describe():
        logger.info(f"  {line}")
    try:
        trainer.fit()
    except Stopped as stop:
        logger.info(f"stopped by {stop} at step {trainer.step}, saved; to go on: {_this_command()}")
        return stop.exit_code
    except NotFinite as error:
        logger.error(str(error))
        return 1
    logger.info(_summary(folder, config, trainer.step, trainer.elapsed, trainer.best))
    return 0


def _make_trainer(
    config: Config, folder: Path, processes: Processes, state: State | None
) -> Trainer:
    """Open the data, then read the weights: a mistake in the first is told at once."""
    train_set, val_sets = open_training(config), open_validation(config)
    if state is not None and state["data_fingerprint"] != train_set.fingerprint:
        raise ValueError(
            f"{folder}: was trained on other data than {config.data.root} holds now (its "
            "fingerprint differs); prepare the same data, or begin anew with --fresh"
        )
    torch.manual_seed(config.train.seed)
    segmenter = build_segmenter(
        config.model, image_size=config.data.image_size, max_words=train_set.length
    )
    return Trainer(
        segmenter, train_set, val_sets, config, folder=folder, processes=processes, state=state
    )


def _name_in_project(config_file: Path | None) -> str | None:
    """Return ``config/demo/etris.yaml`` for a file of the project's config/, None for another."""
    path = None if config_file is None else config_file.resolve()
    if path is None or not path.is_relative_to(CONFIGS):
        return None
    return path.relative_to(CONFIGS.parent).as_posix()


def is_finished(state: State, config: Config) -> bool:
    """Whether the run of ``state`` came to its end by steps or time and was scored there."""
    minutes = config.train.max_minutes
    in_time = minutes is None or state["elapsed"] < 60 * minutes
    return state["scored_step"] == state["step"] and not (
        state["step"] < state["total_steps"] and in_time
    )


def _open_folder(config: Config, folder: Path, fresh: bool) -> State | None:
    """The state to go on from, if any, with ``folder`` ready to be written to."""
    if fresh and folder.exists():
        _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pt"
    if not last.exists():
        if (folder / "best.safetensors").exists():
            raise ValueError(
                f"{folder}: holds best.safetensors but no last.pt to go on from; --fresh begins "
                "anew with its files moved aside, run.folder names another folder"
            )
        return None
    state = load_state(last)
    # through Config, so that keys younger than the run stand at their defaults
    begun = Config.from_dict(state["config"], source=str(last))
    unequal = differences(config.to_dict(), begun.to_dict(), apart_from=FREE_KEYS)
    if unequal:
        raise ValueError(
            f"{folder}: holds a run with another config: {list_changes(unequal)}; --fresh begins "
            "anew with its files moved aside, run.folder names another folder"
        )
    return state


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)


def _summary(
    folder: Path, config: Config, step: int, elapsed: float, best: dict[str, float] | None
) -> str:
    assert best is not None, "a run ends with a score"
    checkpoint = shlex.quote(str(folder / "best.safetensors"))
    return (
        f"done: {step} steps in {elapsed / 60:.1f} min; best on {config.eval.split}: "
        f"oIoU {best['oIoU']:.2f}, mIoU {best['mIoU']:.2f} at step {best['step']:.0f}\n"
        f"  best checkpoint  {folder / 'best.safetensors'}\n"
        f"  log, metrics     {folder / 'run.log'}, {folder / 'metrics.jsonl'}\n"
        f"  next             python test.py --checkpoint {checkpoint}"
    )


def _this_command() -> str:
    """The command that goes on with this run."""
    return shlex.join(["python", *(part for part in sys.argv if part != "--fresh")])
