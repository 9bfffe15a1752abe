"""The demo: guessing without a sentence, stages that are done once, and one tiny real run."""

import hashlib
import json
import os
import pickle
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tools import train_demo
from utils.config import Config, load_config

RECTANGLES = {1: (0, 0, 4, 5), 2: (10, 0, 8, 5), 3: (0, 6, 2, 2)}  # x, y, width, height


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A data set of one picture with objects of 20, 40 and 4 pixels; the second is referred to."""
    folder = tmp_path / "datasets" / "demo"
    folder.mkdir(parents=True)
    annotations = [
        {"id": name, "image_id": 7, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for name, (x, y, w, h) in RECTANGLES.items()
    ]
    image = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 10, "width": 20}
    instances = {"images": [image], "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(instances))
    sentences = [{"sent_id": number, "sent": f"sentence {number}"} for number in range(300)]
    reference = {"ref_id": 0, "ann_id": 2, "image_id": 7, "category_id": 1, "split": "val"}
    refs = [reference | {"sentences": sentences}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return tmp_path / "datasets"


def test_guesses(scene: Path) -> None:
    union, chosen = train_demo.guess_scores(scene, "val").values()
    assert (union.intersection, union.union, union.count) == (300 * 40, 300 * 64, 300)
    assert union.oIoU == union.mIoU == pytest.approx(100 * 40 / 64)
    # One of three objects: right in a third of the cases, without any overlap in the others.
    assert chosen.mIoU == pytest.approx(100 / 3, abs=8)
    num_right = chosen.hits[0]
    assert chosen.intersection == 40 * num_right
    assert 40 * num_right + 44 * (300 - num_right) < chosen.union < 40 * num_right + 60 * 300
    assert train_demo.guess_scores(scene, "val")["guess: a random object"] == chosen
    assert train_demo.guess_scores(scene, "val", seed=1)["guess: a random object"] != chosen


class Commands:
    """Stands for the commands: notes them and leaves what they would leave."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.failing: str | None = None

    def __call__(self, words: list[str]) -> None:
        script = Path(words[0]).stem
        self.called.append(script)
        if script == self.failing:
            raise subprocess.CalledProcessError(130, shlex.join(["python", *words]))
        values = dict(pairwise(words))
        if script == "train":
            folder = Path(load_config(values["--config"]).run.folder or "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "best.safetensors").write_text("weights")
        elif script == "test":
            checkpoint, output = Path(values["--checkpoint"]), Path(values["--output"])
            config = load_config(values["--config"]).to_dict() if "--config" in values else {}
            scores = {"oIoU": 12.5, "mIoU": 25.0, "Pr@0.5": 50.0}
            results = {
                "command": shlex.join(["python", *words]),
                "checkpoint": {"sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()},
                "data": {"fingerprint": "f"},
                "config": config,
                "splits": dict.fromkeys(("val", "testA", "testB"), scores),
            }
            output.mkdir(parents=True, exist_ok=True)
            (output / "results.json").write_text(json.dumps(results))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(train_demo, "run_script", commands)
    monkeypatch.setattr("utils.data.store.ReferStore.__init__", _fake_store)
    monkeypatch.chdir(train_demo.ROOT)  # main() goes there
    return commands


def _fake_store(self, *_: object) -> None:
    self.header = {"fingerprint": "f"}


@pytest.fixture
def arguments(scene: Path, tmp_path: Path) -> list[str]:
    config = {"data": {"dataset": "demo", "root": str(scene)}, "run": {"folder": f"{tmp_path}/run"}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))  # JSON is YAML
    (tmp_path / "committed.safetensors").write_text("other weights")
    return [
        f"--config={tmp_path}/tiny.yaml",
        f"--checkpoint={tmp_path}/committed.safetensors",
    ]


def test_stages_run_once(commands: Commands, arguments: list[str], tmp_path, capsys) -> None:
    def run_again(*options: str) -> list[str]:
        commands.called.clear()
        assert train_demo.main([*arguments, *options]) == 0
        return commands.called

    assert run_again() == ["prepare_datasets", "train", "test", "test"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-15:-2]]
    assert rows[0] == ["split", "oIoU", "mIoU", "Pr@0.5"]
    assert [row[0] for row in rows[1::4]] == ["val", "testA", "testB"]
    assert rows[1] == ["val", "trained", "here", "12.50", "25.00", "50.00"]
    assert rows[2] == ["committed", "committed.safetensors", "12.50", "25.00", "50.00"]
    assert rows[3][-3:-1] == ["62.50", "62.50"]

    assert run_again() == ["prepare_datasets"]
    assert capsys.readouterr().out.count("done already: python test.py") == 2
    (tmp_path / "committed.safetensors").write_text("new weights")
    assert run_again() == ["prepare_datasets", "test"]
    config = json.loads((tmp_path / "tiny.yaml").read_text()) | {"train": {"seed": 1}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    assert run_again() == ["prepare_datasets", "train", "test"]
    assert run_again("--fresh") == ["prepare_datasets", "train", "test", "test"]


def test_stop_in_a_command_ends_the_demo(commands: Commands, arguments, capsys) -> None:
    commands.failing = "train"
    assert train_demo.main(arguments) == 130
    assert commands.called == ["prepare_datasets", "train"]
    error = capsys.readouterr().err
    assert "stopped in: python train.py --config" in error and "run the demo again" in error


def run_here(words: list[str]) -> None:
    """The real command, in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", list(words))
        runpy.run_path(words[0], run_name="__main__")
    assert ended.value.code == 0


def test_with_the_real_commands(
    tmp_path: Path,
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from engine.checkpoint import save_checkpoint
    from model import build_segmenter
    from utils.demo.writer import write_demo

    monkeypatch.chdir(train_demo.ROOT)
    monkeypatch.setattr(train_demo, "run_script", run_here)
    write_demo(tmp_path / "datasets/demo", num_train_objects=8, num_test_objects=3)
    config = tiny_config(
        "vit",
        data={"dataset": "demo", "root": f"{tmp_path}/datasets"},
        train={"batch_size": 4, "max_steps": 1},
        run={"folder": f"{tmp_path}/run"},
    )
    path, checkpoint = tmp_path / "tiny.yaml", tmp_path / "committed.safetensors"
    path.write_text(config.to_yaml())
    size, max_words = config.data.image_size, config.data.max_words
    segmenter = build_segmenter(config.model, image_size=size, max_tokens=max_words)
    save_checkpoint(checkpoint, segmenter, config)
    arguments = [f"--config={path}", f"--checkpoint={checkpoint}"]
    assert train_demo.main(arguments) == 0
    first = capsys.readouterr().out
    assert "done already" not in first
    pictures = first.splitlines()[-1].split()
    assert pictures[0] == "pictures:" and len(pictures) == 7
    assert all(Path(picture).is_file() for picture in pictures[1:])
    assert train_demo.main(arguments) == 0
    again = capsys.readouterr().out
    assert again.count("done already") == 2
    assert again.splitlines()[-15:] == first.splitlines()[-15:]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--checkpoint", "absent.safetensors"], "absent.safetensors"),
        (["--opts", "data.dataset=refcoco"], "'refcoco'"),
    ],
)
def test_mistakes(commands: Commands, arguments, capsys, extra, expected) -> None:
    assert train_demo.main([*arguments, *extra]) == 2
    assert expected in capsys.readouterr().err and commands.called == []


def test_commands_are_shown_and_their_exit_code_is_kept(tmp_path: Path, capfd) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print('working'); sys.exit(int(sys.argv[1]))")
    train_demo.run_script([str(script), "0"])
    assert capfd.readouterr().out == f"\n$ python {script} 0\nworking\n"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        train_demo.run_script([str(script), "3"])
    assert failed.value.returncode == 3


def test_signals_let_the_command_save_first(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        "def save(number, frame):\n"
        "    time.sleep(0.5); print('saved', flush=True); sys.exit(128 + number)\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n"
        "print('ready', flush=True); time.sleep(30)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(train_demo.ROOT)!r}); from tools import train_demo\n"
        f"try: train_demo.run_script([{str(script)!r}])\n"
        "except train_demo.subprocess.CalledProcessError as error: sys.exit(error.returncode)"
    )
    for number, expected in (("SIGTERM", 143), ("SIGINT", 130)):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            pass
        _send(process, number)
        assert "saved" in process.stdout.read()
        assert process.wait(10) == expected


def _send(process: subprocess.Popen, name: str) -> None:
    if name == "SIGINT":  # the terminal sends it to all of the group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
