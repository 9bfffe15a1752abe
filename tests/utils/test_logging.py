"""Logs for people and rows for programs; files written whole, outputs checked."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger

from utils.files import check_output, locked, read_json_lines, write_text
from utils.logging import MetricsLog, progress_bar, start_logging


def open_log(
    folder: Path, *, step: int = 0, scored_step: int = 0, wandb: Any = "off"
) -> MetricsLog:
    return MetricsLog(folder, config={"a": 1}, wandb=wandb, step=step, scored_step=scored_step)


def test_rows_are_on_disk_at_once_and_later_ones_go_on_resume(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for step in range(1, 6):
        log.write({"step": step, "train/loss": 0.1})
        log.write({"step": step, "val/oIoU": 1.0})
    assert len(read_json_lines(log.path)) == 10
    with log.path.open("a") as file:
        file.write('{"step": 6, "tra')  # a crash while writing
    open_log(tmp_path, step=4, scored_step=3)
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "val/oIoU" in row] == [1, 2, 3]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_gets_the_rows_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    calls: list[Any] = []
    service = SimpleNamespace(
        log=lambda row, step: calls.append((row, step)), finish=lambda: calls.append("finish")
    )
    fake = SimpleNamespace(init=lambda **options: calls.append(options["mode"]) or service)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = open_log(tmp_path, wandb=mode)
    log.write({"step": 3, "train/loss": 0.1})
    log.close()
    assert calls == [mode, ({"train/loss": 0.1}, 3), "finish"]


def test_wandb_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    open_log(tmp_path).write({"step": 1})


def test_the_first_process_logs_and_others_only_warn(tmp_path: Path, capsys: Any) -> None:
    start_logging(tmp_path)
    logger.info("hello")
    start_logging(rank=1)
    logger.info("quiet")
    logger.warning("odd")
    error = capsys.readouterr().err
    assert "hello" in error and "quiet" not in error and "rank 1: WARNING: odd" in error
    assert (tmp_path / "run.log").read_text().endswith("INFO hello\n")


def test_a_bar_is_for_terminals(capsys: Any) -> None:
    with progress_bar(total=2) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, folder = tmp_path / "x.json", tmp_path / "taken.png"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udcff")
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(folder, "text")
    assert path.read_text() == "old" and set(tmp_path.iterdir()) == {path, folder}


def test_an_output_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    check_output("--write", path, [".md"])
    for wrong in ("page.txt", "folder.md", "none/page.md"):
        (tmp_path / "folder.md").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=re.escape(str((tmp_path / wrong).parent))):
            check_output("--write", tmp_path / wrong, [".md"])
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        check_output("--write", path)
    assert not path.exists()


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, "taken"), pytest.raises(ValueError, match="taken"), locked(path, "taken"):
        pass
    with locked(path, "taken"):
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("line", [b"[2]", b'{"step": 2', b"nonsense", b"\xff", b"[" * 100_000])
def test_a_line_that_is_not_an_object_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}: line 2")):
        read_json_lines(path)
