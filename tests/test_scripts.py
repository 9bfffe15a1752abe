"""train.py, test.py and predict.py end to end: a tiny CLIP, a few demo scenes, a few steps."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from engine.checkpoint import read_checkpoint
from engine.loaders import open_split
from engine.metrics import Record, metrics_from_records
from utils.config import load_config
from utils.demo.writer import write_demo
from utils.files import read_json_lines
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)
TRAIN, TEST, PREDICT = (
    runpy.run_path(str(ROOT / f"{name}.py"))["main"] for name in ("train", "test", "predict")
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable) -> Path:
    """An experiment on a packed demo of 24 + 3 x 8 objects, 2 epochs of 6 updates."""
    folder = tmp_path_factory.mktemp("experiment")
    root = folder / "datasets"
    write_demo(root / "demo", num_train_objects=24, num_test_objects=8)
    pack_dataset(root, refer_source(root, "demo"))
    config = tiny_config(
        "vit",
        data={"dataset": "demo", "root": str(root)},
        train={"epochs": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32"},
        eval={"batch_size": 8},
        run={"folder": str(folder / "run"), "log_interval": 2},
    )
    path = folder / "tiny.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="module")
def run(config_file: Path) -> Path:
    """The folder of a finished run."""
    assert TRAIN(["--config", str(config_file)]) == 0
    return config_file.parent / "run"


@pytest.fixture(scope="module")
def results(run: Path) -> Path:
    """The folder of its results."""
    assert TEST(["--checkpoint", str(run / "best.safetensors"), "--pictures", "2"]) == 0
    return run / "test"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def records_in(path: Path) -> list[Record]:
    return [Record(**row) for row in read_json_lines(path)]


def test_a_run_leaves_its_files(run: Path, config_file: Path) -> None:
    names = {"best.safetensors", "config.yaml", "last.pt", "metrics.jsonl", "run.log"}
    assert set(files(run)) == names
    assert load_config(run / "config.yaml") == load_config(config_file)
    rows = read_json_lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/oIoU" in row] == [6, 12]
    train_rows = [row for row in rows if "train/loss" in row]
    keys = {"step", "epoch", "train/loss", "train/lr", "train/grad_norm", "samples_per_second"}
    assert all(set(row) == keys for row in train_rows) and train_rows[-1]["step"] == 12
    metadata = read_checkpoint(run / "best.safetensors").metadata
    assert metadata["provenance"]["commit"] and metadata["provenance"]["versions"]["torch"]
    assert metadata["selected_by"] == {"split": "val", "metric": "oIoU"}
    assert "best on val: oIoU" in (run / "run.log").read_text()


def test_a_finished_run_is_not_changed(run: Path, config_file: Path, capsys: Any) -> None:
    before = files(run)
    free = ["data.workers=1", "eval.batch_size=3", "run.log_interval=1"]
    assert TRAIN(["--config", str(config_file), "--opts", *free]) == 0
    assert "this run is done" in capsys.readouterr().err
    after = files(run)
    assert {name for name in after if after[name] != before[name]} == {"run.log"}


def test_a_folder_with_another_run_or_half_of_one_is_refused(
    run: Path, config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    base = ["--config", str(config_file), "--opts"]
    assert TRAIN([*base, "train.lr=0.5", "model.bridges.0.dim=8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "train.lr is 0.5, was 0.001" in error
    assert "model.bridges.0.dim is 8, was 16" in error and "--fresh" in error
    (tmp_path / "best.safetensors").write_text("precious")
    assert TRAIN([*base, f"run.folder={tmp_path}"]) == 2
    assert "no last.pt" in capsys.readouterr().err


HOLD = """
import sys, time, pathlib, train
with train.lock_run(pathlib.Path(sys.argv[1]), True):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_train_in_one_folder(
    config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    command = ["--config", str(config_file), "--opts", f"run.folder={folder}", "train.max_steps=1"]
    assert TRAIN(command) == 2
    assert str(folder) in capsys.readouterr().err and not folder.exists()
    process.kill()
    process.wait()
    assert TRAIN(command) == 0  # a dead process holds no lock
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_folders_that_cannot_be_made_are_refused(
    run: Path, config_file: Path, tmp_path: Path, capsys: Any, name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / name
    assert TRAIN(["--config", str(config_file), "--opts", f"run.folder={folder}"]) == 2
    assert f"run.folder {folder}: " in capsys.readouterr().err
    checkpoint = ["--checkpoint", str(run / "best.safetensors")]
    assert TEST([*checkpoint, "--output", str(folder)]) == 2
    assert f"--output {folder}: " in capsys.readouterr().err
    picture = ["--image", "photo.jpg", "--text", "a star"]
    assert PREDICT([*checkpoint, *picture, "--output", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fresh_renames_the_old_run(run: Path, config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    options = ["--opts", f"run.folder={folder}", "train.max_steps=1", "train.milestones=[1]"]
    for extra in ([], ["--fresh"], ["--fresh"]):
        assert TRAIN(["--config", str(config_file), *extra, *options]) == 0
    first = read_checkpoint(tmp_path / "again.1" / "best.safetensors").metadata["scores"]
    assert read_checkpoint(folder / "best.safetensors").metadata["scores"] == first
    assert (tmp_path / "again.2" / "last.pt").exists()


def test_a_loss_that_is_not_finite_fails_and_names_samples(
    config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ["--opts", f"run.folder={tmp_path}", "train.lr=1e30"]
    assert TRAIN(["--config", str(config_file), *options]) == 1
    for text in (capsys.readouterr().err, (tmp_path / "run.log").read_text()):
        assert "is not finite" in text and "step " in text and "ref " in text


def test_sigterm_saves_and_the_same_command_continues(
    config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    options = [f"run.folder={folder}", "run.log_interval=1", "train.epochs=100", "data.workers=1"]
    arguments = ["--config", str(config_file), "--opts", *options, "train.max_minutes=60"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    metrics = folder / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # as batch systems do: the data loader gets it too
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped by SIGTERM at step" in error and "to go on: python" in error
    state = torch.load(folder / "last.pt", weights_only=True)
    assert state["step"] >= 3 and not list(folder.glob("*.part"))
    options[2:] = [*options[2:], "train.max_minutes=1e-9"]  # out of time: only the score is left
    assert TRAIN(["--config", str(config_file), "--opts", *options]) == 0
    assert f"going on at step {state['step']}" in capsys.readouterr().err
    assert read_checkpoint(folder / "best.safetensors").metadata["step"] <= state["step"]


def test_results_have_all_that_fixes_them(results: Path, config_file: Path) -> None:
    written = read(results)
    config = load_config(config_file)
    assert list(written["splits"]) == ["val", "testA", "testB"]
    assert {"threshold", "comparison", "resize", "precision"} <= set(written["protocol"])
    assert written["protocol"]["threshold"] == 0.35 and written["config"] == config.to_dict()
    assert len(written["data"]["fingerprint"]) == len(written["checkpoint"]["sha256"]) == 64
    assert {"commit", "dirty", "command", "versions", "seed"} <= set(written)
    for split, scores in written["splits"].items():
        assert {"truncated_sentences", "references"} <= set(scores)
        records, dataset = records_in(results / f"{split}.jsonl"), open_split(config, "demo", split)
        sentences = [dataset.info(index).sentence for index in range(len(dataset))]
        assert [record.sentence for record in records] == sentences
        assert metrics_from_records(records).to_dict().items() <= scores.items()
        sheet = cv2.imread(str(results / f"{split}.png"))
        assert sheet is not None and sheet.shape[1] > 1800 and sheet.std() > 20


def test_testing_finds_the_checkpoint_prints_a_table_and_obeys_its_options(
    run: Path, config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["--config", str(config_file), "--splits", "testB", "--pictures", "0"]
    arguments += ["--output", str(tmp_path), "--opts", "eval.threshold=0.9"]
    assert TEST(arguments) == 0
    captured = capsys.readouterr()
    header, row = captured.out.splitlines()
    assert header.split()[:4] == ["split", "sentences", "oIoU", "mIoU"] and row.startswith("testB")
    assert f"scoring {run / 'best.safetensors'}" in captured.err
    assert set(files(tmp_path)) == {"results.json", "testB.jsonl"}
    assert read(tmp_path)["protocol"]["threshold"] == 0.9
    assert TEST([*arguments, f"run.folder={tmp_path / 'none'}"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error and "python train.py --config" in error
    assert len(error.splitlines()) == 1


# the tiny CLIP has no name, so that its sizes are counted from its file
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_run_is_recorded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--checkpoint", str(run / "best.safetensors"), "--splits", "testB"]
    arguments += ["--output", str(tmp_path / "test"), "--pictures", "0"]
    assert TEST([*arguments, "--record"]) == 2  # its configuration is not of config/
    assert "error: --record needs a name" in capsys.readouterr().err
    assert not (tmp_path / "test").exists()
    assert TEST([*arguments, "--record", "tiny"]) == 0
    name = str(Path("results/tiny-seed0.json"))
    assert f"recorded in {name}" in capsys.readouterr().out
    record = json.loads((tmp_path / name).read_text())
    assert read(tmp_path / "test").items() <= record.items()
    assert record["hardware"]["cpu"] and record["hardware"]["threads"] == 1
    training = record["training"]
    assert training["peak_memory"]["host"] > 2**20 and 0 < training["hours"] < 1
    log = (run / "run.log").read_bytes()
    assert (tmp_path / name).with_suffix(".log").read_bytes() == log


def predict(run: Path, image: Path, texts: list[str], output: Path, *options: str) -> np.ndarray:
    """Run predict.py; return the logits (N, H, W)."""
    arguments = ["--checkpoint", str(run / "best.safetensors"), "--output", str(output)]
    arguments += ["--image", str(image), "--logits", str(output / "logits.npy")]
    arguments += [word for text in texts for word in ("--text", text)]
    assert PREDICT([*arguments, "--opts", *options]) == 0
    return np.load(output / "logits.npy")


def test_prediction_agrees_exactly_with_testing_and_batches_change_nothing(
    run: Path, config_file: Path, tmp_path: Path, capsys: Any
) -> None:
    """In bf16 and at a threshold that cuts through the logits, where each rounding would show."""
    dataset = open_split(load_config(config_file), "demo", "val")
    images = Path(dataset.store.path.parents[1]) / "demo" / "images"
    first = dataset.info(0)
    some = predict(run, images / first.file_name, [first.sentence], tmp_path, "train.seed=0")
    options = ["train.precision=bf16", f"eval.threshold={1 / (1 + np.exp(-np.median(some)))}"]
    for batch_size in (5, 32):
        arguments = ["--checkpoint", str(run / "best.safetensors"), "--splits", "val"]
        arguments += ["--output", str(tmp_path / str(batch_size)), "--pictures", "0"]
        assert TEST([*arguments, "--opts", *options, f"eval.batch_size={batch_size}"]) == 0
    records = records_in(tmp_path / "5/val.jsonl")
    assert records == records_in(tmp_path / "32/val.jsonl")
    partial = 0
    for name in sorted({dataset.info(record.index).file_name for record in records})[:2]:
        chosen = [record for record in records if dataset.info(record.index).file_name == name]
        texts = [record.sentence for record in chosen]
        logits = predict(run, images / name, texts, tmp_path, *options)
        for number, record in enumerate(chosen, 1):
            mask = cv2.imread(str(tmp_path / f"{number}-mask.png"), cv2.IMREAD_UNCHANGED)
            truth = dataset.original(record.index)[1]
            assert mask.shape == truth.shape == logits[number - 1].shape
            assert set(np.unique(mask)) <= {0, 255}
            partial += 0 < (mask > 0).mean() < 1
            sums = ((mask > 0) & truth).sum(), ((mask > 0) | truth).sum()
            assert sums == (record.intersection, record.union)
            assert cv2.imread(str(tmp_path / f"{number}-overlay.png")).shape == (*truth.shape, 3)
    assert partial > 2, "an empty or full mask proves little"
    assert "% of the picture, x " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "none.safetensors"], "none.safetensors: no such checkpoint"),
        (["--splits", "testC"], "no split 'testC'; it has train, val, testA, testB"),
        (["--opts", "eval.treshold=0.5"], "did you mean 'threshold'?"),
        (["--opts", "data.root=elsewhere"], "prepare_datasets.py --dataset demo"),
    ],
)
def test_testing_explains_what_it_cannot_use(
    run: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    base = ["--checkpoint", str(run / "best.safetensors"), "--output", str(tmp_path)]
    assert TEST([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_both_protocols_in_one_pass(run: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--checkpoint", str(run / "best.safetensors"), "--splits", "val", "testA"]
    arguments += ["--pictures", "0", "--opts", "eval.threshold=0.07"]  # little was learnt
    assert TEST([*arguments, "--output", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    arguments += ["--output", str(tmp_path), "--protocol", "native", "released"]
    assert TEST(arguments) == 0
    assert "native protocol (1)" in capsys.readouterr().out
    expected = {"results.json", "val.jsonl", "testA.jsonl"}
    assert set(files(tmp_path)) == expected | {"val-released.jsonl", "testA-released.jsonl"}
    written, before = read(tmp_path), read(tmp_path / "alone")
    for split, scores in written["splits"].items():
        assert scores == before["splits"][split] | {"seconds": scores["seconds"]}
    (other,) = written["other_protocols"]
    assert (written["protocol"]["name"], written["protocol"]["number"]) == ("native", 1)
    assert (other["protocol"]["name"], other["protocol"]["number"]) == ("released", 1)
    recomputed = metrics_from_records(records_in(tmp_path / "val-released.jsonl")).to_dict()
    assert recomputed.items() <= other["splits"]["val"].items()
    assert {"oIoU", "mIoU", "Pr@0.5", "Pr@0.9"} <= set(other["splits"]["testA"])
    assert other["splits"]["val"]["oIoU"] != written["splits"]["val"]["oIoU"]


def test_the_released_way_trains_and_chooses(config_file: Path, tmp_path: Path) -> None:
    """Target, protocol, first sentences; a checkpoint of it is tested by its own protocol."""
    options = ["train.target=nearest", "eval.protocol=released", "eval.first_sentences=true"]
    options += ["eval.metric=mIoU", "train.max_steps=6", f"run.folder={tmp_path / 'run'}"]
    assert TRAIN(["--config", str(config_file), "--opts", *options]) == 0
    rows = read_json_lines(tmp_path / "run/metrics.jsonl")
    (scored,) = [row for row in rows if "val/mIoU" in row]
    dataset = open_split(load_config(config_file), "demo", "val")
    references = {dataset.info(index).ref_id for index in range(len(dataset))}
    assert scored["val/count"] == len(references) < len(dataset)
    checkpoint = tmp_path / "run/best.safetensors"
    assert TEST(["--checkpoint", str(checkpoint), "--splits", "val", "--pictures", "0"]) == 0
    written = read(tmp_path / "run/test")
    assert written["protocol"]["name"] == "released" and written["other_protocols"] == []
    assert written["splits"]["val"]["count"] == len(dataset)
