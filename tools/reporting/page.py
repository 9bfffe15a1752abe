"""Fill the template of a report with what was read, computed and drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.checkpoint import find_differences
from tools.reporting.charts import NUM_COLOURS, Chart, bar_chart, line_chart
from tools.reporting.gallery import Case, choose_cases, draw_cases
from tools.reporting.runs import Run, Sets
from tools.reporting.statistics import (
    RESAMPLES,
    Group,
    Pair,
    compare,
    group_records,
    histogram,
)
from utils.data.dataset import ReferDataset
from utils.files import sha256_of

# What a curve shows, and the ending of the keys of metrics.jsonl that it reads.
CURVES = {
    "training loss": "train/loss",
    "rate": "train/lr",
    "norm of the gradient": "train/grad_norm",
    "oIoU, %": "/oIoU",
    "mIoU, %": "/mIoU",
}


def make_page(runs: Sequence[Run], *, num_cases: int, device: torch.device) -> str:
    """Write the report of one run, or of two side by side, as HTML.

    ``num_cases`` sentences of each kind and split are shown with their masks. The page names what
    cannot be shown yet, or not without the data.

    Raises:
        ValueError: a checkpoint does not fit its configuration.
    """
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    labels = list(dict.fromkeys(label for run in runs for label in run.records))
    sets: list[Sets] = []
    try:
        sets = [run.open_sets(labels) for run in runs]
    except ValueError as error:
        notes.append(f"No sizes of objects and no pictures: {error}")
    pairs = _pair_up(*runs) if len(runs) == 2 else {}
    cases = _make_gallery(runs, pairs, sets, num_cases, device, notes) if sets and num_cases else []
    parameters = [run.count_parameters() for run in runs]
    curves = [_curve(runs, title, ending) for title, ending in CURVES.items()]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # sentences and names of files may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        notes=notes,
        curves=[chart for chart in curves if chart is not None],
        scored=list(dict.fromkeys(label for run in runs for label in run.scores)),
        resamples=RESAMPLES,
        distributions=[_distribution(runs, label) for label in labels],
        groups={label: _group(runs, label, sets[0] if sets else {}) for label in labels},
        comparisons={label: compare(both) for label, both in pairs.items()},
        cases=cases,
        parameters=parameters,
        parts=list(dict.fromkeys(part for column in parameters for part in column)),
        changed=find_differences(*(run.config.to_dict() for run in runs)) if len(runs) == 2 else {},
        num_colours=NUM_COLOURS,
    )


def _pair_up(first: Run, second: Run) -> dict[str, list[Pair]]:
    """Pair the sentences of each split that both runs were tested on."""
    return {
        label: list(zip(rows, second.records[label], strict=True))
        for label, rows in first.records.items()
        if label in second.records
    }


def _make_gallery(
    runs: Sequence[Run],
    pairs: Mapping[str, Sequence[Pair]],
    sets: Sequence[Sets],
    num: int,
    device: torch.device,
    notes: list[str],
) -> list[Case]:
    """Draw the gallery; add to ``notes`` what is missing in it."""
    for run in runs:
        if not run.checkpoint.exists():
            notes.append(f"No pictures: {run.checkpoint} does not exist yet.")
            return []
        tested = (run.results or {}).get("checkpoint", {}).get("sha256")
        if tested and tested != sha256_of(run.checkpoint):
            notes.append(
                f"{run.name}: its best checkpoint is not the one that was tested, so the pictures "
                "may differ from the scores; run test.py again."
            )
    return draw_cases(runs, sets, choose_cases(runs[0], pairs, sets, num), device)


def _curve(runs: Sequence[Run], title: str, ending: str) -> Chart | None:
    """Draw a line for each run and, of scores, for each split."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        for row in run.rows:
            for key in row:
                if key.endswith(ending):
                    split = "" if key == ending else key.removesuffix(ending)
                    line = lines.setdefault(f"{run.name} {split}".rstrip(), [])
                    line.append((float(row["step"]), float(row[key])))
    return line_chart(title, lines)


def _distribution(runs: Sequence[Run], label: str) -> Chart:
    bars = {run.name: histogram(run.records[label]) for run in runs if label in run.records}
    return bar_chart(f"{label}: % of the sentences over IoU", bars)


def _group(
    runs: Sequence[Run], label: str, sets: Sets
) -> dict[str, list[tuple[str, list[Group | None]]]]:
    """Return, by way of grouping, a row for each group with a column for each run."""
    shares = _object_shares(sets[label]) if label in sets else None
    columns = [group_records(run.records.get(label, []), shares) for run in runs]
    tables = {}
    for way in columns[0]:
        by_name = [{group.name: group for group in column[way]} for column in columns]
        names = max(by_name, key=len)
        tables[way] = [(name, [groups.get(name) for groups in by_name]) for name in names]
    return tables


def _object_shares(dataset: ReferDataset) -> dict[int, float]:
    """Return the share of the picture that the object of each sentence covers."""
    areas = dataset.store.index(dataset.split).area.tolist()
    references = dataset.store.references(dataset.split)
    shares = [
        area / (reference["height"] * reference["width"])
        for area, reference in zip(areas, references, strict=True)
        for _ in reference["sentences"]
    ]
    return dict(enumerate(shares))
