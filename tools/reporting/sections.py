"""The parts of a report that only need the folder of a run and what its data say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from engine.checkpoint import read_checkpoint
from engine.parameters import count
from utils.data.dataset import ReferDataset

from .drawing import bar_chart, line_chart
from .runs import Run
from .samples import object_shares
from .statistics import (
    METRICS,
    Estimate,
    Group,
    bootstrap,
    by_length,
    by_place,
    by_size,
    histogram,
)

# What a curve shows, and the keys of metrics.jsonl that it reads.
CURVES = {
    "training loss": "train/loss",
    "rate": "train/lr",
    "norm of the gradient": "train/grad_norm",
    "oIoU, %": "/oIoU",
    "mIoU, %": "/mIoU",
}


class Chart(NamedTuple):
    """A drawing and what its colours stand for."""

    title: str
    drawing: Markup
    names: list[str]


def facts(runs: Sequence[Run]) -> dict[str, list[str]]:
    """A row for each fact, a column for each run."""
    columns = [_facts_of(run) for run in runs]
    return {key: [column[key] for column in columns] for key in columns[0]}


def _facts_of(run: Run) -> dict[str, str]:
    story: Mapping[str, Any] = (
        read_checkpoint(run.checkpoint).metadata if run.checkpoint.exists() else {}
    )
    provenance = story.get("provenance", {})
    dirty = ", with changes that are in no commit" if provenance.get("dirty") else ""
    chosen = story.get("selected_by", {})
    best = ""
    if "step" in story and chosen:
        score = story["scores"][chosen["split"]][chosen["metric"]]
        best = f"step {story['step']:,}: {chosen['split']} {chosen['metric']} {score:.2f}"
    return {
        "folder": str(run.folder),
        "last row of the log": f"step {run.last_step:,}" if run.rows else "none yet",
        "best checkpoint": best or "none yet",
        "data": run.config.data.dataset,
        "threshold": f"{run.config.eval.threshold:g}",
        "seed": str(run.config.train.seed),
        "commit": f"{provenance.get('commit') or 'unknown'}{dirty}",
        "command": provenance.get("command", "unknown"),
    }


def curves(runs: Sequence[Run]) -> list[Chart]:
    """The curves of which there is anything yet, a line for each run and, of scores, each split."""
    charts = (_curve(runs, title, ending) for title, ending in CURVES.items())
    return [chart for chart in charts if chart is not None]


def _curve(runs: Sequence[Run], title: str, ending: str) -> Chart | None:
    lines = {}
    for run in runs:
        for key in run.keys(ending):
            split = "" if key == ending else key.removesuffix(ending)
            lines[f"{run.name} {split}".rstrip()] = run.series(key)
    drawing = line_chart(lines, title)
    return Chart(title, drawing, list(lines)) if drawing else None


def scores(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each split and run."""
    rows = []
    for label in dict.fromkeys(label for run in runs for label in run.scores):
        for run in [run for run in runs if label in run.scores]:
            score = run.scores[label]
            # without the rows of its sentences it has no interval
            estimates = {metric: Estimate(*[score[metric]] * 3) for metric in METRICS}
            if label in run.records:
                estimates = bootstrap(run.records[label])
            rows.append({"split": label, "run": run.name, **score, **estimates})
    return rows


def distributions(runs: Sequence[Run], labels: Sequence[str]) -> list[Chart]:
    """How the IoU of sentences is spread, a chart for each split."""
    charts = []
    for label in labels:
        bars = {}
        for run in runs:
            if label in run.records:
                counts = histogram(run.records[label])
                bars[run.name] = [100 * number / sum(counts) for number in counts]
        title = f"{label}: % of the sentences over IoU"
        charts.append(Chart(title, bar_chart(bars, title), list(bars)))
    return charts


def groups(
    runs: Sequence[Run], labels: Sequence[str], sets: Mapping[str, ReferDataset]
) -> dict[str, dict[str, list[tuple[str, list[Group | None]]]]]:
    """By split and way of grouping: a row for each group, a column for each run."""
    tables: dict[str, dict[str, Any]] = {}
    for label in labels:
        shares = object_shares(sets[label]) if label in sets else None
        columns: list[dict[str, list[Group]]] = []
        for run in runs:
            records = run.records.get(label, [])
            column = {"length of the sentence": by_length(records), "place": by_place(records)}
            if shares is not None:
                column["size of the object"] = by_size(records, shares)
            columns.append(column)
        tables[label] = {way: _merge([c[way] for c in columns]) for way in columns[0]}
    return tables


def _merge(columns: Sequence[Sequence[Group]]) -> list[tuple[str, list[Group | None]]]:
    fullest = max(columns, key=len)
    by_name = [{group.name: group for group in column} for column in columns]
    return [(group.name, [names.get(group.name) for names in by_name]) for group in fullest]


def parameters(runs: Sequence[Run]) -> list[tuple[str, list[int | None]]]:
    """A row for each part of the model, a column for each run."""
    columns = []
    for run in runs:
        counts = count(run.config)
        whole = {
            "all that is attached to CLIP": counts["attached"],
            "head": counts["head"],
            "all that trains": counts["trainable"],
            "frozen": counts["frozen"],
        }
        columns.append(counts["parts"] | whole)
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]
