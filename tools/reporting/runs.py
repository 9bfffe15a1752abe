"""What a report reads of a run: its folder as it stands, whether training has ended or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.metrics import Record, metrics_from_records
from engine.results import read_results
from utils.config import Config, load_config
from utils.files import read_json_lines

Point = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """One folder of a run.

    Attributes:
        config: that of the test where there is one, else that of the training.
        rows: those of ``metrics.jsonl``.
        results: ``test/results.json``; None before the first test.
        records: the sentences of every split that was tested, by its label.
        notes: sentences on what is missing.
    """

    folder: Path
    name: str
    config: Config
    rows: list[dict[str, Any]]
    results: dict[str, Any] | None
    records: dict[str, list[Record]]
    notes: list[str]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Those of every split that was tested, by its label."""
        return self.results["splits"] if self.results is not None else {}

    @property
    def last_step(self) -> int:
        """The last step that a row tells of; 0 before the first."""
        return max((int(row["step"]) for row in self.rows), default=0)

    def series(self, key: str) -> list[Point]:
        """``(step, value)`` of each row that has ``key``."""
        return [(float(row["step"]), float(row[key])) for row in self.rows if key in row]

    def keys(self, ending: str) -> list[str]:
        """The keys with this ending, such as ``val/oIoU``, in the order of their first row."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key.endswith(ending)))


def read_runs(folders: list[Path], root: Path | None = None) -> list[Run]:
    """Read one run or two; ``root`` takes the place of their ``data.root``.

    Raises:
        ValueError: a folder holds no run, or the same one is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{folders[0]} is named twice; name two runs to compare them")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(folder, name, root) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str, root: Path | None) -> Run:
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} has no config.yaml; name a folder that train.py wrote")
    config = load_config(folder / "config.yaml")
    rows, path = folder / "metrics.jsonl", folder / "test" / "results.json"
    results: dict[str, Any] | None = None
    records: dict[str, list[Record]] = {}
    notes = [f"No test results yet: {path} is not there."]
    if path.exists():
        results, config = read_results(path)
        records, notes = _read_records(path, results["splits"])
    if root is not None:
        values = config.to_dict()
        values["data"]["root"] = str(root)
        config = Config.from_dict(values, source=str(folder))
    return Run(
        folder=folder,
        name=name,
        config=config,
        rows=read_json_lines(rows) if rows.exists() else [],
        results=results,
        records=records,
        notes=notes,
    )


def _read_records(
    path: Path, splits: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, list[Record]], list[str]]:
    """The sentences of each split, from the files beside ``path``, and notes on what is missing."""
    records, notes = {}, []
    for label, scores in splits.items():
        rows = path.with_name(f"{label.replace('/', '-')}.jsonl")
        if not rows.exists():
            notes.append(f"{label}: {rows} is not there, so only its scores are shown.")
            continue
        try:
            found = [Record(**row) for row in read_json_lines(rows)]
        except TypeError as error:
            raise ValueError(
                f"{rows} has other rows than test.py's ({error}); run it again"
            ) from None
        sums = metrics_from_records(found)
        if (sums.intersection, sums.union) != (scores.get("intersection"), scores.get("union")):
            notes.append(f"{label}: {rows} is of another test than {path}; run test.py again.")
            continue
        records[label] = found
    return records, notes
