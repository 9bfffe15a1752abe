"""The jobs of a sweep: each one method with one seed, its two commands, and whether it is done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.checkpoint import load_state
from engine.comparison import Run, read_runs
from engine.differences import Differences, differences, list_changes
from engine.record import RESULTS
from engine.run import FREE_KEYS, is_finished
from model.backbones import sha256_of
from tools.study.sweep_config import MethodConfig, SweepConfig, to_overrides
from utils.config import Config, load_config
from utils.data.datasets import DATASETS


@dataclass(frozen=True)
class Job:
    """Train ``config``, the file ``path`` under ``overrides``, and score it on ``splits``.

    With ``record`` it is kept in ``results/``, under that name and its seed.
    """

    path: str
    overrides: tuple[str, ...]
    splits: tuple[str, ...]
    config: Config
    record: str | None

    @property
    def folder(self) -> Path:
        assert self.config.run.folder is not None, "plan() names one"
        return Path(self.config.run.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """Beside the folder, which belongs to the run."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def results(self) -> Path:
        return self.folder / "test/results.json"

    def commands(self) -> tuple[list[str], list[str]]:
        """Training, which goes on by itself where it stopped, and the test, as words of a shell."""
        config = ["--config", self.path, "--opts", *self.overrides]
        checkpoint = ["--checkpoint", str(self.folder / "best.safetensors")]
        where = ["--splits", *self.splits, "--output", str(self.results.parent)]
        record = ["--record", self.record] if self.record else []
        return ["train.py", *config], ["test.py", *checkpoint, *config, *where, *record]

    @property
    def kept(self) -> Path | None:
        """Its record, there or to come; None for a job without."""
        if self.record is None:
            return None
        return RESULTS / f"{self.record}-seed{self.config.train.seed}.json"

    def finished(self) -> Run | None:
        """What ``test.py`` found, None unless it is of this job, whole, and of its last state.

        A job with a record is done when that is there, whatever became of its folder.
        """
        source = self.kept or self.results
        if not source.is_file():
            return None
        (run,) = read_runs([source])
        if self._unlike(run.config) or self._unscored(run):
            return None
        if self.kept is not None:
            return replace(run, method=self.name.rpartition("-seed")[0])
        # Files of a run that was tidied up are not missed.
        best, last = self.folder / "best.safetensors", self.folder / "last.pt"
        is_same = not best.is_file() or run.results["checkpoint"]["sha256"] == sha256_of(best)
        is_trained = not last.is_file() or is_finished(load_state(last), self.config)
        return run if is_same and is_trained else None

    def refusal(self) -> str | None:
        """Why this job cannot have its record or its folder, None if it can."""
        if self.kept is not None and self.kept.is_file():
            return self._refuse_record(self.kept)
        begun = self.folder / "config.yaml"
        if begun.is_file() and (self.folder / "last.pt").is_file():
            unlike = self._unlike(load_config(begun))
        elif self.results.is_file():
            unlike = self._unlike(read_runs([self.results])[0].config)
        else:
            return None
        if not unlike:
            return None
        return (
            f"{self.folder}: holds a run with another config: {list_changes(unlike)}; give the "
            "method another name or the sweep another folder, or move this one away"
        )

    def _refuse_record(self, path: Path) -> str | None:
        (run,) = read_runs([path])
        if unlike := self._unlike(run.config):
            reason = f"with another config: {list_changes(unlike)}"
        elif unscored := self._unscored(run):
            reason = f"without scores on {', '.join(unscored)}"
        else:
            return None
        return (
            f"{path}: records a run {reason}; records are never edited: give the method another "
            "name or the sweep another folder"
        )

    def _unscored(self, run: Run) -> list[str]:
        """The splits that ``run`` lacks."""
        scored = {label.rpartition("/")[2] for label in run.splits}
        return [split for split in self.splits if split not in scored]

    def _unlike(self, other: Config) -> Differences:
        """What makes ``other`` another run."""
        return differences(self.config.to_dict(), other.to_dict(), apart_from=FREE_KEYS)


def plan(sweep: SweepConfig, path: Path) -> list[Job]:
    """All jobs of the sweep in ``path``, the first seed of every method before the second of any.

    Raises:
        ValueError: with a line for every configuration that has mistakes, every name that stands
            twice, every split that a configuration's data lack and every folder or record that
            belongs to another run.
    """
    problems = [f"{path}: {problem}" for problem in _repeated(sweep.rows)]
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
            problems += [f"{path}: {problem}" for problem in _unknown(sweep.splits, config)]
            record = f"{Path(sweep.folder).name}-{method.label}" if sweep.record else None
            job = Job(method.config, tuple(overrides), tuple(sweep.splits), config, record)
            jobs.append(job)
    problems += [refusal for job in jobs if (refusal := job.refusal())]
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return jobs


def _unknown(splits: Sequence[str], config: Config) -> list[str]:
    """Sentences on ``splits`` that none of the data sets has; one's own may have any."""
    names = config.data.datasets
    if not all(name in DATASETS for name in names):
        return []
    known = list(dict.fromkeys(split for name in names for split in DATASETS[name].splits))
    return [
        f"splits: no split {split!r} in {', '.join(names)}; choose from {', '.join(known)}"
        for split in splits
        if split not in known
    ]


def _repeated(methods: Sequence[MethodConfig]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for method in methods:
        if method.label in first:
            problems.append(
                f"configs: {first[method.label]} and {method.config} are both called "
                f"{method.label!r}; give one a name: {{config: {method.config}, name: another}}"
            )
        first.setdefault(method.label, method.config)
    return problems
