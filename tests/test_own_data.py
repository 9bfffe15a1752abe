"""The example of docs/own-data.md runs, from the pictures to the scores."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_example_packs_trains_and_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("config", "pretrain"):
        Path(name).symlink_to(ROOT / name)
    (script,) = blocks("python")
    exec(compile(script, "docs/own-data.md", "exec"), {})
    begun = Path("datasets/mine/annotations.jsonl").read_text().splitlines()
    assert all(line in TEXT for line in begun[:2])
    shown = {}
    for line in blocks("console")[0].splitlines():
        _, *words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        assert ended.value.code == 0
        shown[words[0]] = capsys.readouterr().out
    rows = [line.split()[:5] for line in shown["tools/prepare_datasets.py"].splitlines()]
    assert ["mine", "train", "4", "6", "2"] in rows and ["mine", "val", "2", "3", "1"] in rows
    assert Path("runs/inspect/mine-val.png").is_file()
    steps = Path("runs/mine/metrics.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] == 2
    scores = json.loads(Path("runs/mine/test/results.json").read_text())["splits"]
    assert scores["val"]["count"] == 3
    assert shown["test.py"].splitlines()[1].split()[:2] == ["val", "3"]
