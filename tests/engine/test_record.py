"""Records of runs: their content, their names, and that nobody edits them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint import FORMAT, choose_config, read_checkpoint, save_state
from engine.evaluator import describe_protocol
from engine.record import open_recording
from utils.config import load_config

ROOT = Path(__file__).parents[2]
FILE = "config/demo/etris_vit.yaml"
END = {"step": 9, "total_steps": 9, "scored_step": 9, "elapsed": 90.0, "random_states": [{}, {}]}
Make = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    """``run("train.seed=1", dirty=True)``: the best checkpoint in the folder of a finished run."""

    def make(*opts: str, file: str | None = FILE, dirty: bool = False, **state: Any) -> Path:
        config = load_config(ROOT / FILE, opts).to_dict()
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        made = {"commit": "c0ffee", "dirty": dirty, "command": "python train.py"}
        metadata = {"config": config, "provenance": made} | ({"config_file": file} if file else {})
        checkpoint, weights = folder / "best.safetensors", torch.rand(3)
        save_file({"x": weights}, checkpoint, {"format": FORMAT, "story": json.dumps(metadata)})
        save_state(folder / "last.pt", {"config": config} | END | state)
        (folder / "run.log").write_text("begun\n")
        return checkpoint

    return make


def results(checkpoint: Path, *opts: str, score: float) -> dict[str, Any]:
    """What test.py writes, with a made-up score."""
    saved = read_checkpoint(checkpoint)
    config = choose_config(saved, None, opts)
    return {
        "splits": {"val": {"oIoU": score, "mIoU": score + 1, "seconds": torch.rand(1).item()}},
        "protocol": describe_protocol(config, 17, precision="fp32", name="native", length=17),
        "data": {"dataset": "demo", "fingerprint": "f"},
        "checkpoint": {"sha256": saved.sha256, "provenance": saved.metadata["provenance"]},
        "seed": config.train.seed,
        "commit": "c0ffee",
        "dirty": False,
        "config": config.to_dict(),
    }


def record(checkpoint: Path, name: str = "", *opts: str, score: float = 70.0) -> str:
    """Record a test in ``results/`` beside the run's folder."""
    folder = checkpoint.parents[1] / "results"
    config = choose_config(read_checkpoint(checkpoint), None, opts)
    recording = open_recording(checkpoint, config, name, folder=folder)
    return recording.write(results(checkpoint, *opts, score=score))


def files(checkpoint: Path) -> dict[str, bytes]:
    folder = checkpoint.parents[1] / "results"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("memory", [{"host": 7, "gpu": 0}, None])  # older runs lack it
def test_a_record_has_what_made_it(run: Make, memory: dict[str, int] | None) -> None:
    checkpoint = run("train.seed=3", **({"peak_memory": memory} if memory else {}))
    path = checkpoint.parents[1] / "results/demo-etris_vit-seed3.json"
    assert record(checkpoint) == f"recorded in {path}"
    assert list(files(checkpoint)) == ["demo-etris_vit-seed3.json", "demo-etris_vit-seed3.log"]
    assert path.with_suffix(".log").read_text() == "begun\n"
    written = json.loads(path.read_text())
    assert (written["method"], written["config_file"]) == ("demo-etris_vit", FILE)
    expected = {"steps": 9, "hours": 0.025, "peak_memory": memory, "processes": 2}
    assert written["training"] == expected
    sizes = written["parameters"]
    assert sizes["trainable"] == sizes["attached"] + sizes["head"] and sizes["backbone"] == 0
    made = results(checkpoint, score=70.0) | {"splits": written["splits"]}  # their seconds differ
    assert made.items() <= written.items()


def test_seeds_share_a_hash(run: Make) -> None:
    first = run("train.seed=0", "run.folder=runs/0")
    for checkpoint in (first, run("train.seed=1", "run.folder=runs/1")):
        record(checkpoint)
    record(run("train.lr=0.5"), "other")
    paths = sorted((first.parents[1] / "results").glob("*.json"))
    *hashes, other = [json.loads(path.read_text())["config_sha256"] for path in paths]
    assert len(hashes) == 2 and len(set(hashes)) == 1 and other not in hashes


def test_departures_are_reported(run: Make) -> None:
    other = record(run("data.dataset=refcoco+"))  # part of the name, not a departure
    assert other.endswith("results/demo-etris_vit-refcoco+-seed0.json")
    report = record(run("train.epochs=9", dirty=True), "short", "eval.threshold=0.5")
    assert report.splitlines()[1:] == [
        "  marked: train.epochs is 9, 50 in the file",
        "  marked: protocol: threshold is 0.5, the project's is 0.35",
        "  marked: trained with uncommitted changes",
    ]
    assert "marked" not in record(run(), "same", "data.workers=3", "eval.batch_size=2")


def test_a_record_is_never_edited(run: Make) -> None:
    first, second = run(), run()
    record(first)
    before = files(first)
    assert record(first).startswith("already recorded in ")
    for again in (
        lambda: record(second),
        lambda: record(first, score=71.0),
        lambda: record(first, "", "eval.threshold=0.5"),
    ):
        with pytest.raises(ValueError, match=r"demo-etris_vit-seed0\.json.*never edited"):
            again()
    assert files(first) == before
    record(second, "again")
    assert {name: files(first)[name] for name in before} == before


@pytest.mark.parametrize(
    ("opts", "file", "value"),
    [(["train.lr=0.5"], FILE, "train.lr is 0.5, 0.001"), ([], None, "config/")],
)
def test_a_run_that_is_not_of_a_file_needs_a_name(
    run: Make, opts: list[str], file: str | None, value: str
) -> None:
    checkpoint = run(*opts, file=file)
    for name, reason in (("", value), ("a/b", "a/b"), ("a-seed1", "a-seed1")):
        with pytest.raises(ValueError, match=re.escape(reason)):
            record(checkpoint, name)
    assert "recorded in" in record(checkpoint, "mine+1.0")


@pytest.mark.parametrize(
    ("state", "missing", "value"),
    [
        ({"step": 5, "scored_step": 5}, "", "step 5 of 9"),
        ({"scored_step": 5}, "", "step 9 of 9"),
        ({}, "last.pt", "last.pt"),
        ({}, "run.log", "run.log"),
    ],
)
def test_only_finished_runs_are_recorded(
    run: Make, state: dict[str, int], missing: str, value: str
) -> None:
    checkpoint = run(**state)
    if missing:
        (checkpoint.parent / missing).unlink()
    with pytest.raises(ValueError, match=re.escape(value)):
        record(checkpoint)
    assert not (checkpoint.parents[1] / "results").exists()


@pytest.mark.parametrize(
    ("opts", "value"),
    [("train.seed=8", "train.seed is 8, was 0"), ("data.dataset=refcoco", "'refcoco', was 'demo'")],
)
def test_a_test_of_another_configuration_is_refused(run: Make, opts: str, value: str) -> None:
    with pytest.raises(ValueError, match=re.escape(value)):
        record(run(), "", opts)
