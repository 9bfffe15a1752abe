"""Records of runs: what they hold, what they are called, and that nobody edits them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint import FORMAT, choose_config, load_state, read_checkpoint, save_state
from engine.comparison import caveats, group_runs, read_runs
from engine.evaluator import describe_protocol
from engine.record import open_recording
from model.backbones import sha256_of
from utils.config import load_config

ROOT = Path(__file__).parents[2]
FILE = "config/demo/etris_vit.yaml"
Make = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    """``run("train.seed=1", dirty=True)``: the best checkpoint in the folder of an ended run."""

    def make(*opts: str, command: str = f"train.py --config {FILE}", dirty: bool = False, **end):
        config = load_config(ROOT / FILE, opts).to_dict()
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        made = {"commit": "c0ffee", "dirty": dirty, "command": f"python {command}"}
        story = {"config": config, "provenance": made}
        checkpoint, weights = folder / "best.safetensors", torch.rand(3)
        save_file({"x": weights}, checkpoint, {"format": FORMAT, "story": json.dumps(story)})
        state = {"config": config, "step": 9, "total_steps": 9, "scored_step": 9, "elapsed": 90.0}
        memory = {"host": 7, "gpu": 0}
        save_state(
            folder / "last.pt", state | {"random_states": [{}, {}], "peak_memory": memory} | end
        )
        (folder / "run.log").write_text("begun\n")
        return checkpoint

    return make


def results(checkpoint: Path, *opts: str, score: float) -> dict[str, Any]:
    """What test.py writes, with a made-up score."""
    read = read_checkpoint(checkpoint)
    config, story = choose_config(read, None, opts), read.metadata
    return {
        "splits": {"val": {"oIoU": score, "mIoU": score + 1, "seconds": time.monotonic()}},
        "protocol": describe_protocol(config, 17, precision="fp32", name="native", length=17),
        "data": {"dataset": "demo", "fingerprint": "f"},
        "checkpoint": {"sha256": sha256_of(checkpoint), "provenance": story["provenance"]},
        "seed": config.train.seed,
        "commit": "c0ffee",
        "dirty": False,
        "config": config.to_dict(),
    }


def record(checkpoint: Path, name: str = "", *opts: str, score: float = 70.0) -> str:
    """Record a test in ``results/`` beside the run's folder."""
    folder, config = (
        checkpoint.parents[1] / "results",
        choose_config(read_checkpoint(checkpoint), None, opts),
    )
    recording = open_recording(checkpoint, config, name, folder=folder)
    return recording.write(results(checkpoint, *opts, score=score))


def files(checkpoint: Path) -> dict[str, bytes]:
    folder = checkpoint.parents[1] / "results"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_record_holds_what_made_it(run: Make) -> None:
    checkpoint = run("train.seed=3")
    path = checkpoint.parents[1] / "results/demo-etris_vit-seed3.json"
    assert record(checkpoint) == f"recorded in {path}"
    assert list(files(checkpoint)) == ["demo-etris_vit-seed3.json", "demo-etris_vit-seed3.log"]
    assert path.with_suffix(".log").read_text() == "begun\n"
    written = json.loads(path.read_text())
    assert (written["method"], written["config_file"]) == ("demo-etris_vit", FILE)
    memory = {"host": 7, "gpu": 0}
    assert written["training"] == {
        "steps": 9,
        "hours": 0.025,
        "peak_memory": memory,
        "processes": 2,
    }
    sizes = written["parameters"]
    assert sizes["trainable"] == sizes["attached"] + sizes["head"] and sizes["backbone"] == 0
    made = results(checkpoint, score=70.0)
    assert {key: written[key] for key in made if key != "splits"} == {
        key: value for key, value in made.items() if key != "splits"
    }


def test_seeds_share_a_hash_and_are_compared(run: Make) -> None:
    checkpoints = [run(f"train.seed={seed}", f"run.folder=runs/{seed}") for seed in (0, 1)]
    checkpoints.append(run("train.seed=2", dirty=True))
    for checkpoint in checkpoints:
        record(checkpoint)
    record(run("train.lr=0.5"), "other")
    paths = sorted((checkpoints[0].parents[1] / "results").glob("*.json"))
    *hashes, other = [json.loads(path.read_text())["config_sha256"] for path in paths]
    assert len(set(hashes)) == 1 and other not in hashes
    methods = group_runs(read_runs(paths))
    assert [(method.name, len(method.runs)) for method in methods] == [
        ("demo-etris_vit", 3),
        ("other", 1),
    ]
    assert "demo-etris_vit: measured with uncommitted changes" in caveats(methods)


def test_what_departs_is_told(run: Make) -> None:
    told = record(run("train.epochs=9", dirty=True), "short", "eval.threshold=0.5")
    assert told.splitlines()[1:] == [
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
    with pytest.raises(ValueError, match=r"records another run, .*; records are never edited"):
        record(second)
    with pytest.raises(ValueError, match=r"records this run with other splits, scores or"):
        record(first, score=71.0)
    with pytest.raises(ValueError, match=r"other splits, scores or protocol.* another name"):
        record(first, "", "eval.threshold=0.5")
    assert files(first) == before
    record(second, "again")
    assert {name: files(first)[name] for name in before} == before


@pytest.mark.parametrize(
    ("opts", "command", "message"),
    [
        (["train.lr=0.5"], f"train.py --config {FILE}", r"train.lr is 0.5, 0.001 in the file"),
        ([], "train.py --config mine.yaml", r"was not begun with a file of config/"),
        ([], "mine.py", r"was not begun with a file of config/"),
    ],
)
def test_a_run_of_no_file_needs_a_name(
    run: Make, opts: list[str], command: str, message: str
) -> None:
    checkpoint = run(*opts, command=command)
    with pytest.raises(ValueError, match=rf"--record needs a name, .*{message}"):
        record(checkpoint)
    with pytest.raises(ValueError, match=r"--record a/b: should be of letters"):
        record(checkpoint, "a/b")
    with pytest.raises(ValueError, match=r"without '-seed'"):
        record(checkpoint, "a-seed1")
    assert "recorded in" in record(checkpoint, "mine+1.0")


def test_another_data_set_is_part_of_the_name(run: Make) -> None:
    checkpoint = run("data.dataset=refcoco+", command=f"train.py --config={FILE} --opts a=b")
    assert record(checkpoint).endswith("results/demo-etris_vit-refcoco+-seed0.json")


@pytest.mark.parametrize(
    ("end", "missing", "message"),
    [
        ({"step": 5, "scored_step": 5}, "", r"this run stands at step 5 of 9"),
        ({"scored_step": 5}, "", r"this run stands at step 9 of 9"),
        ({}, "last.pt", r"has no last.pt: --record needs the folder of a run"),
        ({}, "run.log", r"has no run.log"),
    ],
)
def test_only_whole_runs_are_recorded(
    run: Make, end: dict[str, int], missing: str, message: str
) -> None:
    checkpoint = run(**end)
    if missing:
        (checkpoint.parent / missing).unlink()
    with pytest.raises(ValueError, match=message):
        record(checkpoint)
    assert not (checkpoint.parents[1] / "results").exists()


def test_a_test_of_another_configuration_is_no_record(run: Make) -> None:
    with pytest.raises(ValueError, match=r"as it was trained, but train.seed is 8, was 0"):
        record(run(), "", "train.seed=8")
    with pytest.raises(ValueError, match=r"data.dataset is 'refcoco', was 'demo'"):
        record(run(), "", "data.dataset=refcoco")


def test_an_older_run_lacks_its_memory(run: Make) -> None:
    checkpoint = run()
    state = load_state(checkpoint.parent / "last.pt")
    del state["peak_memory"]
    save_state(checkpoint.parent / "last.pt", state)
    record(checkpoint)
    (path,) = (checkpoint.parents[1] / "results").glob("*.json")
    assert json.loads(path.read_text())["training"]["peak_memory"] is None
