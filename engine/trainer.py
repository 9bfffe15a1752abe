"""The training loop: updates, log rows, scoring, saving, stopping, going on."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from loguru import logger

from engine.checkpoint import (
    State,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_state,
    seed_process,
)
from engine.evaluator import evaluate_together
from engine.history import Entry, History, NotFinite
from engine.precision import resolve_precision, scoring_precision, store_frozen
from engine.provenance import peak_memory, provenance
from engine.sampler import check_batch_size, train_loader
from engine.schedule import rate_factor
from engine.signals import Stopped, StopSignal
from engine.update import GuardedAdam, Update
from model import Segmenter
from utils.config import Config
from utils.data.dataset import MixedDataset, ReferDataset
from utils.distributed import Processes
from utils.logging import MetricsLog, progress_bar

SAVE_SECONDS = 600  # at least this often, for ends that no signal announces


class Trainer:
    """Trains ``segmenter`` on ``train_set`` and keeps the best on ``val_sets``, all in ``folder``.

    With ``state`` (of ``last.pt``) it goes on where that run stopped, in the middle of an epoch
    too. On CPU the continued losses equal those of a run that never stopped bit for bit, unless a
    cosine schedule follows the clock (``train.max_minutes``).
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
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.train_set, self.val_sets = train_set, val_sets
        check_batch_size(config, train_set, processes)
        self.steps_per_epoch = len(train_set) // config.train.batch_size
        self.total_steps = config.train.max_steps or config.train.epochs * self.steps_per_epoch
        self.eval_interval = config.eval.every_steps or self.steps_per_epoch
        if processes.device.type == "cuda" and processes.are_several:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
        self.precision = resolve_precision(config.train.precision, processes.device)
        self.scoring_precision = scoring_precision(config, processes.device)
        if self.scoring_precision == self.precision:
            store_frozen(segmenter, self.precision)
        if config.train.recompute_towers:
            segmenter.encoder.recomputes = True
        if state is not None:  # before the optimizer is made: a table of positions may change size
            _check_backbone(state, segmenter, folder / "last.pt")
            segmenter.load_trainable_state(state["trainable"])
        self.segmenter = segmenter.to(processes.device)
        self._make_update()
        self.step, self.scored_step, self.elapsed = 0, 0, 0.0
        self.best: dict[str, float] | None = None
        self.peak_memory: dict[str, int] = {}
        self.config_file: str | None = None  # in config/, for the metadata of the checkpoint
        self.history = History()
        self.stop = StopSignal()
        if state is None:
            seed_process(config.train.seed, processes.rank)
        else:
            self._restore(state)

    def _make_update(self) -> None:
        options = self.config.train
        self.optimizer = GuardedAdam(
            self.segmenter.parameter_groups(
                lr=options.lr,
                encoder_lr_scale=options.encoder_lr_scale,
                backbone_lr_scale=options.backbone_lr_scale,
            ),
            weight_decay=options.weight_decay,
        )
        self.update = Update(
            self.segmenter,
            self.optimizer,
            processes=self.processes,
            precision=self.precision,
            micro_batch=options.micro_batch,
            max_norm=options.max_norm,
            target=options.target,
            compiles=options.compile,
        )

    def fit(self) -> None:
        """Train to the end, score and save. Raises ``Stopped`` after a signal, ``NotFinite``."""
        self._began = time.monotonic() - self.elapsed
        self._saved_at = time.monotonic()
        self._restart_speed()
        self._agree()
        if self.processes.is_main:
            self.log = MetricsLog(
                self.folder,
                config=self.config.to_dict(),
                wandb=self.config.run.wandb,
                step=self.step,
                scored_step=self.scored_step,
            )
        bar = progress_bar(shown=self.processes.is_main, total=self.total_steps, initial=self.step)
        with self.stop, bar as self._bar:
            self._settle()
            while not self._is_over():
                self._train_epoch()
        if self.processes.is_main:
            self.log.close()

    def _train_epoch(self) -> None:
        """Train from where this epoch stands to its end, or to the end of the run."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        self.segmenter.train()
        batches = train_loader(
            self.train_set, self.config, self.processes, epoch=epoch, start=position
        )
        for batch in batches:
            self.optimizer.scale_rates(self._rate_factor())
            row, finite = self.update(batch)
            self.step += 1
            self.history.add(Entry(self.step, batch["index"].tolist(), row, finite))
            self._bar.update()
            self._agree()
            self._settle()
            if self._is_over():
                break

    def _settle(self) -> None:
        """What stands between two updates, each if it is time: check, log, save, stop, score."""
        is_due = self._is_over() or self.step % self.eval_interval == 0
        must_score = is_due and self.scored_step < self.step
        must_save = must_score or bool(self._signal) or self._save_is_due
        must_log = self._is_over() or self.step % self.config.run.log_interval == 0
        # Checking waits for the device, so a GPU runs ahead in between.
        if must_log or must_save or self.processes.device.type == "cpu":
            self._check()
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

    def _agree(self) -> None:
        """Let all processes see one signal and one clock."""
        now = time.monotonic()
        clocks = [now - self._began, now - self._saved_at]
        number, self.elapsed, unsaved = self.processes.largest([float(self.stop.number), *clocks])
        self._signal, self._save_is_due = int(number), unsaved > SAVE_SECONDS

    def _is_over(self) -> bool:
        return self.step >= self.total_steps or self._time_share() >= 1

    def length(self) -> str:
        """Where the run ends, for people: ``1600`` or ``9350 or minute 6``."""
        minutes = self.config.train.max_minutes
        return f"{self.total_steps} or minute {minutes:g}" if minutes else str(self.total_steps)

    def _time_share(self) -> float:
        minutes = self.config.train.max_minutes
        return self.elapsed / (60 * minutes) if minutes else 0.0

    def _rate_factor(self) -> float:
        options = self.config.train
        return rate_factor(
            self.step,
            schedule=options.schedule,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            milestones=options.milestones,
            gamma=options.gamma,
            warmup_steps=options.warmup_steps,
            time_share=self._time_share(),
        )

    def _check(self) -> None:
        """Raise ``NotFinite`` if an update since the last check was left out for good."""
        entry = self.history.first_spoiled()
        if entry is not None:
            raise NotFinite(entry.explain(self.train_set, self.processes))
        scaler = self.update.scaler
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise NotFinite(
                f"step {self.step}: gradients overflow fp16 at any scale; "
                "set train.precision to bf16 or fp32"
            )

    def _restart_speed(self) -> None:
        self._timed_from = (self.step, time.monotonic())

    def _write_row(self) -> None:
        since, began = self._timed_from
        num_samples = (self.step - since) * self.config.train.batch_size
        speed = num_samples / max(time.monotonic() - began, 1e-9)
        self._restart_speed()
        means = self.history.take_means()
        if means is None or not self.processes.is_main:
            return
        loss, norm = means
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        row = {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm}
        epoch = (self.step - 1) // self.steps_per_epoch
        self.log.write(
            {"step": self.step, "epoch": epoch, **row, "samples_per_second": round(speed, 2)}
        )
        logger.info(
            f"step {self.step} of {self.length()}  epoch {epoch}  loss {loss:.4f}  "
            f"norm {norm:.3f}  rate {rate:.2e}  {speed:.1f} samples/s"
        )

    def _score(self) -> None:
        """Score the model; keep it as ``best.safetensors`` if it is the best so far."""
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
        if self.processes.is_main:
            self._report(scores, is_best=is_best)

    def _report(self, scores: dict[str, dict[str, float]], *, is_best: bool) -> None:
        options = self.config.eval
        row = {f"{label}/{name}": x for label, one in scores.items() for name, x in one.items()}
        self.log.write({"step": self.step, **row})
        for label, one in scores.items():
            note = "  (best so far)" if is_best and label == options.split else ""
            numbers = f"oIoU {one['oIoU']:.2f}  mIoU {one['mIoU']:.2f}"
            logger.info(f"step {self.step}  {label}: {numbers}{note}")
        if not is_best:
            return
        story = {
            "step": self.step,
            "scores": scores,
            "selected_by": {"split": options.split, "metric": options.metric},
            "data_fingerprint": self.train_set.fingerprint,
            "data": self.train_set.composition(),
            "config_file": self.config_file,
            "provenance": provenance(self.processes.device),
        }
        save_checkpoint(self.folder / "best.safetensors", self.segmenter, self.config, extra=story)

    def _save(self) -> None:
        """Write ``last.pt``: one file, which every process can go on from."""
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
                "history": self.history.to_list(),
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
        self.history = History(state["history"])
        restore_random_state(
            state["random_states"], self.processes, seed=self.config.train.seed + self.step
        )


def _check_backbone(state: State, segmenter: Segmenter, path: Path) -> None:
    backbone = segmenter.backbone
    if state["backbone"] != backbone["sha256"]:
        raise ValueError(
            f"{path}: was trained on CLIP weights with SHA-256 {state['backbone']}, but "
            f"{backbone['weights']} has {backbone['sha256']}; name the right file or use --fresh"
        )
