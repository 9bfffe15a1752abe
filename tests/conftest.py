"""Tiny CLIPs of both kinds, as models and files in OpenAI's layout; a file server; a browser."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from engine.checkpoint import save_checkpoint
from model import Segmenter, build_segmenter
from model.backbones import CLIP, Sizes, to_openai
from utils.config import Config

# no deadlines: a slow machine is no fault of the code
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
IMAGE_SIZE = 64
MAX_WORDS = 9
END = 49407

TINY_VIT = Sizes(
    embed_dim=32,
    image_width=64,
    depths=(12,),
    patch=16,
    grid=4,
    mlp_width=64,
    text_width=64,
    text_depth=12,
    text_mlp_width=64,
)
TINY_RESNET = replace(TINY_VIT, image_width=4, depths=(1, 1, 2, 1), patch=0, grid=2, mlp_width=0)
# the joint space as wide as the text tower, as in all ViTs of OpenAI
TINY_JOINT = replace(TINY_VIT, embed_dim=64)
TINY = {"vit": TINY_VIT, "resnet": TINY_RESNET, "joint": TINY_JOINT}


@pytest.fixture(scope="session", params=["vit", "resnet"])
def kind(request: pytest.FixtureRequest) -> str:
    """Give both kinds of image tower, in turn."""
    return request.param


@pytest.fixture(scope="session")
def chromium() -> str:
    """Find a Chromium; without one the test is skipped."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH")
    return browser


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``clip_file("vit")``: a file of a tiny random CLIP in OpenAI's layout."""
    folder = tmp_path_factory.mktemp("pretrain")

    def make(kind: str) -> Path:
        path = folder / f"tiny-{kind}.pt"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                clip = CLIP(TINY[kind], image_size=IMAGE_SIZE, max_tokens=77)
            torch.save({key: value.half() for key, value in to_openai(clip).items()}, path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_config(clip_file: Callable[[str], Path]) -> Callable[..., Config]:
    """``tiny_config("vit", {...})``: a configuration on a tiny CLIP; the second fills ``model``."""

    def make(kind: str, model: dict | None = None, **sections: dict) -> Config:
        decoder = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32}
        values = {
            "backbone": {"name": None, "weights": str(clip_file(kind))},
            "bridges": [{"name": "bridger", "dim": 16, "heads": 4}],
            "decoder": decoder,
            **(model or {}),
        }
        data = {"image_size": IMAGE_SIZE, "max_words": MAX_WORDS, "workers": 0}
        data |= sections.pop("data", {})
        return Config.from_dict({"data": data, "model": values, **sections})

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> Callable[..., Path]:
    """``tiny_checkpoint(seed=0, image_size=64, adapter=None)``: a file of an untrained tiny ViT.

    It has an adapter of that name, or else Bridger.
    """

    @cache
    def make(seed: int = 0, image_size: int = IMAGE_SIZE, adapter: str | None = None) -> Path:
        model = {"bridges": [], "adapters": [{"name": adapter}]} if adapter else None
        sections = {"data": {"image_size": image_size}, "train": {"precision": "fp32"}}
        config = tiny_config("vit", model, **sections)
        torch.manual_seed(seed)
        segmenter = build_segmenter(config.model, image_size=image_size, max_tokens=MAX_WORDS)
        path = tmp_path_factory.mktemp("run") / "best.safetensors"
        save_checkpoint(path, segmenter, config)
        return path

    return make


@pytest.fixture
def tiny_segmenter(tiny_config: Callable[..., Config]) -> Callable[..., Segmenter]:
    """``tiny_segmenter("vit", {...})``: the model of ``tiny_config`` with the same arguments."""

    def make(kind: str, model: dict | None = None) -> Segmenter:
        torch.manual_seed(0)
        config = tiny_config(kind, model).model
        return build_segmenter(config, image_size=IMAGE_SIZE, max_tokens=MAX_WORDS)

    return make


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images, sentences of different lengths, and masks."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    ids = torch.zeros(2, MAX_WORDS, dtype=torch.int64)
    ids[0, :4] = torch.tensor([49406, 320, 736, END])
    ids[1, :7] = torch.tensor([49406, 320, 736, 12, 90, 1042, END])
    mask = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    mask[0, 8:32, 8:32], mask[1, 30:60, 20:50] = 1, 1
    return image.to(torch.uint8), ids, mask


class FileServer:
    """Serve ``files`` by their path on 127.0.0.1; ``plan`` has the answers by path.

    The last answer of a plan is repeated: "range" as asked, a status such as "404", "cut"
    after half of the body, "no range" from the beginning, "overlap" from an earlier byte, "wrong"
    in the last byte, "page" with HTML instead, "unsized" without a length, "to PATH" redirects.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.plan: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Range"]))
                steps = server.plan.get(self.path, ["range"])
                server.answer(self, steps.pop(0) if len(steps) > 1 else steps[0])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, step: str) -> None:
        """Send one answer."""
        if step.startswith("to "):
            request.send_response(302)
            request.send_header("Location", step.removeprefix("to "))
            request.end_headers()
            return
        content = b"<html>not here</html>" if step == "page" else self.files.get(request.path)
        if content is None or step.isdecimal():
            request.send_error(int(step) if step.isdecimal() else 404)
            return
        wanted = request.headers["Range"] if step not in ("no range", "page") else None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(content):
            request.send_error(416)
            return
        if step == "overlap":  # RFC 9110 lets a server begin earlier
            start //= 2
        body = content[start:]
        body = body[:-1] + b"?" if step == "wrong" else body
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if step != "unsized":
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if step == "cut" else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A running ``FileServer``; downloads do not wait before they try again."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
