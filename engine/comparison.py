"""Results of several runs side by side: mean and range over seeds, as a table and as a chart."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.config import Config
from utils.files import write_bytes

from .differences import ABSENT, differences, flatten
from .parameters import count
from .provenance import DIRTY, describe_code
from .results import read_results

METRICS = ("oIoU", "mIoU")
# As many colours as markers: methods of a chart differ by both.
COLOURS = (*(f"C{i}" for i in range(10)), "black", "gold", "navy")
MARKERS = "osD^vP*Xhp<>d"
# What may differ between two seeds of a method.
OF_A_RUN = ("train.seed", "run.", "data.root", "data.workers")


@dataclass(frozen=True)
class Run:
    """One results file."""

    path: Path
    method: str
    config: Config
    results: Mapping[str, Any]

    @property
    def splits(self) -> Mapping[str, Mapping[str, float]]:
        return self.results["splits"]


@dataclass(frozen=True)
class Method:
    """The runs of one configuration, each with a seed of its own."""

    name: str
    attached: int  # parameters that train at the towers
    trained: int  # all that train
    head: int  # those of the decoder, neck and projector
    runs: tuple[Run, ...]

    def scores(self, split: str, metric: str) -> list[float]:
        return [run.splits[split][metric] for run in self.runs]


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read results files of test.py, each with the method that :func:`method_of` its path tells.

    Raises:
        ValueError: naming the first file that is missing or no results file of this project.
    """
    runs = []
    for path in paths:
        results, config = read_results(path)
        runs.append(Run(path, method_of(path), config, results))
    return runs


def method_of(path: Path) -> str:
    """``snf`` of ``snf-seed0.json`` and of ``runs/snf-seed0/test/results.json``."""
    named = [part for part in reversed([*path.parent.parts, path.stem]) if "-seed" in part]
    if named:
        return named[0].rpartition("-seed")[0]
    folders = [part for part in path.parent.parts if part != "test"]
    return folders[-1] if path.name == "results.json" and folders else path.stem


def group_runs(runs: Iterable[Run]) -> list[Method]:
    """Runs by method, in the order of their first run.

    Raises:
        ValueError: if two runs of a method share a seed or differ in more than the seed.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.method, []).append(run)
    methods = []
    for name, members in grouped.items():
        first, *others = members
        for position, run in enumerate(others, 1):
            configs = first.config.to_dict(), run.config.to_dict()
            if unequal := differences(*configs, apart_from=OF_A_RUN):
                key, (one, other) = next(iter(unequal.items()))
                raise ValueError(
                    f"{first.path} and {run.path} are both called {name!r}, but {key} is {one!r} "
                    f"in one and {other!r} in the other; give them different names"
                )
            for earlier in members[:position]:
                if earlier.config.train.seed == run.config.train.seed:
                    raise ValueError(
                        f"{earlier.path} and {run.path}: seed {run.config.train.seed} of {name!r} "
                        "stands twice; leave one out"
                    )
        try:
            sizes = count(first.config)
        except ValueError as error:
            raise ValueError(f"{first.path}: {error}") from None
        trained, head = sizes["trainable"], sizes["head"]
        methods.append(Method(name, sizes["attached"], trained, head, tuple(members)))
    return methods


def find_splits(methods: Sequence[Method], wanted: Sequence[str] | None = None) -> list[str]:
    """The splits that every run was scored on, or those ``wanted``.

    Raises:
        ValueError: naming a run that lacks a wanted split, or if no split is common to all.
    """
    runs = [run for method in methods for run in method.runs]
    splits = [s for s in runs[0].splits if all(s in run.splits for run in runs)]
    for split in wanted or ():
        for run in runs:
            if split not in run.splits:
                raise ValueError(
                    f"{run.path} has no split {split!r}; it has {', '.join(run.splits)}"
                )
    if not splits:
        raise ValueError("no split was scored in all these runs; choose some that have one")
    return list(wanted or splits)


def caveats(methods: Sequence[Method]) -> list[str]:
    """Sentences on what makes rows hard to compare: protocol, data, budget, uncommitted changes.

    Each tells which methods have which value, and of a method whose seeds differ, which seeds.
    """
    runs = [run for method in methods for run in method.runs]
    conditions = [flatten(_conditions(run)) for run in runs]
    told = []
    for key in dict.fromkeys(key for values in conditions for key in values):
        groups: dict[str, list[Run]] = {}
        for run, values in zip(runs, conditions, strict=True):
            groups.setdefault(str(values.get(key, ABSENT)), []).append(run)
        if len(groups) > 1:
            parts = (f"{value} in {_name(group, methods)}" for value, group in groups.items())
            told.append(f"{key}: {'; '.join(parts)}")
    dirty = {run.method for run in runs if DIRTY in describe_code(run.results).values()}
    return told + [f"{name}: measured {DIRTY}" for name in sorted(dirty)]


def _name(runs: Sequence[Run], methods: Sequence[Method]) -> str:
    """``snf, etris seed 1``: the methods of ``runs``, with seeds where not all are among them."""
    names = []
    for method in methods:
        seeds = [run.config.train.seed for run in method.runs if run in runs]
        if len(seeds) == len(method.runs):
            names.append(method.name)
        else:
            names += [f"{method.name} seed {seed}" for seed in seeds]
    return ", ".join(names)


def _conditions(run: Run) -> dict[str, Any]:
    """What should be the same for all that are compared."""
    trained = run.config.train.model_dump(exclude={"seed"})
    return {"protocol": run.results["protocol"], "data": run.results["data"], "train": trained}


def to_markdown(methods: Sequence[Method], splits: Sequence[str]) -> str:
    """A row for each method: parameters, seeds, and ``mean (lowest–highest)`` in percent."""
    columns = [(split, metric) for split in splits for metric in METRICS]
    lines = [
        "| method | attached | trained | seeds | " + " | ".join(map(" ".join, columns)) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(columns),
    ]
    for method in methods:
        cells = [method.name, f"{method.attached:,}", f"{method.trained:,}", str(len(method.runs))]
        cells += [mean_and_range(method.scores(*column)) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_range(scores: Sequence[float]) -> str:
    """``70.72 (69.07–71.79)``; a single score alone."""
    mean = f"{fmean(scores):.2f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.2f}–{max(scores):.2f})"


def draw_chart(methods: Sequence[Method], splits: Sequence[str], path: Path) -> None:
    """Scores over the parameters that train outside the head, which is how the papers count.

    Each backbone has a row of panels for each metric, with a panel for each split.  The mark is the
    mean, the bar goes from the lowest to the highest seed, each seed is a small dot.  ``path`` ends
    in ``.png``, ``.svg`` or ``.pdf``.
    """
    import matplotlib

    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    backbones: dict[str | None, list[Method]] = {}
    for method in methods:
        chosen = method.runs[0].config.model.backbone
        backbones.setdefault(chosen.name or chosen.weights, []).append(method)
    num_rows = len(backbones) * len(METRICS)
    size = (1.8 + 3.6 * len(splits), 0.8 + 2.9 * num_rows)
    figure, axes = plt.subplots(
        num_rows, len(splits), figsize=size, squeeze=False, layout="constrained"
    )
    for start, (backbone, group) in zip(
        range(0, num_rows, len(METRICS)), backbones.items(), strict=True
    ):
        for row, metric in zip(axes[start:], METRICS, strict=False):
            for axis, split in zip(row, splits, strict=True):
                _draw_panel(axis, group, split, metric)
                axis.set_title(f"{backbone}, {split} {metric}", fontsize=10)
            row[0].set_ylabel("%")
        for axis in axes[start + len(METRICS) - 1]:
            axis.set_xlabel("parameters trained outside the head")
        axes[start, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=150)
    plt.close(figure)
    write_bytes(path, content.getvalue())


def _draw_panel(axis: Any, methods: Sequence[Method], split: str, metric: str) -> None:
    from matplotlib.ticker import EngFormatter

    for i, method in enumerate(methods):
        scores, size = method.scores(split, metric), method.trained - method.head
        mean, color, marker = fmean(scores), COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        spread = [[mean - min(scores)], [max(scores) - mean]]
        axis.errorbar(size, mean, spread, color=color, marker=marker, capsize=3, label=method.name)
        axis.scatter([size] * len(scores), scores, color=color, s=7, alpha=0.5)
    # logarithmic, but from 0: a frozen CLIP stands there
    axis.set_xscale("symlog", linthresh=1000, linscale=0.5)
    most = max(method.trained - method.head for method in methods)
    axis.set_xticks([0, *(10**power for power in range(3, len(str(most)) + 1))])
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.margins(x=0.12, y=0.12)
