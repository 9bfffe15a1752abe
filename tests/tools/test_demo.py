"""Run the command of the page: its checkpoints, its mistakes, and the files that it leaves."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from tools import demo

COMMITTED = demo.ROOT / demo.DEMO_CHECKPOINTS[1]
needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="no gradio; pip install -r requirements-demo.txt"
)


def test_names_are_those_of_runs_and_files() -> None:
    paths = ["runs/a/best.safetensors", "b.safetensors", "other/a/best.safetensors"]
    found = demo.choose_checkpoints([Path(path) for path in paths])
    assert list(found) == ["a", "b", "a (2)"]
    with pytest.raises(ValueError, match=r"--checkpoint b\.safetensors is given twice"):
        demo.choose_checkpoints([Path("b.safetensors")] * 2)


def test_without_a_checkpoint_that_of_the_demo_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from utils.config import load_config

    trained, committed = demo.DEMO_CHECKPOINTS
    folder = load_config(demo.ROOT / "config/demo/etris.yaml").run.folder
    assert f"{folder}/best.safetensors" == trained, "make demo trains it there"
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="make demo"):
        demo.choose_checkpoints(None)
    for name in (committed, trained):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        assert demo.choose_checkpoints(None) == {"demo-etris": tmp_path / name}
        assert name in capsys.readouterr().out


def test_without_gradio_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "tools.page.app", raising=False)
    assert demo.main(["--port", "0"]) == 2
    assert "pip install -r requirements-demo.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--examples", "none.png"], "none.png"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1 --port 7860: "),
        (["--port", "99999"], "--port 99999"),
    ],
)
def test_mistakes(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(words) == 2
    assert named in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo.main(["--port", str(port)]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command as a process of its own, which keeps its files in ``tmp_path``; its address."""
    command = [sys.executable, str(demo.ROOT / "tools/demo.py"), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--checkpoint", str(COMMITTED)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        opened = next(line for line in process.stdout if line.startswith("open "))
        yield process, opened.split()[1]
    finally:
        process.kill()
        process.communicate()


@needs_gradio
def test_it_answers_this_machine_alone_and_leaves_nothing(
    served: tuple[subprocess.Popen, str], tmp_path: Path
) -> None:
    process, url = served
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    page = requests.get(url).text
    assert "Find what a sentence names" in page
    outside = r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?:https?:)?//"""
    assert re.findall(outside, page) == []
    assert requests.get(url, headers={"Host": "evil.example"}).status_code == 400
    assert upload(url, b"given up") == 200
    folder = next(tmp_path.glob("page-*"))
    assert [path.read_bytes() for path in folder.rglob("*.png")] == [b"given up"]
    assert folder.stat().st_mode & 0o077 == 0
    assert upload(url, bytes(20 * 2**20 + 1)) == 413
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors and "warning: --host" not in errors
    assert list(tmp_path.iterdir()) == []


def upload(url: str, content: bytes) -> int:
    """Send a file as the page does; the status of the answer."""
    return requests.post(
        f"{url}/gradio_api/upload", files={"files": ("a.png", content)}
    ).status_code


@needs_gradio
def test_another_host_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    segmenter = SimpleNamespace(backbone={"name": "RN50"})
    predictor = SimpleNamespace(threshold=0.5, segmenter=segmenter, device="cpu")
    monkeypatch.setattr("engine.prediction.load", lambda *_, **__: predictor)
    assert demo.main(["--port", "0", "--host", "0.0.0.0"]) == 0
    assert "warning: --host 0.0.0.0" in capsys.readouterr().err
