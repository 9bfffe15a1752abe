"""The command: generates, packs, reports, and never redoes finished work unasked."""

import functools
from pathlib import Path

import pytest

from tools.prepare_datasets import main
from utils.data.demo import writer
from utils.data.store import ReferStore


@pytest.fixture(autouse=True)
def _small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(writer.write_demo, num_train_objects=20, num_test_objects=8)
    monkeypatch.setattr(writer, "write_demo", small)


def prepare(root: Path, *arguments: str) -> int:
    return main(["--root", str(root), *arguments])


def snapshot(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_generates_packs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, "--dataset", "demo") == 0
    shown = capsys.readouterr().out
    header = ReferStore(tmp_path, "demo").header
    for split, count in header["splits"].items():
        row = ["demo", split, *map(str, count.values())]
        assert row in [line.split() for line in shown.splitlines()]
    for name in ("demo", "demo-images"):
        size = (tmp_path / "lmdb" / f"{name}.lmdb").stat().st_size
        assert f"{name}.lmdb: {size:,} bytes" in shown


def test_finished_work_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, "--dataset", "demo")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert prepare(tmp_path, "--dataset", "demo") == 0
    assert snapshot(tmp_path) == before
    assert "already packed" in capsys.readouterr().out
    (tmp_path / "lmdb/demo.lmdb").unlink()
    assert prepare(tmp_path, "--dataset", "demo") == 0
    assert "already generated" in capsys.readouterr().out
    assert snapshot(tmp_path / "demo") == {
        path: time for path, time in before.items() if path.is_relative_to(tmp_path / "demo")
    }


def test_force_makes_the_same_again(tmp_path: Path) -> None:
    prepare(tmp_path, "--dataset", "demo")
    before, header = snapshot(tmp_path), ReferStore(tmp_path, "demo").header
    assert prepare(tmp_path, "--dataset", "demo", "--force") == 0
    after = snapshot(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[path] != before[path] for path in before)
    assert ReferStore(tmp_path, "demo").header == header


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refcoco+"], "refcoco+/refs(unc).p is missing; put it there"),
        (["demo", "refcok"], "no data set 'refcok'; known are demo, refcoco, "),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert prepare(tmp_path, "--dataset", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
