"""Write the papers' tables: what was published and, beside it, our records and counted sizes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Literal, Self

from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator

from engine.evaluator import PROTOCOLS
from engine.parameters import count
from engine.record import list_departures
from engine.results import describe_code, splits_by_protocol
from tools.study.comparison import METRICS, Run, markdown_table, mean_and_range, read_runs
from utils.config import load_config
from utils.yaml_files import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Path(__file__).with_name("published.yaml")
PREFACE = """\
# The papers' tables

**What the scores are.** The papers say IoU or oIoU, but what the released evaluation computes is
the mean over sentences of each sentence's IoU, which is mIoU here. Ours therefore show both, as
`oIoU / mIoU`, and the published figures compare with the second. All are percentages.

**Which protocol.** The published figures were made with the released way from logits to masks.
Compare them with a row of ours under the *released protocol*
(`test.py --protocol native released`). A row without that word is under this project's native
protocol, which resamples logits once at the original size and gives the better geometry.

**What a row of ours is.** Its sizes are counted from the configuration that it names. Its scores
come from the records in `results/`: the mean over seeds, and the range where there are several.
They stay empty where nothing was run. A `*` marks what is said below the table."""


class Row(BaseModel, extra="forbid"):
    """A row of a published table, and the name of its configuration in ``config/``."""

    name: str
    config: str | None = None
    sizes: list[str | None] = []
    scores: list[float | None] = []


class Table(BaseModel, extra="forbid"):
    """A published table; ``sizes`` and ``scores`` map its columns to what they are here.

    A size names what is counted. A score names one ``data set/split``, or several for their mean,
    and the metrics to show, by default oIoU and mIoU.
    """

    title: str
    source: str
    metric: str | None = None
    digits: int = 0
    sizes: dict[str, Literal["towers", "prompts", "head", "all"]] = {}
    scores: dict[str, str] = {}
    notes: list[str] = []
    rows: list[Row]

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        for row in self.rows:
            if (len(row.sizes), len(row.scores)) != (len(self.sizes), len(self.scores)):
                raise ValueError(f"{row.name}: does not have one value for each column")
        return self


@dataclass(frozen=True)
class Training:
    """Runs that differ only in seed and data set, scored by one protocol.

    ``changes`` says how they depart from their configuration file.
    """

    changes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    protocol: str = "native"

    def scores(self, place: str, metric: str) -> list[float]:
        """Return the scores on ``data set/split``, one for each seed.

        Raises:
            ValueError: if two runs have the same seed.
        """
        scores: list[float] = []
        paths: dict[int, Path] = {}
        for run in self.runs:
            label = place.removeprefix(f"{run.config.data.dataset}/")
            splits = splits_by_protocol(run.results).get(self.protocol, {})
            if label not in splits:
                continue
            if run.seed in paths:
                raise ValueError(
                    f"{paths[run.seed]} and {run.path} have the same configuration, data set and "
                    "seed; keep one of them in another folder"
                )
            paths[run.seed] = run.path
            scores.append(splits[label][metric])
        return scores

    def by_protocol(self) -> list["Training"]:
        """Return the same runs for each protocol that scored some of them, native first."""
        names = {name for run in self.runs for name in splits_by_protocol(run.results)}
        return [replace(self, protocol=name) for name in PROTOCOLS if name in names] or [self]

    def marks(self) -> list[str]:
        """Return sentences on what a reader must know."""
        code = [" ".join(item) for run in self.runs for item in describe_code(run.results).items()]
        return [*self.changes, *dict.fromkeys(code)]


def read_tables(path: Path = PUBLISHED) -> dict[str, Table]:
    """Read the published tables by their names, such as ``etris-2``.

    Raises:
        ValueError: naming the first mistake and its place.
    """
    try:
        return TypeAdapter(dict[str, Table]).validate_python(parse_yaml(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def read_records(folder: Path) -> list[Run]:
    """Read all records in ``folder``; ``ValueError`` if there is no such folder or a bad file."""
    if not folder.is_dir():
        raise ValueError(f"--results {folder} is not a folder; name one with records")
    return read_runs(sorted(folder.glob("*-seed*.json")))


def write_page(tables: Mapping[str, Table], records: Sequence[Run]) -> str:
    """Write the tables as a page of Markdown."""
    return "\n\n".join([PREFACE, *(write_table(*item, records) for item in tables.items())])


def write_table(name: str, table: Table, records: Sequence[Run]) -> str:
    """Write a table: its published rows, each with a configuration followed by ours.

    Raises:
        ValueError: for a missing configuration, or two records of one configuration and seed.
    """
    seeds = ["seeds"] if table.scores else []
    lines, marks = [["", *table.sizes, *table.scores, *seeds]], []
    for row in table.rows:
        scores = ["–" if score is None else f"{score:.{table.digits}f}" for score in row.scores]
        sizes = [size or "–" for size in row.sizes]
        lines.append([row.name, *sizes, *scores, *[""] * len(seeds)])
        if row.config is None:
            continue
        file = f"config/{row.config}.yaml"
        sizes = [_count_sizes(file)[size] for size in table.sizes.values()]
        trainings = _group_records(file, records) if seeds else [Training()]
        for training in (one for item in trainings for one in item.by_protocol()):
            label = f"`{file}`"
            if training.changes:
                label += f" as `{training.runs[0].method}`"
            if training.protocol != "native":
                label += f", {training.protocol} protocol"
            own_marks = training.marks()
            ours = _score_cells(table, training) if seeds else []
            lines.append([f"↳ {label}{' *' if own_marks else ''}", *sizes, *ours])
            marks += [f"{label}: {mark}" for mark in own_marks]
    metric = f", published as {table.metric}" if table.metric else ""
    notes = [f"- {note}" for note in table.notes] + [f"- \\* {mark}." for mark in marks]
    title = f"## {name}: {table.title}"
    parts = [title, f"{table.source}{metric}.", markdown_table(lines)]
    return "\n\n".join([*parts, *(["\n".join(dict.fromkeys(notes))] if notes else [])])


def _group_records(config_file: str, records: Iterable[Run]) -> list[Training]:
    """Group the records of a configuration, those without changes first; one empty, if none."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in records:
        if run.results.get("config_file") == config_file:
            groups.setdefault(tuple(list_departures(run.results)), []).append(run)
    ordered = sorted(groups.items(), key=lambda group: len(group[0]))
    return [Training(changes, tuple(runs)) for changes, runs in ordered] or [Training()]


@cache
def _count_sizes(config_file: str) -> dict[str, str]:
    """Count every size that a table may show; ``towers`` is all that trains outside the head."""
    counts = count(load_config(ROOT / config_file))
    prompts = counts["parts"].get("coop", 0)
    numbers = {
        "towers": counts["trainable"] - counts["head"] - prompts,
        "head": counts["head"],
        "all": counts["trainable"],
    }
    texts = {name: f"{number / 1e6:.2f} M" for name, number in numbers.items()}
    return texts | {"prompts": f"{prompts / 1e3:.2f} K"}


def _score_cells(table: Table, training: Training) -> list[str]:
    """Write the cells of scores, and how many seeds they have."""
    cells, seeds = [], set()
    for text in table.scores.values():
        places = [word for word in text.split() if "/" in word]
        metrics = [word for word in text.split() if "/" not in word] or METRICS
        columns = [[training.scores(place, metric) for place in places] for metric in metrics]
        cells.append(" / ".join(filter(None, map(_mean, columns))))
        seeds |= {len(scores) for scores in columns[0] if scores}
    span = sorted({min(seeds), max(seeds)}) if seeds else []
    return [*cells, "–".join(map(str, span))]


def _mean(places: Sequence[Sequence[float]]) -> str:
    """Mean and range over seeds; of several places the mean of their means, if none is missing."""
    if not all(places):
        return ""
    return mean_and_range(places[0] if len(places) == 1 else [fmean(map(fmean, places))])
