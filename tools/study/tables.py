"""The papers' tables: what was published, and beside it what is recorded and counted here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from engine.comparison import METRICS, Run, mean_and_range, read_runs
from engine.parameters import count
from engine.protocols import PROTOCOLS
from engine.provenance import describe_code
from engine.record import changes_of
from engine.results import splits_by_protocol
from tools.study.published import Row, Table
from utils.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]
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


@dataclass(frozen=True)
class Training:
    """Runs that differ in seed and data set alone, and how they depart from their file."""

    changes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    protocol: str = "native"

    def scores(self, place: str, metric: str) -> list[float]:
        """The scores on ``data set/split``, one for each seed.

        Raises:
            ValueError: if a seed stands twice.
        """
        found: dict[int, Run] = {}
        for run in self.runs:
            if _label(run.config, place) not in self._splits(run):
                continue
            earlier = found.setdefault(run.config.train.seed, run)
            if earlier is not run:
                raise ValueError(
                    f"{earlier.path} and {run.path} are of one configuration, data set and seed; "
                    "keep one of them in another folder"
                )
        return [self._splits(run)[_label(run.config, place)][metric] for run in found.values()]

    def _splits(self, run: Run) -> Mapping[str, Mapping[str, float]]:
        return splits_by_protocol(run.results).get(self.protocol, {})

    def by_protocol(self) -> list["Training"]:
        """The same runs under each protocol that some of them were scored by, native first."""
        names = {name for run in self.runs for name in splits_by_protocol(run.results)}
        return [replace(self, protocol=name) for name in PROTOCOLS if name in names] or [self]

    def marks(self) -> list[str]:
        """Sentences on what a reader must know."""
        told = [item for run in self.runs for item in describe_code(run.results).items()]
        return [*self.changes, *map(" ".join, dict.fromkeys(told))]


def read_records(folder: Path) -> list[Run]:
    """All records of ``folder``.

    Raises:
        ValueError: if there is no such folder, or a file in it is no record.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--results {folder} is no folder; name one that test.py --record wrote to"
        )
    return read_runs(sorted(folder.glob("*-seed*.json")))


def write_page(tables: Mapping[str, Table], records: Sequence[Run]) -> str:
    """The tables as a page of Markdown."""
    return "\n\n".join([PREFACE, *(to_markdown(*item, records) for item in tables.items())])


def to_markdown(name: str, table: Table, records: Sequence[Run]) -> str:
    """A table: its published rows, those with a configuration followed by ours.

    Raises:
        ValueError: naming a configuration that is missing, or records that cannot stand together.
    """
    seeds = ["seeds"] if table.scores else []
    header = ["", *table.sizes, *table.scores, *seeds]
    lines, marks = [header, ["---", *["--:"] * (len(header) - 1)]], []
    for row in table.rows:
        lines.append([row.name, *_published(table, row), *("" for _ in seeds)])
        if row.config is None:
            continue
        path = ROOT / "config" / f"{row.config}.yaml"
        trainings = _trainings(path, records) if seeds else [Training()]
        for training in (one for item in trainings for one in item.by_protocol()):
            told = training.marks()
            label = f"`config/{path.name}`"
            if training.changes:
                label += f" as `{training.runs[0].method}`"
            if training.protocol != "native":
                label += f", {training.protocol} protocol"
            cells = [*_sizes(table, path), *_scores(table, training)]
            lines.append([f"↳ {label}{' *' if told else ''}", *cells])
            marks += [f"{label}: {mark}" for mark in told]
    source = table.source + (f", published as {table.metric}" if table.metric else "")
    notes = [f"- {note}" for note in table.notes] + [f"- \\* {mark}." for mark in marks]
    parts = [
        f"## {name}: {table.title}",
        f"{source}.",
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        "\n".join(dict.fromkeys(notes)),
    ]
    return "\n\n".join(part for part in parts if part)


def _trainings(path: Path, records: Iterable[Run]) -> list[Training]:
    """The records of a configuration, those that keep to its file first; one without, if none."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in records:
        if run.results.get("config_file") == path.relative_to(ROOT).as_posix():
            groups.setdefault(tuple(changes_of(run.results, path)), []).append(run)
    ordered = sorted(groups.items(), key=lambda group: len(group[0]))
    return [Training(changes, tuple(runs)) for changes, runs in ordered] or [Training()]


def _published(table: Table, row: Row) -> list[str]:
    scores = ["–" if score is None else f"{score:.{table.digits}f}" for score in row.scores]
    return [*(size or "–" for size in row.sizes), *scores]


def _sizes(table: Table, path: Path) -> list[str]:
    counted = _count(path)
    return [counted[size] for size in table.sizes.values()]


@cache
def _count(path: Path) -> dict[str, str]:
    """Every size that a table may show; the towers' is of all that trains outside the head."""
    counts = count(load_config(path))
    prompts = counts["parts"].get("coop", 0)
    numbers = {
        "towers": counts["trainable"] - counts["head"] - prompts,
        "head": counts["head"],
        "all": counts["trainable"],
    }
    texts = {name: f"{number / 1e6:.2f} M" for name, number in numbers.items()}
    return texts | {"prompts": f"{prompts / 1e3:.2f} K"}


def _scores(table: Table, training: Training) -> list[str]:
    """The cells of scores, and how many seeds they are of; empty for a table without scores."""
    if not table.scores:
        return []
    cells, seeds = [], set()
    for text in table.scores.values():
        words = text.split()
        places = [word for word in words if "/" in word]
        metrics = [word for word in words if "/" not in word] or METRICS
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


def _label(config: Config, place: str) -> str:
    """What a run calls ``data set/split``: the split, if it has one data set and it is that."""
    return place.removeprefix(f"{config.data.dataset}/")
