"""Downloads from a server on the loopback: broken off, without Range, wrong, absent."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools import download_weights
from tools.download_weights import WEIGHTS, file_name, main

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves CONTENT; each entry of ``plan`` (the last one for ever) says how to answer."""

    def __init__(self) -> None:
        self.plan: list[str] = ["range"]
        self.ranges: list[str | None] = []
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                step = server.plan.pop(0) if len(server.plan) > 1 else server.plan[0]
                server.ranges.append(self.headers["Range"])
                server.paths.append(self.path)
                server.answer(self, step)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, step: str) -> None:
        if step.isdecimal():
            request.send_error(int(step))
            return
        wanted = request.headers["Range"]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if step == "no range":
            start = 0
        if start >= len(CONTENT):
            request.send_error(416)
            return
        if step == "overlap":  # RFC 9110 lets a server begin earlier
            start //= 2
        body = CONTENT[start:]
        if step == "wrong":
            body = body[:-1] + b"?"
        request.send_response(206 if wanted and step != "no range" else 200)
        if wanted and step != "no range":
            request.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if step == "cut" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Path]]:
    monkeypatch.setitem(WEIGHTS, "ViT-B/16", SHA256)
    monkeypatch.setattr(download_weights.time, "sleep", lambda _: None)

    def run(*arguments: str) -> tuple[int, Path]:
        root = tmp_path / "weights"
        code = main(["ViT-B/16", "--root", str(root), "--url", server.url, *arguments])
        return code, root / "ViT-B-16.pt"

    return run


def test_whole_download_shows_progress(run, server, capsys) -> None:
    code, path = run()
    assert code == 0 and path.read_bytes() == CONTENT
    assert server.paths == [f"/{SHA256}/ViT-B-16.pt"] and server.ranges == [None]
    captured = capsys.readouterr()
    assert "done, SHA-256 is right" in captured.out
    assert "ViT-B-16.pt: 100%" in captured.err and "1.05M/1.05M" in captured.err
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_file_that_is_there_is_not_fetched_again(run, server, capsys) -> None:
    run()
    code, path = run()
    assert code == 0 and len(server.paths) == 1
    assert "already there, SHA-256 is right" in capsys.readouterr().out
    path.write_bytes(b"mine")
    assert run()[0] == 2 and path.read_bytes() == b"mine"
    assert "is not OpenAI's ViT-B/16" in capsys.readouterr().err


def test_broken_transfer_is_taken_up_within_one_command(run, server) -> None:
    server.plan = ["cut", "503", "cut", "range"]
    code, path = run()
    assert code == 0 and path.read_bytes() == CONTENT
    half, quarter = len(CONTENT) // 2, len(CONTENT) // 4
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={half + quarter}-"]


def test_broken_transfer_is_taken_up_by_the_next_command(run, server, capsys) -> None:
    server.plan = ["cut"]
    code, path = run("--retries", "0")
    assert code == 2 and not path.exists()
    part = path.with_name("ViT-B-16.pt.part")
    assert part.read_bytes() == CONTENT[: len(CONTENT) // 2]
    error = capsys.readouterr().err
    assert "broke off" in error and f"{part} keeps {len(CONTENT) // 2} bytes" in error
    server.plan = ["range"]
    assert run()[0] == 0 and path.read_bytes() == CONTENT and not part.exists()
    assert server.ranges[-1] == f"bytes={len(CONTENT) // 2}-"


@pytest.mark.parametrize("step", ["no range", "overlap"])
def test_server_that_begins_elsewhere(run, server, step) -> None:
    server.plan = ["cut", step]
    code, path = run()
    assert code == 0 and path.read_bytes() == CONTENT and len(server.ranges) == 2


def test_complete_part_is_verified_and_renamed(run, server, tmp_path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/ViT-B-16.pt.part").write_bytes(CONTENT)
    code, path = run()
    assert code == 0 and path.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"", b"stale", CONTENT + b"too long"])
def test_wrong_checksum_is_never_renamed_into_place(run, server, tmp_path, capsys, left) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/ViT-B-16.pt.part").write_bytes(left)
    server.plan = ["wrong"]
    code, path = run()
    assert code == 2 and list(path.parent.iterdir()) == []
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: http") and f"not {SHA256}" in error
    server.plan = ["range"]
    assert run()[0] == 0 and path.read_bytes() == CONTENT


def test_absent_file_and_full_address(run, server, capsys) -> None:
    server.plan = ["404"]
    code, path = run("--url", f"{server.url}/mirror/ViT-B-16.pt")
    assert code == 2 and not path.exists() and server.paths == ["/mirror/ViT-B-16.pt"]
    assert "/mirror/ViT-B-16.pt: the server answers 404 Not Found" in capsys.readouterr().err


def test_no_server_and_no_address(run, server, capsys) -> None:
    assert run("--url", "http://127.0.0.1:1", "--retries", "1")[0] == 2
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
