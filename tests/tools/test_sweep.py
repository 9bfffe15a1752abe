"""Sweeps: what is run, skipped, refused and stopped, what a failure leaves, one tiny real run."""

import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from filelock import FileLock

from engine import precision
from engine.stop import StopSignal
from tools import sweep
from tools.study import sweep as runner
from tools.study.sweep import open_slots
from tools.study.sweep_config import SweepConfig
from utils.cli import Commands
from utils.config import Config, load_config

SCORES = {"frozen": 60.0, "etris": 70.0, "etris.32": 80.0, "frozen.x1": 50.0, "frozen.x2": 55.0}
MODEL = {"backbone": {"name": "demo-vit"}}
METHOD = {"data": {"dataset": "demo", "image_size": 80}, "model": MODEL}
FOLDER = Path("runs/sweep-mine")
END = {"step": 9, "scored_step": 9, "total_steps": 9, "elapsed": 1.0}
BOTH = [f"{script} {name}-seed0" for name in ("frozen", "etris") for script in ("train", "test")]


def options(words: list[str]) -> dict[str, list[str]]:
    """Return the words after each option."""
    found: dict[str, list[str]] = {}
    for word in words[1:]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


class Scripts:
    """Takes the place of train.py and test.py: notes each run and writes what they would write."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.environments: list[str] = []
        self.failing = ""

    def __call__(self, words: list[str], *, output: Any, environment: dict[str, str]) -> int:
        found = options(words)
        config = load_config(found["--config"][0], found["--opts"])
        folder = Path(config.run.folder or "")
        self.called.append(f"{Path(words[0]).stem} {folder.name}")
        self.environments.append(environment["OMP_NUM_THREADS"])
        if self.called[-1] == self.failing:
            print("error: what it says", file=output, flush=True)
            return 2
        if words[0] == "train.py":
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(config.to_yaml())
            (folder / "best.safetensors").write_text(folder.name)
            torch.save(END, folder / "last.pt")
        else:
            write_results(config, folder, found["--splits"])
        if "--record" in found:
            Path("results").mkdir(exist_ok=True)
            record = Path(f"results/{found['--record'][0]}-seed{config.train.seed}.json")
            record.write_bytes((folder / "test/results.json").read_bytes())
        return 0


def write_results(config: Config, folder: Path, splits: list[str]) -> None:
    oIoU = SCORES[folder.name.partition("-")[0]] + config.train.seed  # noqa: N806
    checkpoint = (folder / "best.safetensors").read_bytes()
    results = {
        "splits": {split: {"oIoU": oIoU, "mIoU": 50.0} for split in splits},
        "protocol": {"precision": "fp32"},
        "data": {},
        "dirty": False,
        "checkpoint": {"sha256": hashlib.sha256(checkpoint).hexdigest()},
        "config": config.to_dict(),
    }
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test/results.json").write_text(json.dumps(results))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two configurations, in which sweeps run, on a machine without GPUs."""
    (tmp_path / "frozen.yaml").write_text(json.dumps(METHOD))  # JSON is YAML
    bridger = {"name": "bridger", "dim": 64, "heads": 4}
    etris = METHOD | {"model": MODEL | {"bridges": [bridger]}}
    (tmp_path / "etris.yaml").write_text(json.dumps(etris))
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(precision, "FAST_BF16_FLAGS", set())
    monkeypatch.chdir(tmp_path)  # main() goes there
    return tmp_path


@pytest.fixture
def scripts(project: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    scripts = Scripts()
    monkeypatch.setattr(runner, "draw_chart", lambda *_: None)  # slow; the real run draws it
    monkeypatch.setattr(Commands, "run", lambda self, words, **how: scripts(words, **how))
    return scripts


@pytest.fixture
def go(project: Path) -> Callable[..., int]:
    """``go("--dry-run", seeds=[1])``: run a sweep of both configurations with those keys."""

    def run(*argv: str, **keys: Any) -> int:
        defaults = {"configs": ["frozen.yaml", "etris.yaml"], "splits": ["val"], "parallel": 1}
        (project / "mine.yaml").write_text(json.dumps(defaults | keys))
        return sweep.main(["mine.yaml", *argv])

    return run


def test_jobs_run_once_and_are_compared(scripts, go, capsys) -> None:
    assert go(seeds=[0, 1], opts={"train.max_steps": 7}, threads=3) == 0
    assert scripts.called == BOTH + [name.replace("seed0", "seed1") for name in BOTH]
    assert scripts.environments == ["3"] * 8
    config = load_config(FOLDER / "etris-seed1/config.yaml")
    assert (config.train.max_steps, config.train.seed) == (7, 1)
    out = capsys.readouterr().out
    assert re.search(r"^frozen-seed1: oIoU val 61\.00 \(0 s; 1 to go, about 0 s\)$", out, re.M)
    page = (FOLDER / "comparison.md").read_text()
    for text in (out, page):
        assert re.search(r"^\| frozen \| 0 \| [\d,]+ \| 2 \| 60\.50 \(60\.00–61\.00\)", text, re.M)
        assert re.search(r"^\| etris \|.* \| 70\.50 \(70\.00–71\.00\) \| 50\.00", text, re.M)
    assert "python tools/sweep.py mine.yaml" in page and "](comparison.png)" in page
    log = (FOLDER / "frozen-seed0.log").read_text()
    assert re.findall(r"^\$ python (\w+\.py)", log, re.M) == ["train.py", "test.py"]

    scripts.called.clear()
    assert go(seeds=[0, 1, 2], opts={"train.max_steps": 7, "data.workers": 1}) == 0
    assert scripts.called == [name.replace("seed0", "seed2") for name in BOTH]


def test_names_and_keys_of_a_method(scripts, go) -> None:
    small = {"config": "etris.yaml", "name": "etris.32", "opts": {"model.bridges.0.dim": 32}}
    opts = {"train.lr": 1e-5, "model.bridges.0.dim": 16, "data.root": "a, b"}
    assert go(configs=[small], opts=opts, folder="runs/some", record=True) == 0
    config = load_config("runs/some/etris.32-seed0/config.yaml")
    assert (config.train.lr, config.model.bridges[0]["dim"]) == (1e-5, 32)
    assert config.data.root == "a, b"
    assert Path("results/some-etris.32-seed0.json").is_file()


def test_every_method_is_trained_with_every_override(scripts, go, capsys) -> None:
    slow = {"config": "frozen.yaml", "opts": {"train.lr": 0.2, "train.epochs": 3}}
    overrides = {"x1": {"train.lr": 0.5}, "x2": {"train.warmup_steps": 7}}
    assert go("--dry-run", configs=[slow, "etris.yaml"], overrides=overrides, seeds=[0, 1]) == 0
    assert capsys.readouterr().out.endswith("8 jobs, 0 done\n")
    assert go(configs=[slow], overrides=overrides) == 0
    assert scripts.called[::2] == ["train frozen.x1-seed0", "train frozen.x2-seed0"]
    one, two = (load_config(FOLDER / f"frozen.{x}-seed0/config.yaml").train for x in overrides)
    assert (one.lr, one.epochs, two.lr, two.warmup_steps) == (0.5, 3, 0.2, 7)
    assert re.search(r"^\| frozen\.x2 \| 0 \|.* 55\.00 \|", capsys.readouterr().out, re.M)


def test_a_job_is_done_when_it_is_recorded(scripts, go, capsys) -> None:
    assert go() == 0
    scripts.called.clear()
    assert go(record=True) == 0  # results without record are not enough
    assert scripts.called == BOTH
    table = capsys.readouterr().out.rpartition("\n\n|")[2]
    shutil.rmtree("runs")  # another machine, or a clone, has records and no folder of a run
    Path("results/sweep-mine-etris-seed0.json").unlink()
    scripts.called.clear()
    assert go(record=True) == 0
    assert scripts.called == BOTH[2:]
    out = capsys.readouterr().out
    assert "2 jobs, 1 done, 1 at a time on the CPU, in runs/sweep-mine and results/" in out
    assert out.rpartition("\n\n|")[2] == table
    assert "| frozen |" in (FOLDER / "comparison.md").read_text()


def test_another_precision_than_before_is_reported_before_it_runs(
    scripts, go, project: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    assert "note:" not in capsys.readouterr().out
    (project / "flags").write_text("flags : fpu amx_bf16")
    monkeypatch.setattr(precision, "CPU_LISTING", project / "flags")
    monkeypatch.setattr(precision, "FAST_BF16_FLAGS", {"amx_bf16"})
    assert go() == 0
    assert re.search(r"note: .* fp32, .* bf16 .*etris-seed0: oIoU", capsys.readouterr().out, re.S)


RECORD = "results/sweep-mine-frozen-seed0.json"
CHANGED_LR = "train.lr is 0.5, was 0.0001"


@pytest.mark.parametrize(
    ("remaining", "keys", "values"),
    [
        (RECORD, {"opts": {"train.lr": 0.5}}, (RECORD, CHANGED_LR)),
        (RECORD, {"splits": ["val", "testA"]}, (RECORD, "testA")),
        (f"{FOLDER}/frozen-seed0/last.pt", {"opts": {"train.lr": 0.5}}, ("seed0", CHANGED_LR)),
        (f"{FOLDER}/frozen-seed0/test", {"opts": {"train.lr": 0.5}}, ("seed0", CHANGED_LR)),
    ],
)
def test_files_of_another_run_are_refused_before_any_training(
    scripts, go, capsys, remaining: str, keys: dict[str, Any], values: tuple[str, str]
) -> None:
    record = remaining == RECORD
    assert go(configs=["frozen.yaml"], record=record) == 0
    scripts.called.clear()
    if record:
        shutil.rmtree("runs")
    elif remaining.endswith("last.pt"):
        shutil.rmtree(FOLDER / "frozen-seed0/test")
    else:
        (FOLDER / "frozen-seed0/last.pt").unlink()
    assert go(record=record, **keys) == 2
    error = capsys.readouterr().err
    assert all(value in error for value in values) and error.count("\n") == 1
    assert scripts.called == []


@pytest.mark.parametrize(
    "change", ["best.safetensors", "last.pt", "splits", "threshold", "deleted"]
)
def test_results_of_something_else_do_not_count(scripts, go, capsys, change: str) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    folder = FOLDER / "frozen-seed0"
    if change == "best.safetensors":
        (folder / change).write_text("trained again")
    elif change == "last.pt":
        torch.save(END | {"step": 3, "scored_step": 3}, folder / "last.pt")
    elif change == "threshold":
        text = (folder / "test/results.json").read_text()
        (folder / "test/results.json").write_text(text.replace("0.35", "0.5"))
    elif change == "deleted":  # these are large, and the results are enough
        (folder / "best.safetensors").unlink()
        (folder / "last.pt").unlink()
    splits = ["val", "testA"] if change == "splits" else ["val"]
    capsys.readouterr()
    assert go("--dry-run", configs=["frozen.yaml"], splits=splits) == 0
    state = "done   " if change == "deleted" else "started"
    assert capsys.readouterr().out.startswith(f"{state} python train.py --config frozen.yaml")


@pytest.mark.parametrize("failing", ["train frozen-seed0", "test frozen-seed0"])
def test_a_failure_does_not_stop_the_others(scripts, go, capsys, failing: str) -> None:
    scripts.failing = failing
    assert go(configs=["frozen.yaml"]) == 1
    assert "|" not in capsys.readouterr().out and not (FOLDER / "comparison.md").exists()
    assert go() == 1
    assert scripts.called[-2:] == BOTH[2:]
    out, error = capsys.readouterr()
    script = failing.split()[0]
    assert f"frozen-seed0: failed: {script}.py ended with 2: error: what it says (" in out
    assert "missing: frozen-seed0" in out and "| etris |" in out
    assert error == "failed: frozen-seed0, log: runs/sweep-mine/frozen-seed0.log\n"
    assert "missing: frozen-seed0" in (FOLDER / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({"sedes": [0]}, "mine.yaml: top level: no key 'sedes' (value [0]); did you mean 'seeds'?"),
        ({"configs": [{"config": "frozen.yaml", "nmae": "x"}]}, "did you mean 'name'?"),
        ({"configs": [{"name": "x"}]}, "configs.0: {'name': 'x'}: its keys: config: is missing"),
        ({"configs": [3]}, "configs.0: 3: "),
        ({"configs": []}, "mine.yaml: configs: []: "),
        ({"configs": ["etris.yaml"] * 2}, "'etris'"),
        ({"configs": [{"config": "etris.yaml", "name": "a-seed0"}]}, "a-seed0"),
        ({"folder": "runs/a b"}, "runs/a b"),
        ({"seeds": [0, 0]}, "seeds: [0, 0]: duplicate 0"),
        (
            {"splits": ["vall"]},
            "mine.yaml: splits: no split 'vall' in demo; choose from",
        ),
        ({"opts": {"train.max_step": 3}}, "mine.yaml: opts: train.max_step=3: "),
        ({"folder": "etris.yaml"}, "folder: cannot write to etris.yaml (File exists)"),
        ({"opts": {"train.seed": 3}}, "train.seed"),
        ({"overrides": {"a": {"run.folder": "x"}}}, "run.folder"),
        ({"overrides": {"a": {"train.lr": "x"}}}, "mine.yaml: opts: train.lr=x: train.lr: 'x'"),
        ({"parallel": 0}, "parallel: 0: "),
    ],
)
def test_mistakes_are_reported_before_anything_runs(
    scripts, go, capsys, keys: dict[str, Any], value: str
) -> None:
    assert go(**keys) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and value in error and error.count("\n") == 1
    assert scripts.called == []


def test_two_sweeps_do_not_share_a_folder(scripts, go, capsys) -> None:
    FOLDER.mkdir(parents=True)
    with FileLock(FOLDER / "sweep.lock"):
        assert go() == 2
    assert f"{FOLDER}: another sweep" in capsys.readouterr().err
    assert scripts.called == []


@pytest.mark.parametrize(
    ("num_gpus", "visible", "parallel", "threads", "expected"),
    [
        (3, "", "auto", 1, "0 1 2"),
        (3, "5,7,9", "auto", 1, "5 7 9"),
        (3, "5,7,9", 4, 1, "5 7 9 5"),
        (0, "", "auto", 2, "2 2 2"),  # 7 cores
        (0, "", 2, 3, "3 3"),
    ],
)
def test_each_job_has_a_gpu_or_threads(
    monkeypatch, num_gpus: int, visible: str, parallel: Any, threads: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    keys = {"configs": ["a"], "splits": ["val"], "folder": "f"}
    slots = open_slots(SweepConfig(**keys, parallel=parallel, threads=threads))
    name = "CUDA_VISIBLE_DEVICES" if num_gpus else "OMP_NUM_THREADS"
    assert slots == [{name: value} for value in expected.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_jobs_save_and_starts_no_other(
    go, project: Path, capsys, number: int
) -> None:
    (project / "train.py").write_text(
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(0.2); print('saved', flush=True); sys.exit(128 + number)\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n"
        "print('ready', flush=True); time.sleep(30)\n"
    )
    logs = [FOLDER / "frozen-seed0.log", FOLDER / "etris-seed0.log"]
    handler = signal.getsignal(signal.SIGINT)

    def signal_when_ready() -> None:
        while not all(log.exists() and "ready" in log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=signal_when_ready, daemon=True)
    thread.start()
    assert go(parallel=2, seeds=[0, 1]) == 128 + number
    assert [log.read_text().splitlines()[-1] for log in logs] == ["saved", "saved"]
    assert sorted(FOLDER.glob("*.log")) == sorted(logs)
    out = capsys.readouterr().out
    assert out.count(": stopped (") == 2
    assert "4 jobs, 0 done; to continue: python tools/sweep.py mine.yaml" in out
    assert signal.getsignal(signal.SIGINT) is handler


def run_here(self: Commands, words: list[str], **how: Any) -> int:
    """Run the real script in this process, in a thread, where no signal can be waited for."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", list(words))
        patch.setattr(StopSignal, "__enter__", lambda self: self)
        patch.setattr(StopSignal, "__exit__", lambda self, *_: None)
        runpy.run_path(words[0], run_name="__main__")
    return ended.value.code


# The tiny CLIP has no name, so that its file is read on the meta device to count its sizes.
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
def test_with_the_real_scripts(tmp_path: Path, tiny_config, monkeypatch, capsys) -> None:
    from utils.demo.writer import write_demo
    from utils.prepare.pack import pack_dataset
    from utils.prepare.refer import refer_source

    root = tmp_path / "datasets"
    write_demo(root / "demo", num_train_objects=8, num_test_objects=3)
    pack_dataset(root, refer_source(root, "demo"))
    train = {"batch_size": 4, "max_steps": 2}
    config = tiny_config("vit", data={"dataset": "demo", "root": str(root)}, train=train)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    spec = {"configs": [str(tmp_path / "tiny.yaml")], "splits": ["val"], "parallel": 1}
    (tmp_path / "sweep.yaml").write_text(json.dumps(spec | {"folder": str(tmp_path / "runs")}))
    monkeypatch.setattr(Commands, "run", run_here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(sweep.ROOT)
    assert sweep.main([str(tmp_path / "sweep.yaml")]) == 0
    first = capsys.readouterr().out
    assert "tiny-seed0: oIoU val " in first
    assert cv2.imread(str(tmp_path / "runs/comparison.png")).std() > 1
    assert sweep.main([str(tmp_path / "sweep.yaml")]) == 0
    again = capsys.readouterr().out
    assert "1 job, 1 done" in again and again.partition("\n\n")[2] == first.partition("\n\n")[2]


@pytest.mark.parametrize(
    "path", sorted((sweep.ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_sweeps_of_the_project_can_be_planned(path: Path, monkeypatch) -> None:
    monkeypatch.chdir(sweep.ROOT)
    assert sweep.main([str(path), "--dry-run"]) == 0
    assert f"# python tools/sweep.py sweeps/{path.name}\n" in path.read_text()
