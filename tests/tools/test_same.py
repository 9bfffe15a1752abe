"""The guard of a refactoring: what counts as the same, and which differences it finds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tools.same import Outcome, find_differences, main, read_outcome, write_data


def write(
    folder: Path, *, loss: float = 0.5, weight: float = 1.0, union: int = 9, speed: float = 1
) -> Outcome:
    """Write the files of a case and read them."""
    (folder / "test").mkdir(parents=True)
    step = {"step": 1, "train/loss": loss, "samples_per_second": speed}
    (folder / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    save_file({"a": np.ones(3, np.float32), "b": np.float32([weight])}, folder / "best.safetensors")
    splits = {"val": {"oIoU": 100 / union, "seconds": speed}}
    (folder / "test/results.json").write_text(json.dumps({"splits": splits}))
    (folder / "test/val.jsonl").write_text(json.dumps({"index": 0, "union": union}) + "\n")
    return read_outcome(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"speed": 2.0}, []),  # a measured time
        ({"loss": 0.5000001}, ["1 of 1 rows of metrics.jsonl, such as 0: {"]),
        ({"weight": 1.0000001}, ["1 of 2 tensors, such as b"]),
        ({"union": 10}, ["1 of 1 scores, such as val: {", "1 of 1 files, such as val.jsonl"]),
    ],
)
def test_the_last_bit_is_seen(tmp_path: Path, change: dict[str, Any], found: list[str]) -> None:
    lines = [*find_differences(write(tmp_path / "a", **change), write(tmp_path / "b"))]
    assert all(line.startswith(start) for line, start in zip(lines, found, strict=True))


def test_another_set_of_tensors_or_steps_is_seen(tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "a"), write(tmp_path / "b")
    ours["tensors"].pop("a")
    theirs["rows of metrics.jsonl"].clear()
    assert len([*find_differences(ours, theirs)]) == 2


def test_data_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_data(tmp_path / name, seed=1, num_train=2, num_val=1)
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b")]
    assert len(files[0]) == 4
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))


def test_an_unknown_commit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", "no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().err
