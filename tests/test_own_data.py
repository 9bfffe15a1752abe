"""docs/own-data.md keeps its word: its example runs from the pictures to the scores."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
NEEDED = ("config", "pretrain", "tools", "train.py", "test.py")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_example_packs_trains_and_tests(tmp_path: Path) -> None:
    for name in NEEDED:
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    (script,) = blocks("python")
    run("python", "-c", script)
    shown = {line.split()[1]: run("bash", "-c", line) for line in blocks("console")[0].splitlines()}
    begun = (tmp_path / "datasets/mine/annotations.jsonl").read_text().splitlines()
    assert all(line in TEXT for line in begun[:2])
    rows = [line.split()[:5] for line in shown["tools/prepare_datasets.py"].splitlines()]
    assert ["mine", "train", "4", "6", "2"] in rows and ["mine", "val", "2", "3", "1"] in rows
    assert (tmp_path / "runs/inspect/mine-val.png").is_file()
    steps = (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] == 2
    scores = json.loads((tmp_path / "runs/mine/test/results.json").read_text())["splits"]
    assert scores["val"]["count"] == 3
    assert shown["test.py"].splitlines()[1].split()[:2] == ["val", "3"]
