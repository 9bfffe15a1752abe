"""The records of runs in ``results/``: a file of JSON and a log each, written once."""

import argparse
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import State, load_state, read_checkpoint
from engine.comparison import OF_A_RUN, read_runs
from engine.differences import differences, flatten, list_changes
from engine.evaluator import describe_protocol
from engine.parameters import count
from engine.provenance import describe_code
from engine.run import is_finished
from model.backbones import sha256_of
from utils.config import Config, load_config
from utils.files import write_text

CONFIGS = Path(__file__).resolve().parent.parent / "config"
RESULTS = Path("results")
# A test may set these apart from the training that it records.
OF_A_TEST = (
    "run.",
    "eval.batch_size",
    "eval.threshold",
    "eval.precision",
    "data.root",
    "data.workers",
    "model.backbone.weights",
)
# These leave a run what its configuration file says. The threshold is compared with the protocol.
OF_NO_MATTER = (
    "run.",
    "train.seed",
    "train.micro_batch",
    "eval.batch_size",
    "eval.threshold",
    "data.root",
    "data.workers",
    "model.backbone.weights",
)
# What a configuration may set of a protocol; the rest of it must be that of the project.
OF_A_CONFIG = ("image_size", "max_words", "padded_to", "precision")


@dataclass(frozen=True)
class Recording:
    """A run that is about to be recorded: where, under which method, from which files."""

    path: Path
    method: str
    config_file: str | None
    log: Path
    state: State

    def write(self, results: Mapping[str, Any]) -> str:
        """Write the record of ``results`` and its log, and say so; both stay if they are there.

        Raises:
            ValueError: if the run is recorded with other scores.
        """
        if self.path.exists():
            if _scores(read_runs([self.path])[0].results) != _scores(results):
                raise ValueError(
                    f"{self.path} records this run with other splits, scores or protocol; records "
                    "are never edited: give --record another name"
                )
            return f"already recorded in {self.path}"
        config = Config.from_dict(results["config"])
        sizes = count(config)
        names = ("backbone", "attached", "head", "trainable", "frozen")
        record = {
            "method": self.method,
            "config_file": self.config_file,
            "config_sha256": hash_of(config),
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
        told = [" ".join(item) for item in describe_code(record).items()]
        if self.config_file is not None:
            told = changes_of(record, CONFIGS.parent / self.config_file) + told
        return "\n  ".join([f"recorded in {self.path}", *(f"marked: {mark}" for mark in told)])


def open_recording(
    checkpoint: Path, config: Config, name: str = "", *, folder: Path = RESULTS
) -> Recording:
    """Find what is needed to record the run of ``checkpoint``, tested with ``config``.

    The record is called ``name``, or as the configuration file of the run, and its seed.

    Raises:
        ValueError: if the run's folder is not whole, it has not ended, was trained with another
            ``config``, has no name, or another run is recorded under it.
    """
    read = read_checkpoint(checkpoint)
    trained, metadata = read.config, read.metadata
    _check_test(config, trained, checkpoint)
    state = _read_end(checkpoint.parent)
    file = _config_file(metadata["provenance"]["command"])  # only runs have last.pt, and this
    method = name or _name(trained, file)
    if not re.fullmatch(r"[\w.+-]+", method) or "-seed" in method:
        raise ValueError(
            f"--record {method}: should be of letters, digits and . _ + -, without '-seed', which "
            "is added"
        )
    path = folder / f"{method}-seed{trained.train.seed}.json"
    if path.exists():
        recorded = read_runs([path])[0].results["checkpoint"]["sha256"]
        if recorded != sha256_of(checkpoint):
            raise ValueError(
                f"{path} records another run, with checkpoint {recorded[:12]}; records are never "
                "edited: give --record another name"
            )
    config_file = None if file is None else f"config/{file.as_posix()}"
    return Recording(path, method, config_file, checkpoint.parent / "run.log", state)


def hash_of(config: Config) -> str:
    """SHA-256 of what all seeds of a method have in common."""
    values = flatten(config.to_dict())
    common = {key: value for key, value in values.items() if not key.startswith(OF_A_RUN)}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def changes_of(record: Mapping[str, Any], path: Path) -> list[str]:
    """Sentences on where a run departs from its configuration file and from the protocol."""
    measured = record["protocol"]
    ours = describe_protocol(Config(), None, precision="", name=measured["name"], length=0)
    unequal = differences(measured, ours, apart_from=OF_A_CONFIG)
    return _departures(Config.from_dict(record["config"]), path) + [
        f"protocol: {key} is {mine!r}, the project's is {theirs!r}"
        for key, (mine, theirs) in unequal.items()
    ]


def _departures(config: Config, path: Path) -> list[str]:
    """Sentences on keys that are not as in a file, where they touch the numbers.

    One data set in the place of another is none.
    """
    unequal = differences(config.to_dict(), load_config(path).to_dict(), apart_from=OF_NO_MATTER)
    return [
        f"{key} is {mine!r}, {theirs!r} in the file"
        for key, (mine, theirs) in unequal.items()
        if not (key == "data.dataset" and isinstance(mine, str) and isinstance(theirs, str))
    ]


def _scores(results: Mapping[str, Any]) -> Any:
    """What is the same when a run is tested twice."""
    measured = [results, *results.get("other_protocols", [])]
    scores = [
        {
            split: {name: value for name, value in scores.items() if name != "seconds"}
            for split, scores in one["splits"].items()
        }
        for one in measured
    ]
    return results["checkpoint"]["sha256"], [one["protocol"] for one in measured], scores


def _check_test(config: Config, trained: Config, checkpoint: Path) -> None:
    unequal = differences(config.to_dict(), trained.to_dict(), apart_from=OF_A_TEST)
    if unequal:
        raise ValueError(
            f"{checkpoint}: --record keeps a run as it was trained, but {list_changes(unequal)}; "
            "leave that out, or --record"
        )


def _read_end(folder: Path) -> State:
    """The last state of a run that has ended."""
    for name in ("last.pt", "run.log"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}: --record needs the folder of a run, with all that "
                "train.py wrote there"
            )
    state = load_state(folder / "last.pt")
    if not is_finished(state, Config.from_dict(state["config"], source=str(folder / "last.pt"))):
        raise ValueError(
            f"{folder}: this run stands at step {state['step']} of {state['total_steps']}; "
            "--record keeps those that have ended"
        )
    return state


def _config_file(command: str) -> Path | None:
    """The file that a training command names, as a path in ``config/``; None for another."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    path = parser.parse_known_args(shlex.split(command))[0].config
    path = None if path is None else (CONFIGS.parent / path).resolve()
    return path.relative_to(CONFIGS) if path and path.is_relative_to(CONFIGS) else None


def _name(config: Config, file: Path | None) -> str:
    """``etris_vitb16`` of that file; with another data set ``etris_vitb16-refcoco+``."""
    if file is None:
        raise ValueError(
            "--record needs a name, such as --record mine: the run was not begun with a file of "
            "config/"
        )
    if departures := _departures(config, CONFIGS / file):
        raise ValueError(
            f"--record needs a name, such as --record mine: of config/{file.as_posix()}, "
            f"{'; '.join(departures)}"
        )
    name = "-".join(file.with_suffix("").parts)
    names = config.data.datasets
    kept = names == load_config(CONFIGS / file).data.datasets
    return name if kept else f"{name}-{'-'.join(names)}"
