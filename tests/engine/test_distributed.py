"""Two processes on two nodes: they train and score as one would, and stop and go on together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import make_config, make_trainer, rows

from utils.distributed import start_processes

SCRIPT = Path(__file__).with_name("train_fake.py")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train_fake.py`` leaves when it is started on two nodes, as torchrun starts it."""
    folder = tmp_path_factory.mktemp("nodes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    processes = [
        subprocess.Popen(command, env=os.environ | place | {"RANK": rank, "OMP_NUM_THREADS": "1"})
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return folder


@pytest.mark.parametrize(("run", "num_rows", "count"), [("plain", 12, 9), ("mixed", 16, 13)])
def test_two_nodes_train_and_score_as_one_process(
    nodes: Path, tmp_path: Path, run: str, num_rows: int, count: int
) -> None:
    make_trainer(tmp_path, make_config(), mixed=run == "mixed").fit()
    ours, theirs = rows(nodes / run), rows(tmp_path)
    assert len(ours) == len(theirs) == num_rows
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    assert [row["val/count"] for row in ours if "val/count" in row] == [count] * 2  # none twice


@pytest.mark.parametrize("run", ["plain", "mixed", "whole", "parts"])
def test_processes_have_the_same_weights_and_statistics(nodes: Path, run: str) -> None:
    digests = [(nodes / run / f"digest{rank}").read_text() for rank in range(2)]
    assert digests[0] == digests[1]


def test_processes_stop_together_and_continue_bit_for_bit(nodes: Path) -> None:
    assert [(nodes / "parts" / f"stopped{rank}").read_text() for rank in range(2)] == ["143 3"] * 2
    assert rows(nodes / "parts") == rows(nodes / "whole")


def test_the_device_is_that_of_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with start_processes() as processes:
        assert processes.device == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--nproc-per-node 2"), start_processes():
        pass
