"""The jobs of a sweep: each trains and tests one method with one seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.checkpoint import (
    KEYS_ALLOWED_TO_CHANGE_ON_RESUME,
    Differences,
    describe_differences,
    find_differences,
    is_finished,
    load_state,
)
from engine.record import RESULTS
from tools.study.comparison import Run, read_runs
from tools.study.sweep_config import SweepConfig, to_overrides
from utils.config import Config, load_config
from utils.data.datasets import DATASETS
from utils.files import sha256_of


@dataclass(frozen=True)
class Job:
    """Train ``config``, which is the file ``path`` with ``overrides``, and score it on ``splits``.

    With ``record``, a name, the run is kept in ``results/``.
    """

    path: str
    overrides: tuple[str, ...]
    splits: tuple[str, ...]
    config: Config
    folder: Path
    record: str | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    @property
    def results(self) -> Path:
        """The file that ends the job: its record, or else the results in its folder."""
        if self.record is None:
            return self.folder / "test/results.json"
        return RESULTS / f"{self.record}-seed{self.config.train.seed}.json"

    def commands(self) -> tuple[list[str], list[str]]:
        """Return the commands of the training, which resumes by itself, and of the test."""
        config = ["--config", self.path, "--opts", *self.overrides]
        checkpoint = ["--checkpoint", str(self.folder / "best.safetensors")]
        output = ["--splits", *self.splits, "--output", str(self.folder / "test")]
        record = ["--record", self.record] if self.record else []
        return ["train.py", *config], ["test.py", *checkpoint, *config, *output, *record]

    def finished_run(self) -> Run | None:
        """Read the results; None unless they are of this job, complete, and of its last state.

        A record is enough, whether its folder still exists or not.
        """
        if not self.results.is_file():
            return None
        (run,) = read_runs([self.results])
        if self._changes(run.config) or self._missing_splits(run):
            return None
        if self.record is not None:
            return replace(run, method=self.name.rpartition("-seed")[0])
        # A user may have deleted these large files.
        best, last = self.folder / "best.safetensors", self.folder / "last.pt"
        is_same = not best.is_file() or run.results["checkpoint"]["sha256"] == sha256_of(best)
        is_trained = not last.is_file() or is_finished(load_state(last), self.config)
        return run if is_same and is_trained else None

    def find_conflict(self) -> str | None:
        """Say why this job cannot use its record or its folder, None if it can."""
        way_out = "give the method another name or the sweep another folder"
        started, tested = self.folder / "config.yaml", self.folder / "test/results.json"
        if self.record is not None and self.results.is_file():
            (run,) = read_runs([self.results])
            changes, missing = self._changes(run.config), self._missing_splits(run)
            if not changes and missing:
                reason = f"records a run without scores on {', '.join(missing)}"
                return f"{self.results}: {reason}; records are never edited: {way_out}"
            place = self.results
        elif started.is_file() and (self.folder / "last.pt").is_file():
            changes, place = self._changes(load_config(started)), self.folder
        elif tested.is_file():
            changes, place = self._changes(read_runs([tested])[0].config), self.folder
        else:
            return None
        reason = f"holds a run with another config: {describe_differences(changes)}"
        return f"{place}: {reason}; {way_out}, or move this one away" if changes else None

    def _missing_splits(self, run: Run) -> list[str]:
        scored = {label.rpartition("/")[2] for label in run.splits}
        return [split for split in self.splits if split not in scored]

    def _changes(self, other: Config) -> Differences:
        return find_differences(
            self.config.to_dict(), other.to_dict(), ignored=KEYS_ALLOWED_TO_CHANGE_ON_RESUME
        )


def plan_jobs(sweep: SweepConfig, path: Path) -> list[Job]:
    """List all jobs of the sweep in ``path``: every method with the first seed, then the second.

    Raises:
        ValueError: with a line for every configuration that has mistakes, every duplicate name,
            every split that a data set lacks and every folder or record of another run.
    """
    labels = [method.label for method in sweep.rows]
    problems = [
        f"{path}: configs: duplicate name {label!r}; give one a name: {{config: PATH, name: NAME}}"
        for label in labels
        if labels.count(label) > 1
    ]
    jobs = []
    for seed in sweep.seeds:
        for method in sweep.rows:
            folder = f"{sweep.folder}/{method.label}-seed{seed}"
            options = {**sweep.opts, **method.opts, "train.seed": seed, "run.folder": folder}
            overrides = to_overrides(options)
            try:
                config = load_config(method.config, overrides)
            except ValueError as error:
                lines = str(error).splitlines()
                problems += [line.replace("--opts ", f"{path}: opts: ", 1) for line in lines]
                continue
            problems += [f"{path}: {problem}" for problem in _unknown_splits(sweep.splits, config)]
            record = f"{Path(sweep.folder).name}-{method.label}" if sweep.record else None
            splits = tuple(sweep.splits)
            jobs.append(Job(method.config, tuple(overrides), splits, config, Path(folder), record))
    problems += [conflict for job in jobs if (conflict := job.find_conflict())]
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return jobs


def _unknown_splits(splits: Sequence[str], config: Config) -> list[str]:
    """Report ``splits`` that none of the data sets has; a data set of the user may have any."""
    names = config.data.datasets
    if not all(name in DATASETS for name in names):
        return []
    known = list(dict.fromkeys(split for name in names for split in DATASETS[name].splits))
    return [
        f"splits: no split {split!r} in {', '.join(names)}; choose from {', '.join(known)}"
        for split in splits
        if split not in known
    ]
