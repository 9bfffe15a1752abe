"""The guard of a refactoring: what it calls the same, and what it sees."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tools.same import commit_of, differences, main, read, write_data


def write(
    folder: Path, *, loss: float = 0.5, weight: float = 1.0, union: int = 9, speed: float = 1
):
    """What a case leaves behind."""
    (folder / "test").mkdir(parents=True)
    steps = [{"step": 1, "train/loss": loss, "samples_per_second": speed}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    save_file({"a": np.ones(3, np.float32), "b": np.float32([weight])}, folder / "best.safetensors")
    splits = {"val": {"oIoU": 100 / union, "seconds": speed}}
    (folder / "test/results.json").write_text(json.dumps({"splits": splits}))
    (folder / "test/val.jsonl").write_text(json.dumps({"index": 0, "union": union}) + "\n")
    return read(folder)


def test_the_clock_makes_no_difference(tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "a", speed=1), write(tmp_path / "b", speed=2)
    assert [*differences(ours, theirs)] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"loss": 0.5000001}, ["row 0 of metrics.jsonl"]),
        ({"weight": 1.0000001}, ["1 of 2 tensors, such as b"]),
        ({"union": 10}, ["scores of val", "rows of val.jsonl"]),
    ],
)
def test_the_last_bit_is_seen(tmp_path: Path, change: dict, named: list[str]) -> None:
    lines = [*differences(write(tmp_path / "a", **change), write(tmp_path / "b"))]
    assert len(lines) == len(named)
    assert all(line.startswith(name) for line, name in zip(lines, named, strict=True))


def test_another_set_of_tensors_or_steps_is_seen(tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "a"), write(tmp_path / "b")
    ours["tensors"].pop("a")
    ours["steps"] = []
    assert len([*differences(ours, theirs)]) == 2


def test_data_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_data(tmp_path / name, seed=1, num_train=2, num_val=1)
    files = [sorted(path for path in (tmp_path / name).rglob("*.*")) for name in ("a", "b")]
    assert len(files[0]) == 4
    pairs = zip(*files, strict=True)
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)


def test_an_unknown_commit_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="no-such-commit"):
        commit_of("no-such-commit")
    assert main(["--base", "no-such-commit"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
