"""Sweeps: what is run, skipped, refused and stopped, what a failure leaves, one tiny real run."""

import fcntl
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

from engine import precision
from engine.signals import StopSignal
from tools import sweep
from utils.cli import Commands
from utils.config import Config, load_config

SCORES = {"frozen": 60.0, "etris": 70.0, "etris.32": 80.0, "frozen.x1": 50.0, "frozen.x2": 55.0}
MODEL = {"backbone": {"name": "demo-vit"}}
METHOD = {"data": {"dataset": "demo", "image_size": 80}, "model": MODEL}


def options(words: list[str]) -> dict[str, list[str]]:
    """The words after each option."""
    found: dict[str, list[str]] = {}
    for word in words[1:]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


class Scripts:
    """Stands for train.py and test.py: notes each run and leaves what it would leave."""

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
            train(config, folder)
        else:
            leave_results(config, folder, found["--splits"])
        if "--record" in found:
            Path("results").mkdir(exist_ok=True)
            kept = Path(f"results/{found['--record'][0]}-seed{config.train.seed}.json")
            kept.write_bytes((folder / "test/results.json").read_bytes())
        return 0


def train(config: Config, folder: Path, *, step: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "best.safetensors").write_text(folder.name)
    state = {"step": step, "scored_step": step, "total_steps": 9, "elapsed": 1.0}
    torch.save(state, folder / "last.pt")


def leave_results(config: Config, folder: Path, splits: list[str]) -> None:
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

    def run(self: Commands, words: list[str], **how: Any) -> int:
        return scripts(words, **how)

    monkeypatch.setattr(Commands, "run", run)
    return scripts


@pytest.fixture
def go(project: Path) -> Callable[..., int]:
    """``go("--dry-run", seeds=[1])``: run a sweep of both configurations with those keys."""

    def run(*argv: str, **keys: Any) -> int:
        defaults = {"configs": ["frozen.yaml", "etris.yaml"], "splits": ["val"], "parallel": 1}
        (project / "mine.yaml").write_text(json.dumps(defaults | keys))
        return sweep.main(["mine.yaml", *argv])

    return run


def test_jobs_run_once_and_are_compared(scripts, go, project: Path, capsys) -> None:
    assert go(seeds=[0, 1], opts={"train.max_steps": 7}) == 0
    assert scripts.called == [
        f"{script} {name}-seed{seed}"
        for seed in (0, 1)
        for name in ("frozen", "etris")
        for script in ("train", "test")
    ]
    config = load_config("runs/sweep-mine/etris-seed1/config.yaml")
    assert (config.train.max_steps, config.train.seed) == (7, 1)
    out = capsys.readouterr().out
    assert re.search(r"^frozen-seed1: oIoU val 61\.00 \(0 s; 1 to go, about 0 s\)$", out, re.M)
    page = (project / "runs/sweep-mine/comparison.md").read_text()
    for text in (out, page):
        assert re.search(r"^\| frozen \| 0 \| [\d,]+ \| 2 \| 60\.50 \(60\.00–61\.00\)", text, re.M)
        assert re.search(r"^\| etris \|.* \| 70\.50 \(70\.00–71\.00\) \| 50\.00", text, re.M)
    assert "python tools/sweep.py mine.yaml" in page and "](comparison.png)" in page
    chart = cv2.imread(str(project / "runs/sweep-mine/comparison.png"))
    assert chart is not None and chart.std() > 1
    log = (project / "runs/sweep-mine/frozen-seed0.log").read_text()
    assert re.findall(r"^\$ python (\w+\.py)", log, re.M) == ["train.py", "test.py"]

    scripts.called.clear()
    assert go(seeds=[0, 1, 2], opts={"train.max_steps": 7, "data.workers": 1}) == 0
    assert scripts.called == [
        "train frozen-seed2",
        "test frozen-seed2",
        "train etris-seed2",
        "test etris-seed2",
    ]
    assert "4 to go" not in capsys.readouterr().out


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
    assert [name for name in scripts.called if name.startswith("train")] == [
        "train frozen.x1-seed0",
        "train frozen.x2-seed0",
    ]
    one, two = (
        load_config(f"runs/sweep-mine/frozen.{name}-seed0/config.yaml").train for name in overrides
    )
    assert (one.lr, one.epochs, two.lr, two.warmup_steps) == (0.5, 3, 0.2, 7)
    assert re.search(r"^\| frozen\.x2 \| 0 \|.* 55\.00 \|", capsys.readouterr().out, re.M)


def test_a_run_is_done_when_it_is_recorded(scripts, go, capsys) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    capsys.readouterr()
    assert go("--dry-run", configs=["frozen.yaml"], record=True) == 0
    assert capsys.readouterr().out.endswith("1 job, 0 done\n")
    assert go(configs=["frozen.yaml"], record=True) == 0
    assert scripts.called[-1] == "test frozen-seed0"
    assert go("--dry-run", configs=["frozen.yaml"], record=True) == 0
    assert capsys.readouterr().out.endswith("1 job, 1 done\n")


def test_records_are_enough(scripts, go, project: Path, capsys) -> None:
    """Another machine, or a clone, has what results/ keeps and no folder of a run."""
    assert go(seeds=[0, 1], record=True) == 0
    table = capsys.readouterr().out.partition("\n\n")[2]
    shutil.rmtree(project / "runs")
    (project / "results/sweep-mine-etris-seed1.json").unlink()
    scripts.called.clear()
    assert go(seeds=[0, 1], record=True) == 0
    assert scripts.called == ["train etris-seed1", "test etris-seed1"]
    out = capsys.readouterr().out
    assert "4 jobs, 3 done, 1 at a time on the CPU, in runs/sweep-mine and results/" in out
    assert out.partition("\n\n")[2] == table
    assert "| frozen |" in (project / "runs/sweep-mine/comparison.md").read_text()


def test_another_precision_than_before_is_told_before_it_runs(
    scripts, go, project: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    assert "note:" not in capsys.readouterr().out
    (project / "flags").write_text("flags : fpu amx_bf16")
    monkeypatch.setattr(precision, "CPU_LISTING", project / "flags")
    monkeypatch.setattr(precision, "FAST_BF16_FLAGS", {"amx_bf16"})
    assert go() == 0
    out = capsys.readouterr().out
    assert "what is done was computed in fp32, what is left would be in bf16 on this machine" in out
    assert out.index("note:") < out.index("etris-seed0: oIoU")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"opts": {"train.lr": 0.5}}, "with another config: train.lr is 0.5, was 0.0001;"),
        ({"splits": ["val", "testA"]}, "without scores on testA;"),
    ],
)
def test_a_record_of_another_run_is_refused_before_any_training(
    scripts, go, project: Path, capsys, keys: dict[str, Any], reason: str
) -> None:
    assert go(configs=["frozen.yaml"], record=True) == 0
    shutil.rmtree(project / "runs")
    scripts.called.clear()
    assert go(record=True, **keys) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: results/sweep-mine-frozen-seed0.json: records a run {reason} records are never "
        "edited: give the method another name or the sweep another folder\n"
    )
    assert scripts.called == []


@pytest.mark.parametrize("change", ["best.safetensors", "last.pt", "splits", "threshold"])
def test_results_of_something_else_do_not_count(
    scripts, go, project: Path, capsys, change: str
) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    folder = project / "runs/sweep-mine/frozen-seed0"
    if change == "best.safetensors":
        (folder / change).write_text("trained again")
    elif change == "last.pt":
        state = {"step": 3, "scored_step": 3, "total_steps": 9, "elapsed": 1.0}
        torch.save(state, folder / "last.pt")
    elif change == "threshold":
        text = (folder / "test/results.json").read_text()
        (folder / "test/results.json").write_text(text.replace("0.35", "0.5"))
    splits = ["val", "testA"] if change == "splits" else ["val"]
    capsys.readouterr()
    assert go("--dry-run", configs=["frozen.yaml"], splits=splits) == 0
    assert capsys.readouterr().out.startswith("begun  python train.py --config frozen.yaml")


def test_what_was_tidied_up_is_not_missed(scripts, go, project: Path, capsys) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    for name in ("best.safetensors", "last.pt"):
        (project / "runs/sweep-mine/frozen-seed0" / name).unlink()
    capsys.readouterr()
    assert go("--dry-run") == 0
    done, to_do, counts = capsys.readouterr().out.splitlines()
    assert (done[:5], to_do[:5], counts) == ("done ", "to do", "2 jobs, 1 done")
    assert len(scripts.called) == 2


@pytest.mark.parametrize("kept", ["last.pt", "test/results.json"])
def test_a_folder_of_another_run_is_refused(scripts, go, project: Path, capsys, kept: str) -> None:
    assert go(configs=["frozen.yaml"]) == 0
    other = {"last.pt": "test/results.json", "test/results.json": "last.pt"}[kept]
    (project / "runs/sweep-mine/frozen-seed0" / other).unlink()
    scripts.called.clear()
    assert go(opts={"train.lr": 0.5}) == 2
    error = capsys.readouterr().err
    assert "frozen-seed0: holds a run with another config: train.lr is 0.5, was 0.0001" in error
    assert error.count("\n") == 1 and scripts.called == []


@pytest.mark.parametrize("failing", ["train frozen-seed0", "test frozen-seed0"])
def test_a_failure_does_not_stop_the_others(scripts, go, project, capsys, failing: str) -> None:
    scripts.failing = failing
    assert go() == 1
    assert scripts.called[-2:] == ["train etris-seed0", "test etris-seed0"]
    out, error = capsys.readouterr()
    script = failing.split()[0]
    assert f"frozen-seed0: failed: {script}.py ended with 2: error: what it says (" in out
    assert "missing: frozen-seed0" in out and "| etris |" in out
    assert error == "failed: frozen-seed0, log: runs/sweep-mine/frozen-seed0.log\n"
    assert "missing: frozen-seed0" in (project / "runs/sweep-mine/comparison.md").read_text()

    scripts.failing = ""
    assert go(configs=["etris.yaml"]) == 0
    assert "missing" not in capsys.readouterr().out


def test_without_any_result_there_is_no_table(scripts, go, project, capsys) -> None:
    scripts.failing = "train frozen-seed0"
    assert go(configs=["frozen.yaml"]) == 1
    assert "|" not in capsys.readouterr().out
    assert not (project / "runs/sweep-mine/comparison.md").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sedes": [0]}, "mine.yaml: top level: no key 'sedes' (value [0]); did you mean 'seeds'?"),
        ({"configs": [{"config": "frozen.yaml", "nmae": "x"}]}, "did you mean 'name'?"),
        ({"configs": [{"name": "x"}]}, "configs.0: {'name': 'x'}: its keys: config: is missing"),
        ({"configs": [3]}, "configs.0: 3: should be a path or {config: PATH, name: NAME,"),
        ({"configs": []}, "mine.yaml: configs: []: should list at least one"),
        ({"configs": ["forzen.yaml"]}, "cannot be read (No such file or directory); did you mean"),
        ({"configs": ["etris.yaml"] * 2}, "are both called 'etris'; give one a name: {config:"),
        ({"configs": [{"config": "etris.yaml", "name": "a-seed0"}]}, "without '-seed'"),
        ({"folder": "runs/a b"}, "should be of letters, digits, '_', '.', '+' and '-'"),
        ({"seeds": [0, 0]}, "seeds: [0, 0]: 0 stands twice"),
        ({"splits": []}, "splits: []: should list at least one"),
        (
            {"opts": {"train.max_step": 3}},
            "mine.yaml: opts: train.max_step=3: train: no key 'max_step' (value 3); did you mean",
        ),
        (
            {"splits": ["vall"]},
            "mine.yaml: splits: no split 'vall' in demo; choose from train, val",
        ),
        ({"folder": "etris.yaml"}, "folder: etris.yaml cannot be made (File exists); give the"),
        ({"opts": {"train.seed": 3}}, "train.seed is the sweep's own: 'seeds' lists the seeds"),
        ({"overrides": {"a": {"run.folder": "x"}}}, "run.folder is the sweep's own: 'folder' says"),
        ({"overrides": {"a b": {}}}, "should be of letters, digits, '_', '.', '+' and '-'"),
        ({"overrides": {"a": {"train.lr": "x"}}}, "mine.yaml: opts: train.lr=x: train.lr: 'x'"),
        ({"parallel": 0}, "parallel: 0: should be 'auto' or how many run at a time"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    scripts, go, capsys, keys: dict[str, Any], message: str
) -> None:
    assert go(**keys) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert scripts.called == []


def test_two_sweeps_do_not_share_a_folder(scripts, go, project: Path, capsys) -> None:
    (project / "runs/sweep-mine").mkdir(parents=True)
    with (project / "runs/sweep-mine/sweep.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert go() == 2
    assert "another sweep is at work there" in capsys.readouterr().err
    assert scripts.called == []


@pytest.mark.parametrize(
    ("visible", "parallel", "expected"),
    [(None, "auto", "0 1 2"), ("5,7,9", "auto", "5 7 9"), ("5,7,9", 4, "5 7 9 5"), (None, 1, "0")],
)
def test_each_gpu_has_a_job(monkeypatch, visible, parallel, expected: str) -> None:
    from tools.study.sweep import open_slots
    from tools.study.sweep_config import SweepConfig

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    plan = SweepConfig(configs=["a"], splits=["val"], folder="f", parallel=parallel)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in open_slots(plan)] == expected.split()


@pytest.mark.parametrize(
    ("parallel", "threads", "expected"), [("auto", 2, 3), ("auto", 9, 1), (2, 3, 2)]
)
def test_jobs_share_the_cores(monkeypatch, parallel, threads: int, expected: int) -> None:
    from tools.study.sweep import open_slots
    from tools.study.sweep_config import SweepConfig

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7))
    plan = SweepConfig(
        configs=["a"], splits=["val"], folder="f", parallel=parallel, threads=threads
    )
    assert open_slots(plan) == [{"OMP_NUM_THREADS": str(threads)}] * expected


def test_threads_reach_the_scripts(scripts, go) -> None:
    assert go(threads=3, parallel=2) == 0
    assert scripts.environments == ["3"] * 4


def stop_when_ready(logs: list[Path], number: int) -> threading.Thread:
    """Signal this process once every log says that its script works."""

    def wait() -> None:
        for _ in range(1000):
            if all(log.exists() and "ready" in log.read_text() for log in logs):
                os.kill(os.getpid(), number)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_save_and_begins_no_other(
    go, project: Path, capsys, number: int
) -> None:
    (project / "train.py").write_text(
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(0.2); print('saved', flush=True); sys.exit(128 + number)\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n"
        "print('ready', flush=True); time.sleep(30)\n"
    )
    folder = project / "runs/sweep-mine"
    running = [folder / "frozen-seed0.log", folder / "etris-seed0.log"]
    handler = signal.getsignal(signal.SIGINT)
    thread = stop_when_ready(running, number)
    code = go(parallel=2, seeds=[0, 1])
    thread.join()
    assert code == 128 + number
    assert [log.read_text().splitlines()[-1] for log in running] == ["saved", "saved"]
    assert sorted(log.name for log in folder.glob("*.log")) == sorted(log.name for log in running)
    out = capsys.readouterr().out
    assert out.count(": stopped (") == 2
    assert "stopped; 4 jobs, 0 done; to go on: python tools/sweep.py mine.yaml" in out
    assert signal.getsignal(signal.SIGINT) is handler


def run_here(self: Commands, words: list[str], **how: Any) -> int:
    """The real script in this process, in a thread, where no signal can be waited for."""
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

    write_demo(tmp_path / "datasets/demo", num_train_objects=8, num_test_objects=3)
    pack_dataset(tmp_path / "datasets", refer_source(tmp_path / "datasets", "demo"))
    config = tiny_config(
        "vit",
        data={"dataset": "demo", "root": str(tmp_path / "datasets")},
        train={"batch_size": 4, "max_steps": 2},
    )
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    spec = {"configs": [str(tmp_path / "tiny.yaml")], "splits": ["val"], "parallel": 1}
    (tmp_path / "sweep.yaml").write_text(json.dumps(spec | {"folder": str(tmp_path / "runs")}))
    monkeypatch.setattr(Commands, "run", run_here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(sweep.ROOT)
    assert sweep.main([str(tmp_path / "sweep.yaml")]) == 0
    first = capsys.readouterr().out
    assert "tiny-seed0: oIoU val " in first
    assert sweep.main([str(tmp_path / "sweep.yaml")]) == 0
    again = capsys.readouterr().out
    assert "1 job, 1 done" in again and again.partition("\n\n")[2] == first.partition("\n\n")[2]


@pytest.mark.parametrize(
    "path", sorted((sweep.ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_sweeps_of_the_project_can_be_planned(path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(sweep.ROOT)
    assert sweep.main([str(path), "--dry-run"]) == 0
    assert f"# python tools/sweep.py sweeps/{path.name}\n" in path.read_text()
