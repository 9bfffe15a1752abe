"""Score splits with a checkpoint, write the results files, and read them; what test.py runs."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from pydantic import BaseModel, ValidationError
from tabulate import tabulate

from engine.checkpoint import Checkpoint, TrainedModel, load_for_inference
from engine.evaluator import PROTOCOLS, Result, describe_protocol, evaluate_by, find_masks
from engine.loaders import open_tests
from utils.config import Config
from utils.data.dataset import ReferDataset
from utils.distributed import Processes
from utils.files import write_json_lines, write_text
from utils.images import write_image
from utils.memory import peak_size

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ["torch", "torchvision", "open_clip_torch", "numpy", "opencv-python-headless"]
LIBRARIES += ["pycocotools", "lmdb", "safetensors", "pydantic"]
DIRTY, UNKNOWN = "with uncommitted changes", "by code of an unknown commit"
COLUMNS = ("oIoU", "mIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9")


@dataclass(frozen=True)
class Scoring:
    """A checkpoint and how to score it.

    Attributes:
        output: the folder of the files.
        num_pictures: how many pictures of each kind a contact sheet shows; 0 for no sheet.
        protocols: the first is the one of the pictures and of the rows without a suffix.
    """

    config: Config
    checkpoint: Checkpoint
    output: Path
    processes: Processes
    num_pictures: int
    protocols: tuple[str, ...]

    def run(self, splits: list[str]) -> dict[str, Any]:
        """Score ``splits`` (empty: all but train), write the files, and return the results.

        ``results.json`` has all scores and what fixes them, ``<split>.jsonl`` the sums of every
        sentence, from which all scores can be computed again, ``<split>.png`` the contact sheet.
        Each of several data sets is scored as if it were alone, and its files begin with its name.

        Raises:
            ValueError: no data set has one of ``splits``, or the checkpoint does not fit.
        """
        # The data comes before the weights, so that a mistake in it shows at once.
        sets = open_tests(self.config, splits, self.checkpoint.sentence_length(self.config))
        model = load_for_inference(self.checkpoint, self.config, self.processes.device)
        scores: dict[str, dict[str, Any]] = {protocol: {} for protocol in self.protocols}
        for label, dataset in sets.items():
            for protocol, score in self._score(model, label, dataset).items():
                scores[protocol][label] = score
        results = self._describe(scores, sets, model.precision)
        if self.processes.is_main:
            write_text(self.output / "results.json", json.dumps(results, indent=2) + "\n")
            logger.info(f"written to {self.output}")
        return results

    def _score(
        self, model: TrainedModel, label: str, dataset: ReferDataset
    ) -> dict[str, dict[str, Any]]:
        """Score a split and write its files; return the scores by protocol."""
        began = time.monotonic()
        results = evaluate_by(
            self.protocols,
            model.segmenter,
            dataset,
            threshold=self.config.eval.threshold,
            batch_size=self.config.eval.batch_size,
            precision=model.precision,
            processes=self.processes,
            workers=self.config.data.workers,
        )
        seconds = time.monotonic() - began
        if self.processes.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            name, first = label.replace("/", "-"), results[self.protocols[0]]
            for protocol, result in results.items():
                suffix = "" if result is first else f"-{protocol}"
                rows = map(asdict, result.records)
                write_json_lines(self.output / f"{name}{suffix}.jsonl", rows)
            if self.num_pictures:
                self._draw(model, dataset, first, self.output / f"{name}.png")
            logger.info(f"{label}: {len(first.records)} sentences in {seconds:.1f} s")
        return {
            protocol: {
                **result.metrics.to_dict(),
                "references": len({record.ref_id for record in result.records}),
                "truncated_sentences": dataset.num_truncated,
                "seconds": round(seconds, 2),
            }
            for protocol, result in results.items()
        }

    def _draw(self, model: TrainedModel, dataset: ReferDataset, result: Result, path: Path) -> None:
        """Draw the best, the worst and some random other cases, none twice."""
        from utils.sheets import Case, contact_sheet  # slow: it loads matplotlib

        ranked = sorted(result.records, key=lambda record: (-record.iou, record.index))
        num = min(self.num_pictures, (len(ranked) + 1) // 2)
        others = ranked[num : len(ranked) - num]
        chosen = np.random.default_rng(self.config.train.seed).permutation(len(others))[:num]
        groups = {
            "best": ranked[:num],
            "worst": ranked[max(num, len(ranked) - num) :][::-1],
            "random": [others[position] for position in sorted(chosen)],
        }
        cases = {}
        for name, records in groups.items():
            masks = find_masks(
                model.segmenter,
                dataset,
                [record.index for record in records],
                protocol=self.protocols[0],
                threshold=self.config.eval.threshold,
                precision=model.precision,
                device=self.processes.device,
            )
            if records:
                cases[name] = [
                    Case(*dataset.original(record.index), mask, record.sentence, record.iou)
                    for record, mask in zip(records, masks, strict=True)
                ]
        write_image(path, contact_sheet(cases))

    def _describe(
        self, scores: dict[str, Any], sets: dict[str, ReferDataset], precision: str
    ) -> dict[str, Any]:
        """Return the content of ``results.json``: the scores and all that fixes them."""
        config, length = self.config, self.checkpoint.sentence_length(self.config)

        def by_dataset(values: dict[str, Any]) -> Any:
            return values if len(config.data.datasets) > 1 else next(iter(values.values()))

        max_words = by_dataset({one.store.dataset: one.max_tokens for one in sets.values()})
        fingerprint = by_dataset({one.store.dataset: one.fingerprint for one in sets.values()})
        first, *others = [
            {
                "splits": scores[name],
                "protocol": describe_protocol(
                    config, max_words, precision=precision, name=name, length=length
                ),
            }
            for name in self.protocols
        ]
        metadata = self.checkpoint.metadata.items()
        training = {key: x for key, x in metadata if key not in ("config", "hyperparameters")}
        identity = {"file": self.checkpoint.path.name, "sha256": self.checkpoint.sha256}
        return {
            **first,
            "other_protocols": others,
            "data": {"dataset": config.data.dataset, "fingerprint": fingerprint},
            "checkpoint": identity | training,
            "seed": config.train.seed,
            "processes": self.processes.world_size,
            **provenance(self.processes.device),
            "config": config.to_dict(),
        }


def default_output(checkpoint: Path) -> Path:
    """Return ``test`` in the folder of the checkpoint's run, or else ``runs/<its name>-test``."""
    if (checkpoint.parent / "config.yaml").exists():
        return checkpoint.parent / "test"
    return Path("runs") / f"{checkpoint.stem}-test"


def format_tables(results: Mapping[str, Any]) -> str:
    """Format the scores in percent: a table for each protocol, named if there are several.

    A row is a split, of a data set if there are several.
    """
    tables = {}
    for name, splits in splits_by_protocol(results).items():
        several = any("/" in label for label in splits)
        rows = []
        for label, score in splits.items():
            names = label.split("/") if several else [label]
            rows.append([*names, score["count"], *(f"{score[name]:.2f}" for name in COLUMNS)])
        tables[name] = tabulate(
            rows,
            [*["data set"] * several, "split", "sentences", *COLUMNS],
            tablefmt="plain",
            disable_numparse=True,
            colalign=["left"] * (1 + several) + ["right"] * (1 + len(COLUMNS)),
        )
    if len(tables) == 1:
        return next(iter(tables.values()))
    return "\n\n".join(
        f"{name} protocol ({PROTOCOLS[name].number})\n{table}" for name, table in tables.items()
    )


class _Scores(BaseModel, strict=True):
    oIoU: float  # noqa: N815 - as the file has it
    mIoU: float  # noqa: N815


class _Results(BaseModel, strict=True):
    """What every results file has."""

    splits: dict[str, _Scores]
    protocol: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    dirty: bool | None
    checkpoint: dict[str, Any] = {}
    other_protocols: list[dict[str, Any]] = []


def read_results(path: Path) -> tuple[dict[str, Any], Config]:
    """Read a results file; return it and the configuration that was tested.

    Raises:
        ValueError: ``path`` is missing or not a results file of this project.
    """
    try:
        results = json.loads(path.read_text("utf-8"))
        _Results.model_validate(results)
    except OSError as error:
        reason = "is missing" if not path.exists() else f"cannot be read ({error.strerror})"
        raise ValueError(
            f"{path} {reason}; name results files that test.py wrote, such as "
            "runs/mine/test/results.json"
        ) from None
    except ValueError as error:  # of UTF-8, JSON or the model above
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'top level'}: {first['msg']}"
        raise ValueError(
            f"{path} is not a results file of test.py ({reason}); name one that it wrote, or run "
            "it again"
        ) from None
    protocol = results["protocol"]
    if "name" not in protocol:  # written before there was another protocol
        padded_to = protocol.get("max_words")
        results["protocol"] = {"name": "native", "number": 1, "padded_to": padded_to} | protocol
    return results, Config.from_dict(results["config"], source=str(path))


def measured(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List ``protocol`` and ``splits`` of each protocol in a results file, the first one first."""
    return [results, *results.get("other_protocols", [])]


def splits_by_protocol(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of a results file: protocol -> split -> score."""
    return {one["protocol"]["name"]: one["splits"] for one in measured(results)}


def provenance(device: torch.device) -> dict[str, Any]:
    """Return commit, dirty flag (both None outside git), command, versions and machine."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        **_read_commit(),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions,
        "device": gpu or "cpu",
        "hardware": {
            "gpu": gpu,
            "cpu": _read_cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def describe_code(results: Mapping[str, Any]) -> dict[str, str]:
    """Return ``DIRTY`` or ``UNKNOWN`` for ``trained`` and ``tested``, if a commit is not all."""
    training = results.get("checkpoint", {}).get("provenance", {})
    notes = {}
    for verb, code in (("trained", training), ("tested", results)):
        if code.get("dirty"):
            notes[verb] = DIRTY
        elif code.get("commit") is None:
            notes[verb] = UNKNOWN
    return notes


def peak_memory(processes: Processes, earlier: Mapping[str, int]) -> dict[str, int]:
    """Return the most bytes that a process used: ``host``, and ``gpu`` (of tensors; 0 without).

    The largest of all processes counts, and what the run used ``earlier``, before a stop.
    """
    device = processes.device
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    sizes = {"host": peak_size(os.getpid()), "gpu": gpu}
    peaks = [float(max(size, earlier.get(name, 0))) for name, size in sizes.items()]
    return dict(zip(sizes, map(int, processes.largest(peaks)), strict=True))


def _read_cpu() -> str:
    """Return the model of the processor, as Linux calls it; elsewhere its kind."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read_commit() -> dict[str, str | bool | None]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        # The commit of a repository that only contains this folder says nothing about this code.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            is_dirty = bool(git("status", "--porcelain", "-uno"))
            return {"commit": git("rev-parse", "HEAD"), "dirty": is_dirty}
    return {"commit": None, "dirty": None}
