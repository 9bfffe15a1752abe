"""What ``test.py`` does: score splits with a checkpoint and keep numbers, rows and pictures."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from engine.checkpoint import Checkpoint, load_for_inference
from engine.data import open_tests
from engine.evaluator import Result, describe_protocol, evaluate_by, find_masks
from engine.metrics import Record
from engine.precision import scoring_precision
from engine.protocols import PROTOCOLS
from engine.provenance import provenance
from engine.results import splits_by_protocol
from model import Segmenter
from utils.config import Config
from utils.data.dataset import ReferDataset
from utils.distributed import Processes
from utils.files import write_json_lines, write_text
from utils.images import Case, contact_sheet, write_image


@dataclass(frozen=True)
class Scoring:
    """A checkpoint and how to score it; ``output`` gets the files, ``num_pictures`` a kind.

    Of several ``protocols`` the first is the one that pictures show.
    """

    config: Config
    checkpoint: Checkpoint
    output: Path
    processes: Processes
    num_pictures: int
    protocols: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The number format of the forward passes."""
        return scoring_precision(self.config, self.processes.device)

    def run(self, splits: list[str]) -> dict[str, Any]:
        """Score ``splits`` (empty: all but train), write the files, return the results.

        ``results.json`` holds all scores and what fixes them, ``<split>.jsonl`` the sums of every
        sentence, from which all scores can be computed again, ``<split>.png`` the contact sheet.
        Of several data sets each is scored as if it were alone, and its files begin with its name.
        Raises ``ValueError`` for a split that no data set has or a checkpoint that does not fit.
        """
        length = self.checkpoint.sentence_length(self.config)
        sets = open_tests(self.config, splits, length)
        model = load_for_inference(self.checkpoint, self.config, self.processes.device)
        scores: dict[str, dict[str, Any]] = {protocol: {} for protocol in self.protocols}
        for label, dataset in sets.items():
            for protocol, score in self._score(model.segmenter, label, dataset).items():
                scores[protocol][label] = score
        results = self._results(scores, sets, length)
        if self.processes.is_main:
            write_text(self.output / "results.json", json.dumps(results, indent=2) + "\n")
            logger.info(f"written to {self.output}")
        return results

    def _score(
        self, segmenter: Segmenter, label: str, dataset: ReferDataset
    ) -> dict[str, dict[str, Any]]:
        """The scores of a split by protocol, its files written."""
        name = label.replace("/", "-")
        began = time.monotonic()
        results = evaluate_by(
            self.protocols,
            segmenter,
            dataset,
            threshold=self.config.eval.threshold,
            batch_size=self.config.eval.batch_size,
            precision=self.precision,
            processes=self.processes,
            workers=self.config.data.workers,
        )
        seconds = time.monotonic() - began
        if self.processes.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            for protocol, result in results.items():
                ending = "" if protocol == self.protocols[0] else f"-{protocol}"
                rows = (record.to_dict() for record in result.records)
                write_json_lines(self.output / f"{name}{ending}.jsonl", rows)
            first = results[self.protocols[0]]
            if self.num_pictures:
                sheet = self._picture(segmenter, dataset, first)
                write_image(self.output / f"{name}.png", sheet)
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

    def _picture(self, segmenter: Segmenter, dataset: ReferDataset, result: Result) -> np.ndarray:
        """The best, the worst and some random others, none twice."""
        ranked = sorted(result.records, key=lambda record: (-record.iou, record.index))
        num = min(self.num_pictures, (len(ranked) + 1) // 2)
        others = ranked[num : len(ranked) - num]
        chosen = np.random.default_rng(self.config.train.seed).permutation(len(others))[:num]
        groups = {
            "best": ranked[:num],
            "worst": ranked[max(num, len(ranked) - num) :][::-1],
            "random": [others[position] for position in sorted(chosen)],
        }
        cases = {name: self._cases(segmenter, dataset, rows) for name, rows in groups.items()}
        return contact_sheet({name: group for name, group in cases.items() if group})

    def _cases(
        self, segmenter: Segmenter, dataset: ReferDataset, records: list[Record]
    ) -> list[Case]:
        """Each record with its picture, its truth and, computed again, its prediction."""
        masks = find_masks(
            segmenter,
            dataset,
            [record.index for record in records],
            protocol=self.protocols[0],
            threshold=self.config.eval.threshold,
            precision=self.precision,
            device=self.processes.device,
        )
        return [
            Case(*dataset.original(record.index), mask, record.sentence, record.iou)
            for record, mask in zip(records, masks, strict=True)
        ]

    def _results(
        self, scores: dict[str, Any], sets: dict[str, ReferDataset], length: int
    ) -> dict[str, Any]:
        max_words = {one.store.dataset: one.max_words for one in sets.values()}
        fingerprints = {one.store.dataset: one.fingerprint for one in sets.values()}
        apart = ("config", "hyperparameters")
        metadata = self.checkpoint.metadata
        trained = {key: value for key, value in metadata.items() if key not in apart}
        described = {
            name: describe_protocol(
                self.config,
                self._each(max_words),
                precision=self.precision,
                name=name,
                length=length,
            )
            for name in self.protocols
        }
        first, *others = self.protocols
        return {
            "splits": scores[first],
            "protocol": described[first],
            "other_protocols": [
                {"protocol": described[name], "splits": scores[name]} for name in others
            ],
            "data": {
                "dataset": self.config.data.dataset,
                "fingerprint": self._each(fingerprints),
            },
            "checkpoint": {
                "file": self.checkpoint.path.name,
                "sha256": self.checkpoint.sha256,
                **trained,
            },
            "seed": self.config.train.seed,
            "processes": self.processes.world_size,
            **provenance(self.processes.device),
            "config": self.config.to_dict(),
        }

    def _each(self, values: dict[str, Any]) -> Any:
        """By data set, or the one value where ``data.dataset`` is one name."""
        return values if len(self.config.data.datasets) > 1 else next(iter(values.values()))


def default_output(checkpoint: Path) -> Path:
    """``test`` in the folder of the checkpoint's run; outside a run ``runs/<its name>-test``."""
    if (checkpoint.parent / "config.yaml").exists():
        return checkpoint.parent / "test"
    return Path("runs") / f"{checkpoint.stem}-test"


def tables(results: Mapping[str, Any]) -> str:
    """A table for each protocol, under its name where there are several."""
    scores = splits_by_protocol(results)
    if len(scores) == 1:
        return table(next(iter(scores.values())))
    return "\n\n".join(
        f"{name} protocol ({PROTOCOLS[name].number})\n{table(splits)}"
        for name, splits in scores.items()
    )


def table(scores: dict[str, dict[str, Any]]) -> str:
    """The scores in percent, a line for each split, and each data set if there are several."""
    columns = ["oIoU", "mIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]
    names = {label: label.rpartition("/")[::2] for label in scores}
    width = max(len(dataset) for dataset, _ in names.values())
    width = max(width, len("data set")) + 2 if width else 0
    lines = [
        f"{'data set' if width else '':{width}}{'split':8}{'sentences':>10}"
        + "".join(f"{name:>8}" for name in columns)
    ]
    for label, score in scores.items():
        dataset, split = names[label]
        values = "".join(f"{score[name]:8.2f}" for name in columns)
        lines.append(f"{dataset:{width}}{split:8}{score['count']:10}{values}")
    return "\n".join(lines)
