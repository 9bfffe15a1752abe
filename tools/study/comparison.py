"""Compare runs: a table with mean and range over seeds, notes on what differs, and a chart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from engine.checkpoint import ABSENT, find_differences, flatten
from engine.parameters import count
from engine.record import KEYS_OF_A_RUN
from engine.results import DIRTY, describe_code, read_results
from utils.config import Config
from utils.files import atomic_write

METRICS = ("oIoU", "mIoU")
# As many colours as markers: methods of a chart differ by both.
COLOURS = (*(f"C{i}" for i in range(10)), "black", "gold", "navy")
MARKERS = "osD^vP*Xhp<>d"


@dataclass(frozen=True)
class Run:
    """A results file of one run."""

    path: Path
    method: str
    config: Config
    results: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def splits(self) -> Mapping[str, Mapping[str, float]]:
        return self.results["splits"]


@dataclass(frozen=True)
class Method:
    """The runs of one configuration, each with its own seed, and its numbers of parameters."""

    name: str
    attached: int
    trained: int
    head: int
    runs: tuple[Run, ...]

    def scores(self, split: str, metric: str) -> list[float]:
        return [run.splits[split][metric] for run in self.runs]


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read results files of test.py, each with the method that its path names.

    Raises:
        ValueError: naming the first file that is missing or not a results file of this project.
    """
    runs = []
    for path in paths:
        results, config = read_results(path)
        runs.append(Run(path, method_of(path), config, results))
    return runs


def method_of(path: Path) -> str:
    """Return ``snf`` for ``snf-seed0.json`` and for ``runs/snf-seed0/test/results.json``."""
    named = [part for part in reversed([*path.parent.parts, path.stem]) if "-seed" in part]
    if named:
        return named[0].rpartition("-seed")[0]
    folders = [part for part in path.parent.parts if part != "test"]
    return folders[-1] if path.name == "results.json" and folders else path.stem


def group_runs(runs: Iterable[Run]) -> list[Method]:
    """Group runs by method, in the order of their first run.

    Raises:
        ValueError: if two runs of a method have the same seed or differ in more than the seed.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.method, []).append(run)
    methods = []
    for name, members in grouped.items():
        first, seeds = members[0], dict[int, Run]()
        for run in members:
            configs = first.config.to_dict(), run.config.to_dict()
            if unequal := find_differences(*configs, ignored=KEYS_OF_A_RUN):
                key, (one, other) = next(iter(unequal.items()))
                raise ValueError(
                    f"{first.path} and {run.path} are both called {name!r}, but {key} is {one!r} "
                    f"in one and {other!r} in the other; give them different names"
                )
            earlier = seeds.setdefault(run.seed, run)
            if earlier is not run:
                raise ValueError(
                    f"{earlier.path} and {run.path}: duplicate seed {run.seed} of {name!r}; "
                    "remove one of them"
                )
        try:
            sizes = first.results.get("parameters") or count(first.config)  # records have them
        except ValueError as error:
            raise ValueError(f"{first.path}: {error}") from None
        counts = sizes["attached"], sizes["trainable"], sizes["head"]
        methods.append(Method(name, *counts, tuple(members)))
    return methods


def find_splits(methods: Sequence[Method], wanted: Sequence[str] | None = None) -> list[str]:
    """Return the splits that every run was scored on, or those of them that are ``wanted``.

    Raises:
        ValueError: for a split that a run lacks, or if no split is common to all.
    """
    runs = [run for method in methods for run in method.runs]
    for split in wanted or []:
        for run in runs:
            if split not in run.splits:
                raise ValueError(
                    f"--splits: {run.path} has no split {split!r}; it has {', '.join(run.splits)}"
                )
    common = [split for split in runs[0].splits if all(split in run.splits for run in runs)]
    if not common:
        raise ValueError("no split was scored in all these runs; name runs that have one in common")
    return list(wanted or common)


def list_caveats(methods: Sequence[Method]) -> list[str]:
    """List what makes rows hard to compare: protocol, data, training, uncommitted changes.

    Each sentence names which methods have which value and, where the seeds of a method differ,
    which seeds.
    """
    runs = [run for method in methods for run in method.runs]
    conditions = [
        flatten(
            {
                "protocol": run.results["protocol"],
                "data": run.results["data"],
                "train": run.config.train.model_dump(exclude={"seed"}),
            }
        )
        for run in runs
    ]
    caveats = []
    for key in dict.fromkeys(key for values in conditions for key in values):
        groups: dict[str, list[Run]] = {}
        for run, values in zip(runs, conditions, strict=True):
            groups.setdefault(str(values.get(key, ABSENT)), []).append(run)
        if len(groups) > 1:
            parts = (f"{value} in {_names(group, methods)}" for value, group in groups.items())
            caveats.append(f"{key}: {'; '.join(parts)}")
    dirty = {run.method for run in runs if DIRTY in describe_code(run.results).values()}
    caveats += [f"{name}: measured {DIRTY}" for name in sorted(dirty)]
    return [f"not the same for all: {caveat}" for caveat in caveats]


def _names(runs: Sequence[Run], methods: Sequence[Method]) -> str:
    """Name the methods of ``runs``, with seeds where some are missing: ``snf, etris seed 1``."""
    names = []
    for method in methods:
        seeds = [run.seed for run in method.runs if run in runs]
        if len(seeds) == len(method.runs):
            names.append(method.name)
        else:
            names += [f"{method.name} seed {seed}" for seed in seeds]
    return ", ".join(names)


def compare_methods(methods: Sequence[Method], splits: Sequence[str]) -> str:
    """Write a Markdown row for each method: parameters, seeds, mean and range in percent."""
    columns = [(split, metric) for split in splits for metric in METRICS]
    rows = [["method", "attached", "trained", "seeds", *map(" ".join, columns)]]
    for method in methods:
        sizes = [f"{size:,}" for size in (method.attached, method.trained, len(method.runs))]
        scores = [mean_and_range(method.scores(*column)) for column in columns]
        rows.append([method.name, *sizes, *scores])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write ``rows``, of which the first is the header; all columns but the first align right."""
    header, *others = rows
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *others))


def mean_and_range(scores: Sequence[float]) -> str:
    """Return ``70.72 (69.07–71.79)``; a single score without range."""
    mean = f"{fmean(scores):.2f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.2f}–{max(scores):.2f})"


def draw_chart(methods: Sequence[Method], splits: Sequence[str], path: Path) -> None:
    """Draw scores over the parameters that train outside the head, as the papers count them.

    Each backbone has a row of panels for each metric, with a panel for each split. The mark is the
    mean, the bar goes from the lowest to the highest seed, each seed is a small dot. ``path`` ends
    in ``.png``, ``.svg`` or ``.pdf``.
    """
    from matplotlib.figure import Figure

    backbones: dict[str | None, list[Method]] = {}
    for method in methods:
        chosen = method.runs[0].config.model.backbone
        backbones.setdefault(chosen.name or chosen.weights, []).append(method)
    num_rows = len(backbones) * len(METRICS)
    figure = Figure((1.8 + 3.6 * len(splits), 0.8 + 2.9 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, len(splits), squeeze=False)
    for number, (backbone, group) in enumerate(backbones.items()):
        rows = axes[number * len(METRICS) :][: len(METRICS)]
        for row, metric in zip(rows, METRICS, strict=True):
            row[0].set_ylabel("%")
            for axis, split in zip(row, splits, strict=True):
                _draw_panel(axis, group, split, metric)
                axis.set_title(f"{backbone}, {split} {metric}", fontsize=10)
        for axis in rows[-1]:
            axis.set_xlabel("parameters trained outside the head")
        rows[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)


def _draw_panel(axis: Any, methods: Sequence[Method], split: str, metric: str) -> None:
    from matplotlib.ticker import EngFormatter

    for i, method in enumerate(methods):
        scores, size = method.scores(split, metric), method.trained - method.head
        mean, color, marker = fmean(scores), COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        spread = [[mean - min(scores)], [max(scores) - mean]]
        axis.errorbar(size, mean, spread, color=color, marker=marker, capsize=3, label=method.name)
        axis.scatter([size] * len(scores), scores, color=color, s=7, alpha=0.5)
    # logarithmic, but from 0: a frozen CLIP has no parameters to train there
    axis.set_xscale("symlog", linthresh=1000, linscale=0.5)
    most = max(method.trained - method.head for method in methods)
    axis.set_xticks([0, *(10**power for power in range(3, len(str(most)) + 1))])
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.margins(x=0.12, y=0.12)
