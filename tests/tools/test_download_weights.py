"""The command: which file it fetches, what it leaves alone, what it says."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from model import backbones
from tools.download_weights import ELSEWHERE, WEIGHTS, file_name, main

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PUBLISHED = f"/{SHA256}/ViT-B-16.pt"


@pytest.fixture
def run(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    monkeypatch.setitem(WEIGHTS, "ViT-B/16", SHA256)
    server.files[PUBLISHED] = CONTENT

    def run(*arguments: str) -> tuple[int, Path]:
        root = tmp_path / "weights"
        code = main(["ViT-B/16", "--root", str(root), "--url", server.url, *arguments])
        return code, root / "ViT-B-16.pt"

    return run


def test_whole_download_shows_progress(run, server, capsys) -> None:
    code, path = run()
    assert code == 0 and path.read_bytes() == CONTENT
    assert server.requests == [(PUBLISHED, None)]
    captured = capsys.readouterr()
    assert "done, SHA-256 is right" in captured.out
    assert "ViT-B-16.pt: 100%" in captured.err and "1.05M/1.05M" in captured.err
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_file_that_is_there_is_not_fetched_again(run, server, capsys) -> None:
    run()
    code, path = run()
    assert code == 0 and len(server.requests) == 1
    assert "already there, SHA-256 is right" in capsys.readouterr().out
    path.write_bytes(b"mine")
    assert run()[0] == 2 and path.read_bytes() == b"mine"
    assert str(path) in capsys.readouterr().err


def test_broken_transfer_is_taken_up_by_the_next_command(run, server, capsys) -> None:
    server.plan[PUBLISHED] = ["cut", "range"]
    code, path = run("--retries", "0")
    assert code == 2 and not path.exists()
    error = capsys.readouterr().err
    assert f"ViT-B-16.pt.part keeps {len(CONTENT) // 2:,} bytes" in error and "--url" in error
    assert run()[0] == 0 and path.read_bytes() == CONTENT
    assert server.requests[-1] == (PUBLISHED, f"bytes={len(CONTENT) // 2}-")


def test_wrong_checksum_is_never_renamed_into_place(run, server, capsys) -> None:
    server.plan[PUBLISHED] = ["wrong", "range"]
    code, path = run()
    assert code == 2 and list(path.parent.iterdir()) == []
    error = capsys.readouterr().err
    assert f"error: {server.url}" in error and SHA256 in error
    assert run()[0] == 0 and path.read_bytes() == CONTENT


def test_absent_files_and_servers_are_named(run, server, capsys) -> None:
    code, path = run("--url", f"{server.url}/mirror/ViT-B-16.pt")
    assert code == 2 and not path.exists()
    assert server.requests == [("/mirror/ViT-B-16.pt", None)]
    assert "/mirror/ViT-B-16.pt: the server answers 404 Not Found" in capsys.readouterr().err
    assert run("--url", "http://127.0.0.1:1")[0] == 2
    assert "no connection" in capsys.readouterr().err
    assert run("--url", "mirror")[0] == 2
    assert "error: mirror/" in capsys.readouterr().err


def test_names(capsys) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and sha256 in listed for name, sha256 in WEIGHTS.items())
    assert main(["ViT-B/61"]) == 2
    assert "did you mean 'ViT-B/16'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert [file_name(name) for name in ("RN101", "ViT-L/14")] == ["RN101.pt", "ViT-L-14.pt"]
    assert all(len(sha256) == 64 for sha256 in WEIGHTS.values())


def test_weights_from_another_publisher(server, tmp_path: Path, monkeypatch, capsys) -> None:
    """EVA-02 lies in a folder of its own, under the name that its publisher chose."""
    monkeypatch.setitem(WEIGHTS, "EVA02-B/16", SHA256)
    monkeypatch.setitem(ELSEWHERE, "EVA02-B/16", (f"{server.url}/EVA-CLIP", "EVA02_CLIP_B.pt"))
    server.files["/EVA-CLIP/EVA02_CLIP_B.pt"] = CONTENT
    for name in ("EVA02-B/16", "eva02-b-16", "EVA02_CLIP_B.pt"):
        assert main([name, "--root", str(tmp_path)]) == 0
    assert (tmp_path / "EVA02_CLIP_B.pt").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_names_and_files_are_those_that_models_are_built_with() -> None:
    assert {name: file_name(name) for name in WEIGHTS} == {
        name: backbones.file_name(name)
        for name in backbones.BACKBONES
        if not name.startswith("demo-")
    }
