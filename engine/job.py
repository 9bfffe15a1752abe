"""The jobs of a sweep: each one method with one seed, its two commands, and whether it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import differences
from engine.comparison import Run, read_runs
from engine.record import RESULTS
from engine.resume import load_state
from engine.run import FREE_KEYS, is_finished
from engine.sweep_config import MethodConfig, SweepConfig, to_overrides
from model.clip import sha256_of
from utils.config import Config, load_config


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

    def finished(self) -> Run | None:
        """What ``test.py`` found, None unless it is of this job, whole, and of its last state."""
        if not self.results.is_file():
            return None
        (run,) = read_runs([self.results])
        scored = {label.rpartition("/")[2] for label in run.splits}
        if self._unlike(run.config) or not scored.issuperset(self.splits):
            return None
        seed = self.config.train.seed
        if self.record and not (RESULTS / f"{self.record}-seed{seed}.json").is_file():
            return None
        # Files of a run that was tidied up are not missed.
        best, last = self.folder / "best.safetensors", self.folder / "last.pt"
        is_same = not best.is_file() or run.results["checkpoint"]["sha256"] == sha256_of(best)
        is_trained = not last.is_file() or is_finished(load_state(last), self.config)
        return run if is_same and is_trained else None

    def refusal(self) -> str | None:
        """Why this job cannot have its folder, None if it can."""
        begun = self.folder / "config.yaml"
        if begun.is_file() and (self.folder / "last.pt").is_file():
            unlike = self._unlike(load_config(begun))
        elif self.results.is_file():
            unlike = self._unlike(read_runs([self.results])[0].config)
        else:
            return None
        if not unlike:
            return None
        listed = "; ".join(f"{key} is {ours!r}, was {held!r}" for key, (ours, held) in unlike)
        return (
            f"{self.folder}: holds a run with another config: {listed}; give the method another "
            "name or the sweep another folder, or move this one away"
        )

    def _unlike(self, other: Config) -> list[tuple[str, tuple[object, object]]]:
        """The keys, with both values, that make ``other`` another run."""
        unequal = differences(self.config.to_dict(), other.to_dict())
        return [pair for pair in unequal.items() if not pair[0].startswith(FREE_KEYS)]


def plan(sweep: SweepConfig) -> list[Job]:
    """All jobs, the first seed of every method before the second of any.

    Raises:
        ValueError: with a line for every configuration that has mistakes, every name that stands
            twice and every folder that belongs to another run.
    """
    problems = _repeated(sweep.configs)
    jobs = []
    for seed in sweep.seeds:
        for method in sweep.configs:
            folder = f"{sweep.folder}/{method.label}-seed{seed}"
            options = {**sweep.opts, **method.opts, "train.seed": seed, "run.folder": folder}
            overrides = to_overrides(options)
            try:
                config = load_config(method.config, overrides)
            except ValueError as error:
                problems += str(error).splitlines()
                continue
            record = f"{Path(sweep.folder).name}-{method.label}" if sweep.record else None
            job = Job(method.config, tuple(overrides), tuple(sweep.splits), config, record)
            jobs.append(job)
    problems += [refusal for job in jobs if (refusal := job.refusal())]
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return jobs


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
