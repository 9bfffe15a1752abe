"""Records of runs in ``results/``: a JSON file and a log for each run, written once."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import (
    State,
    describe_differences,
    find_differences,
    flatten,
    is_finished,
    load_state,
    read_checkpoint,
)
from engine.evaluator import describe_protocol
from engine.parameters import count
from engine.results import describe_code, measured, read_results
from utils.config import Config, load_config
from utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("results")
# Keys in which the seeds of one method may differ.
KEYS_OF_A_RUN = ("train.seed", "run.", "data.root", "data.workers")
# Keys that change neither the training of a model nor its logits.
KEYS_WITHOUT_EFFECT: tuple[str, ...] = ("run.", "data.root", "data.workers")
KEYS_WITHOUT_EFFECT += ("eval.batch_size", "eval.threshold", "model.backbone.weights")


@dataclass(frozen=True)
class Recording:
    """A finished run that can be recorded as ``path``; ``log`` and ``state`` are its own."""

    path: Path
    method: str
    config_file: str | None
    log: Path
    state: State

    def write(self, results: Mapping[str, Any]) -> str:
        """Write ``results`` and the log as a record, unless they are there; return a report.

        Raises:
            ValueError: if the run is recorded with other scores.
        """
        if self.path.exists():
            if _scores(read_results(self.path)[0]) != _scores(results):
                raise ValueError(
                    f"{self.path} records this run with other splits, scores or protocol; records "
                    "are never edited: give --record another name"
                )
            return f"already recorded in {self.path}"
        sizes = count(Config.from_dict(results["config"]))
        names = ("backbone", "attached", "head", "trainable", "frozen")
        keys = flatten(results["config"])
        shared = {key: x for key, x in keys.items() if not key.startswith(KEYS_OF_A_RUN)}
        config_bytes = json.dumps(shared, sort_keys=True).encode()
        record = {
            "method": self.method,
            "config_file": self.config_file,
            "config_sha256": hashlib.sha256(config_bytes).hexdigest(),
            "parameters": {name: sizes[name] for name in names},
            "training": {
                "steps": self.state["step"],
                "hours": round(self.state["elapsed"] / 3600, 4),
                "peak_memory": self.state.get("peak_memory"),  # older runs lack it
                "processes": len(self.state["random_states"]),
            },
            **results,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.log, self.path.with_suffix(".log"))
        write_text(self.path, json.dumps(record, indent=2) + "\n")
        marks = list_departures(record) + [" ".join(mark) for mark in describe_code(record).items()]
        return "\n  ".join([f"recorded in {self.path}", *(f"marked: {mark}" for mark in marks)])


def open_recording(
    checkpoint: Path, config: Config, name: str = "", *, folder: Path = RESULTS
) -> Recording:
    """Prepare to record the run of ``checkpoint``, tested with ``config``, in ``folder``.

    The record is called by its seed and ``name``, by default the name of the configuration file.

    Raises:
        ValueError: if the run is not complete, was trained with another ``config`` or has no name,
            or if another run is recorded under that name.
    """
    saved, run = read_checkpoint(checkpoint), checkpoint.parent
    trained = saved.config
    allowed = (*KEYS_WITHOUT_EFFECT, "eval.precision")
    if changed := find_differences(config.to_dict(), trained.to_dict(), ignored=allowed):
        raise ValueError(
            f"{checkpoint}: --record keeps a run as it was trained, but "
            f"{describe_differences(changed)}; remove these changes, or --record"
        )
    last, log = run / "last.pt", run / "run.log"
    for path in (last, log):
        if not path.is_file():
            raise ValueError(
                f"{run} has no {path.name}: --record needs the folder of a run, with all that "
                "train.py wrote there"
            )
    state = load_state(last)
    if not is_finished(state, Config.from_dict(state["config"], source=str(last))):
        raise ValueError(
            f"{run}: this run is at step {state['step']} of {state['total_steps']}; --record keeps "
            "runs that have ended"
        )
    config_file = saved.metadata.get("config_file")  # checkpoints of earlier versions lack it
    method = check_method_name(name or _method_name(trained, config_file))
    record = folder / f"{method}-seed{trained.train.seed}.json"
    if record.exists():
        recorded = read_results(record)[0]["checkpoint"]["sha256"]
        if recorded != saved.sha256:
            raise ValueError(
                f"{record} records another run, with checkpoint {recorded[:12]}; records are never "
                "edited: give --record another name"
            )
    return Recording(record, method, config_file, log, state)


def check_method_name(name: str) -> str:
    """Return ``name`` if files can be called ``<name>-seed0``; ``ValueError`` if not."""
    if not re.fullmatch(r"[\w.+-]+", name) or "-seed" in name:
        raise ValueError(
            f"the name {name!r} should consist of letters, digits, '_', '.', '+' and '-', without "
            "'-seed', which is added"
        )
    return name


def list_departures(record: Mapping[str, Any]) -> list[str]:
    """List where a run departs from its configuration file and from the project's protocol."""
    if record["config_file"] is None:
        return []
    used = record["protocol"]
    ours = describe_protocol(Config(), None, precision="", name=used["name"], length=0)
    of_a_config = ("image_size", "max_words", "padded_to", "precision")
    unequal = find_differences(used, ours, ignored=of_a_config)
    return _changed_keys(Config.from_dict(record["config"]), record["config_file"]) + [
        f"protocol: {key} is {value!r}, the project's is {default!r}"
        for key, (value, default) in unequal.items()
    ]


def _changed_keys(config: Config, config_file: str) -> list[str]:
    """List the keys that change the numbers and are not as in the file; not another data set."""
    written = load_config(ROOT / config_file).to_dict()
    # the protocol has the threshold
    free = (*KEYS_WITHOUT_EFFECT, "train.seed", "train.micro_batch")
    unequal = find_differences(config.to_dict(), written, ignored=free)
    return [
        f"{key} is {value!r}, {original!r} in the file"
        for key, (value, original) in unequal.items()
        if not (key == "data.dataset" and isinstance(value, str) and isinstance(original, str))
    ]


def _scores(results: Mapping[str, Any]) -> Any:
    """Return what is the same when a run is tested twice."""
    by_protocol = [
        (one["protocol"], {split: {**x, "seconds": 0} for split, x in one["splits"].items()})
        for one in measured(results)
    ]
    return results["checkpoint"]["sha256"], by_protocol


def _method_name(config: Config, config_file: str | None) -> str:
    """``etris_vitb16`` for that file; with another data set ``etris_vitb16-refcoco+``."""
    if config_file is None:
        raise ValueError(
            "--record needs a name, such as --record mine: the run does not name a file of config/"
        )
    if changed := _changed_keys(config, config_file):
        raise ValueError(
            f"--record needs a name, such as --record mine: of {config_file}, {'; '.join(changed)}"
        )
    name = "-".join(Path(config_file).with_suffix("").parts[1:])
    datasets = config.data.datasets
    is_same = datasets == load_config(ROOT / config_file).data.datasets
    return name if is_same else f"{name}-{'-'.join(datasets)}"
