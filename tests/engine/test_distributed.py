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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two torchrun agents, one for each node, left after ``train_fake.py``."""
    folder = tmp_path_factory.mktemp("nodes")
    port, agents = str(free_port()), []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
        command += ["--master-addr", "127.0.0.1", "--master-port", port, str(SCRIPT), str(folder)]
        agents.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))
    assert [agent.wait(timeout=120) for agent in agents] == [0, 0]
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
def test_processes_hold_the_same_weights_and_statistics(nodes: Path, run: str) -> None:
    digests = [(nodes / run / f"digest{rank}").read_text() for rank in range(2)]
    assert digests[0] == digests[1]


def test_processes_stop_together_and_go_on_bit_for_bit(nodes: Path) -> None:
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
