"""Read what a report shows of a run: its folder, at any stage of training, and its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import read_checkpoint
from engine.loaders import open_split, open_validation
from engine.metrics import Record, metrics_from_records
from engine.parameters import count
from engine.results import read_results
from tools.reporting.statistics import METRICS, Estimate, bootstrap
from utils.config import Config, load_config
from utils.data.dataset import ReferDataset
from utils.files import read_json_lines

Sets = dict[str, ReferDataset]  # opened splits by their labels


@dataclass(frozen=True)
class Run:
    """One folder of a run.

    Attributes:
        config: the one of the test if there is a test, else the one of training.
        rows: of ``metrics.jsonl``.
        results: of ``test/results.json``; None before the first test.
        records: the sentences of every tested split, by its label.
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
        """The scores of every tested split, by its label."""
        return self.results["splits"] if self.results is not None else {}

    @property
    def fingerprints(self) -> set[str]:
        """Those of the data that the run was tested on."""
        value = self.results["data"]["fingerprint"] if self.results is not None else {}
        return set(value.values()) if isinstance(value, Mapping) else {value}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The header of the best checkpoint; empty before there is one."""
        return read_checkpoint(self.checkpoint).metadata if self.checkpoint.exists() else {}

    def estimates(self, label: str) -> dict[str, Estimate]:
        """Return the scores of a split with intervals, which need the rows of its sentences."""
        if label in self.records:
            return bootstrap(self.records[label])
        return {metric: Estimate(*[self.scores[label][metric]] * 3) for metric in METRICS}

    def count_parameters(self) -> dict[str, int]:
        """Count the parameters of each part of the model."""
        counts = count(self.config)
        return counts["parts"] | {
            "all that is attached to CLIP": counts["attached"],
            "head": counts["head"],
            "all that trains": counts["trainable"],
            "frozen": counts["frozen"],
        }

    def open_sets(self, labels: Sequence[str]) -> Sets:
        """Open the tested splits ``labels``, or without a test the validation splits.

        Raises:
            ValueError: the data are not packed, or not those of the test.
        """
        if self.results is None or not labels:
            return open_validation(self.config)
        sets = {}
        for label in labels:
            name, _, split = label.rpartition("/")
            sets[label] = open_split(self.config, name or self.config.data.datasets[0], split)
            if sets[label].fingerprint not in self.fingerprints:
                raise ValueError(
                    f"{sets[label].store.path} is not the data that {self.name} was tested on (its "
                    "fingerprint differs); name the folder of that data with --root"
                )
        return sets


def read_runs(folders: list[Path], root: Path | None = None) -> list[Run]:
    """Read one run or two; ``root`` replaces their ``data.root``.

    Raises:
        ValueError: a folder holds no run, or the two are the same or of different data.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = [_read_run(folder, name, root) for folder, name in zip(folders, names, strict=True)]
    if len(runs) == 2:
        first, second = runs
        if first.folder.resolve() == second.folder.resolve():
            raise ValueError(f"{first.folder} is named twice; name two runs to compare them")
        same_prints = first.fingerprints == second.fingerprints
        both_tested = first.results is not None and second.results is not None
        names = [", ".join(run.config.data.datasets) for run in runs]
        if names[0] != names[1] or (both_tested and not same_prints):
            raise ValueError(
                f"{first.name} ({names[0]}) and {second.name} ({names[1]}) are of different data; "
                "make a report of each"
            )
    return runs


def _read_run(folder: Path, name: str, root: Path | None) -> Run:
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} has no config.yaml; name a folder that train.py wrote")
    config = load_config(folder / "config.yaml")
    log, path = folder / "metrics.jsonl", folder / "test" / "results.json"
    results: dict[str, Any] | None = None
    records: dict[str, list[Record]] = {}
    notes = [f"No test results yet: {path} does not exist."]
    if path.exists():
        results, config = read_results(path)
        records, notes = _read_records(path, results["splits"])
    if root is not None:
        data = config.data.model_copy(update={"root": str(root)})
        config = config.model_copy(update={"data": data})
    rows = read_json_lines(log) if log.exists() else []
    return Run(folder, name, config, rows, results, records, notes)


def _read_records(
    path: Path, splits: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, list[Record]], list[str]]:
    """Read the sentences of each split from the files beside ``path``; note what is missing."""
    records, notes = {}, []
    for label, scores in splits.items():
        rows = path.with_name(f"{label.replace('/', '-')}.jsonl")
        if not rows.exists():
            notes.append(f"{label}: {rows} does not exist, so only its scores are shown.")
            continue
        try:
            found = [Record(**row) for row in read_json_lines(rows)]
        except TypeError as error:
            raise ValueError(f"{rows}: not the rows of test.py ({error}); run it again") from None
        sums = metrics_from_records(found)
        if (sums.intersection, sums.union) == (scores.get("intersection"), scores.get("union")):
            records[label] = found
        else:
            notes.append(f"{label}: {rows} is of another test than {path}; run test.py again.")
    return records, notes
