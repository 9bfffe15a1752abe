"""Train a model: open or continue a run, update, log, score, save, stop.

The recipe is ``Trainer.fit``, ``_train_epoch`` and ``_after_step``; one step is ``update.Update``.
"""

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from loguru import logger
from torch import Tensor

from engine.checkpoint import (
    State,
    check_backbone,
    is_finished,
    open_run,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_state,
    seed_process,
)
from engine.evaluator import evaluate_together
from engine.loaders import check_batch_size, open_training, open_validation, train_loader
from engine.precision import resolve_precision, scoring_precision, store_frozen
from engine.results import peak_memory, provenance
from engine.stop import Stopped, StopSignal
from engine.update import GuardedAdam, Update, rate_factor
from model import Segmenter, build_segmenter
from utils.config import Config
from utils.data.dataset import MixedDataset, ReferDataset
from utils.distributed import Processes
from utils.files import write_text
from utils.logging import MetricsLog, progress_bar, start_logging

ROOT = Path(__file__).resolve().parents[1]
SAVE_SECONDS = 600  # save at least this often, in case the run ends without a signal


class NonFiniteError(ArithmeticError):
    """A loss or gradient was not finite; the message names the step and the samples."""


class Step(NamedTuple):
    """One update: its number, the samples of this process, and what ``Update`` returned."""

    number: int
    indices: list[int]
    row: Tensor  # [loss, norm of the gradient, 1 if one was not finite], on the device
    finite: Tensor  # (B,): whether the logits of each sample were finite, on the device


class Trainer:
    """Train ``segmenter`` on ``train_set`` and save the best on ``val_sets``, all in ``folder``.

    With ``state`` (of ``last.pt``) training continues where that run stopped, also inside an epoch.
    On CPU the losses then equal those of a run without a stop bit for bit, unless a cosine schedule
    follows the clock (``train.max_minutes``). ``config_file`` goes to the checkpoint's metadata.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        train_set: MixedDataset,
        val_sets: Mapping[str, ReferDataset],
        config: Config,
        *,
        folder: Path,
        processes: Processes,
        state: State | None = None,
        config_file: str | None = None,
    ) -> None:
        check_batch_size(config, train_set, processes)
        self.train_set, self.val_sets, self.config = train_set, val_sets, config
        self.folder, self.processes, self.config_file = folder, processes, config_file
        options, device = config.train, processes.device
        self.steps_per_epoch = len(train_set) // options.batch_size
        self.total_steps = options.max_steps or options.epochs * self.steps_per_epoch
        self.eval_interval = config.eval.every_steps or self.steps_per_epoch
        if device.type == "cuda" and processes.are_several:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
        self.precision = resolve_precision(options.precision, device)
        self.scoring_precision = scoring_precision(config, device)
        if self.scoring_precision == self.precision:
            store_frozen(segmenter, self.precision)
        if options.recompute_towers:
            segmenter.encoder.checkpoint_activations = True
        if state is not None:  # before the optimizer is built: a table of positions may change size
            check_backbone(state, segmenter, folder / "last.pt")
            segmenter.load_trainable_state(state["trainable"])
        self.segmenter = segmenter.to(device)
        groups = segmenter.parameter_groups(
            lr=options.lr,
            encoder_lr_scale=options.encoder_lr_scale,
            backbone_lr_scale=options.backbone_lr_scale,
        )
        self.optimizer = GuardedAdam(groups, weight_decay=options.weight_decay)
        self.update = Update(
            segmenter,
            self.optimizer,
            processes=processes,
            precision=self.precision,
            micro_batch=options.micro_batch,
            max_norm=options.max_norm,
            target=options.target,
            compiles=options.compile,
        )
        self.step, self.scored_step, self.elapsed = 0, 0, 0.0
        self.best: dict[str, float] | None = None
        self.peak_memory: dict[str, int] = {}
        self.rows: list[Tensor] = []  # of the updates since the last log row
        self.unchecked: list[Step] = []  # nobody has looked whether they were finite
        self.stop = StopSignal()
        if state is None:
            seed_process(options.seed, processes.rank)
        else:
            self._restore(state)

    def fit(self) -> None:
        """Train to the end, score and save.

        Raises:
            Stopped: after a signal, when the run is saved.
            NonFiniteError: a loss or gradient was not finite.
        """
        self._saved_at = time.monotonic()
        self._began = self._saved_at - self.elapsed
        self._restart_speed()
        self._sync_stop_and_clock()
        is_main = self.processes.is_main
        if is_main:
            self.log = MetricsLog(
                self.folder,
                config=self.config.to_dict(),
                wandb=self.config.run.wandb,
                step=self.step,
                scored_step=self.scored_step,
            )
        self._bar = progress_bar(shown=is_main, total=self.total_steps, initial=self.step)
        with self.stop, self._bar:
            self._after_step()  # a run may have stopped before it scored
            while not self._is_over():
                self._train_epoch()
        if is_main:
            self.log.close()

    def _train_epoch(self) -> None:
        """Train to the end of this epoch, or of the run; begin at any batch."""
        epoch, start = divmod(self.step, self.steps_per_epoch)
        self.segmenter.train()
        batches = train_loader(self.train_set, self.config, self.processes, epoch, start)
        for batch in batches:  # image (B, 3, S, S), ids (B, L), mask (B, S, S), index (B,)
            self.optimizer.scale_rates(self._rate_factor())
            row, finite = self.update(batch)  # forward, backward, Adam
            self.step += 1
            self.rows.append(row)  # [loss, norm of the gradient, 1 if one was not finite]
            self.unchecked.append(Step(self.step, batch["index"].tolist(), row, finite))
            self._bar.update()
            self._sync_stop_and_clock()
            self._after_step()
            if self._is_over():
                break

    def _after_step(self) -> None:
        """Do what is due between two updates, in this order: check, log, save, stop, score."""
        is_over = self._is_over()
        score_is_due = is_over or self.step % self.eval_interval == 0
        must_score = score_is_due and self.scored_step < self.step
        must_save = must_score or bool(self._signal) or self._save_is_due
        must_log = is_over or self.step % self.config.run.log_interval == 0
        # A check waits for the device, so a GPU runs ahead between checks.
        if must_log or must_save or self.processes.device.type == "cpu":
            self._check_finite()
        if must_log:
            self._write_row()
        if must_save:
            self._save()
        if self._signal:
            raise Stopped(self._signal)
        if must_score:
            self._score()
            self._save()
            self._restart_speed()

    def _restart_speed(self) -> None:
        self._timed_from = (self.step, time.monotonic())

    def _sync_stop_and_clock(self) -> None:
        """Give all processes the same signal and the same clock."""
        now = time.monotonic()
        clocks = [now - self._began, now - self._saved_at]
        number, self.elapsed, unsaved = self.processes.largest([float(self.stop.number), *clocks])
        self._signal, self._save_is_due = int(number), unsaved > SAVE_SECONDS

    def _is_over(self) -> bool:
        return self.step >= self.total_steps or self._time_share() >= 1

    def _time_share(self) -> float:
        minutes = self.config.train.max_minutes
        return self.elapsed / (60 * minutes) if minutes else 0.0

    def _rate_factor(self) -> float:
        return rate_factor(
            self.step,
            self.config.train,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            time_share=self._time_share(),
        )

    def describe_end(self) -> str:
        """Say where the run ends: ``1600`` or ``9350 or minute 6``."""
        minutes = self.config.train.max_minutes
        return f"{self.total_steps} or minute {minutes:g}" if minutes else str(self.total_steps)

    def _check_finite(self) -> None:
        """Raise ``NonFiniteError`` if an update since the last check was skipped for good."""
        steps, self.unchecked = self.unchecked, []
        flags = torch.stack([step.row[2] for step in steps]).tolist() if steps else []
        for step, flag in zip(steps, flags, strict=True):
            if flag:
                raise NonFiniteError(self._explain_non_finite(step))
        scaler = self.update.scaler
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise NonFiniteError(
                f"step {self.step}: gradients overflow fp16 at any scale; "
                "set train.precision to bf16 or fp32"
            )

    def _explain_non_finite(self, step: Step) -> str:
        """Name the samples whose logits were not finite, or all samples if there were none."""
        parts = self.processes.gather((step.indices, step.finite.tolist()))
        samples = [pair for part in parts for pair in zip(*part, strict=True)]
        indices = [index for index, finite in samples if not finite]
        names = []
        for index in indices or [index for index, _ in samples]:
            sample = self.train_set.info(index)
            name = f"ref {sample.ref_id} {sample.sentence!r} ({sample.file_name})"
            if len(self.train_set.parts) > 1:  # references are numbered in each data set
                name = f"{self.train_set.locate(index)[0].store.dataset} {name}"
            names.append(name)
        loss, norm, _ = step.row.tolist()
        return (
            f"step {step.number}: the loss ({loss:g}) or the norm of its gradient ({norm:g}) is "
            f"not finite; samples: {', '.join(names)}; the update was skipped and last.pt has an "
            "earlier, good state; try a lower train.lr, train.max_norm: 1.0 or "
            "train.precision: fp32"
        )

    def _write_row(self) -> None:
        """Log the mean loss and norm of the updates since the last row."""
        since, began = self._timed_from
        num_samples = (self.step - since) * self.config.train.batch_size
        speed = num_samples / max(time.monotonic() - began, 1e-9)
        self._restart_speed()
        if not self.rows:
            return
        loss, norm, _ = self._row_table().mean(dim=0).tolist()
        self.rows = []
        if not self.processes.is_main:
            return
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        epoch = (self.step - 1) // self.steps_per_epoch
        row = {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm}
        row["samples_per_second"] = round(speed, 2)
        self.log.write({"step": self.step, "epoch": epoch, **row})
        logger.info(
            f"step {self.step} of {self.describe_end()}  epoch {epoch}  loss {loss:.4f}  "
            f"norm {norm:.3f}  rate {rate:.2e}  {speed:.1f} samples/s"
        )

    def _row_table(self) -> Tensor:
        """Return the rows since the last log row on the host: float64 (N, 3)."""
        return torch.stack([row.double() for row in self.rows]).cpu()

    def _score(self) -> None:
        """Score the model, and write ``best.safetensors`` if it is the best so far."""
        options = self.config.eval
        self.stop.at_once = True  # the state is saved, and scoring can take long
        scores = evaluate_together(
            self.segmenter,
            self.val_sets,
            options.split,
            protocol=options.protocol,
            first_sentences=options.first_sentences,
            threshold=options.threshold,
            batch_size=options.batch_size,
            precision=self.scoring_precision,
            processes=self.processes,
            workers=self.config.data.workers,
        )
        self.stop.at_once = False
        self.scored_step = self.step
        score = scores[options.split]
        is_best = self.best is None or score[options.metric] >= self.best[options.metric]
        if is_best:
            self.best = {"step": self.step, "oIoU": score["oIoU"], "mIoU": score["mIoU"]}
        if not self.processes.is_main:
            return
        row = {f"{label}/{name}": x for label, one in scores.items() for name, x in one.items()}
        self.log.write({"step": self.step} | row)
        for label, one in scores.items():
            note = "  (best so far)" if is_best and label == options.split else ""
            numbers = f"oIoU {one['oIoU']:.2f}  mIoU {one['mIoU']:.2f}"
            logger.info(f"step {self.step}  {label}: {numbers}{note}")
        if is_best:
            metadata = {
                "step": self.step,
                "scores": scores,
                "selected_by": {"split": options.split, "metric": options.metric},
                "data_fingerprint": self.train_set.fingerprint,
                "data": self.train_set.composition(),
                "config_file": self.config_file,
                "provenance": provenance(self.processes.device),
            }
            path = self.folder / "best.safetensors"
            save_checkpoint(path, self.segmenter, self.config, extra=metadata)

    def _save(self) -> None:
        """Write ``last.pt``, one file from which every process can continue."""
        self.processes.share_statistics(self.segmenter)
        random_states = self.processes.gather(random_state(self.processes.device))
        self.peak_memory = peak_memory(self.processes, self.peak_memory)
        self._saved_at = time.monotonic()
        if self.processes.is_main:
            state = {
                "config": self.config.to_dict(),
                "backbone": self.segmenter.backbone["sha256"],
                "data_fingerprint": self.train_set.fingerprint,
                "step": self.step,
                "total_steps": self.total_steps,
                "scored_step": self.scored_step,
                "elapsed": self.elapsed,
                "peak_memory": self.peak_memory,
                "best": self.best,
                "history": self._row_table().tolist() if self.rows else [],
                "trainable": self.segmenter.trainable_state(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.update.scaler.state_dict(),
                "random_states": random_states,
            }
            save_state(self.folder / "last.pt", state)

    def _restore(self, state: State) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.update.scaler.load_state_dict(state["scaler"])
        self.step, self.scored_step = state["step"], state["scored_step"]
        self.elapsed, self.best = state["elapsed"], state["best"]
        self.peak_memory = state.get("peak_memory", {})  # older runs lack it
        history = torch.tensor(state["history"], dtype=torch.float64, device=self.processes.device)
        self.rows = list(history)
        seed = self.config.train.seed + self.step
        restore_random_state(state["random_states"], self.processes, seed=seed)


def train(
    config: Config,
    *,
    folder: Path,
    processes: Processes,
    config_file: Path | None = None,
    fresh: bool = False,
) -> int:
    """Train ``config`` in ``folder``, or continue from its ``last.pt``; return the exit code.

    The code is 0 at the end of a run (also if it had ended before), 128 + the number of a signal
    that stopped it, and 1 where a loss was not finite. The checkpoint names ``config_file``, from
    which ``config`` was read, if it is in the project's ``config/``. ``fresh`` moves the old files
    to another folder and starts a new run.

    Raises:
        ValueError: the run in ``folder`` has another config or other data.
    """
    is_main = processes.is_main
    state = processes.share(open_run(config, folder, fresh) if is_main else None)
    start_logging(folder if is_main else None, rank=processes.rank)
    if state is not None and is_finished(state, config):
        logger.info(f"{folder}: this run is done; --fresh renames it and starts a new run")
        logger.info(_summary(folder, config, state["step"], state["elapsed"], state["best"]))
        return 0
    if is_main:
        write_text(folder / "config.yaml", config.to_yaml())
    # The data comes before the weights, so that a mistake in it shows at once.
    train_set, val_sets = open_training(config), open_validation(config)
    if state is not None and state["data_fingerprint"] != train_set.fingerprint:
        raise ValueError(
            f"{folder}: was trained on other data than {config.data.root} has now (the "
            "fingerprint differs); prepare the same data, or start a new run with --fresh"
        )
    torch.manual_seed(config.train.seed)
    segmenter = build_segmenter(
        config.model, image_size=config.data.image_size, max_tokens=train_set.length
    )
    file = config_file.resolve() if config_file else ROOT
    is_ours = file.is_relative_to(ROOT / "config")
    trainer = Trainer(
        segmenter,
        train_set,
        val_sets,
        config,
        folder=folder,
        processes=processes,
        state=state,
        config_file=file.relative_to(ROOT).as_posix() if is_ours else None,
    )
    how = f"going on at step {trainer.step}" if state else "beginning"
    logger.info(
        f"{folder}: {how}, to step {trainer.describe_end()}; {len(train_set)} references, "
        f"{processes.world_size} x {processes.device.type}, {trainer.precision}"
    )
    for line in train_set.describe():
        logger.info(f"  {line}")
    try:
        trainer.fit()
    except Stopped as stop:
        command = shlex.join(["python", *(word for word in sys.argv if word != "--fresh")])
        logger.info(f"stopped by {stop} at step {trainer.step}, saved; to go on: {command}")
        return stop.exit_code
    except NonFiniteError as error:
        logger.error(str(error))
        return 1
    logger.info(_summary(folder, config, trainer.step, trainer.elapsed, trainer.best))
    return 0


def _summary(
    folder: Path, config: Config, step: int, elapsed: float, best: dict[str, float] | None
) -> str:
    assert best is not None, "a run ends with a score"
    checkpoint = folder / "best.safetensors"
    return (
        f"done: {step} steps in {elapsed / 60:.1f} min; best on {config.eval.split}: "
        f"oIoU {best['oIoU']:.2f}, mIoU {best['mIoU']:.2f} at step {best['step']:.0f}\n"
        f"  best checkpoint  {checkpoint}\n"
        f"  log, metrics     {folder / 'run.log'}, {folder / 'metrics.jsonl'}\n"
        f"  next             python test.py --checkpoint {shlex.quote(str(checkpoint))}"
    )
