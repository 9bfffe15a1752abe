"""Serve the page in this process, and open it in a real Chromium."""

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_segmenter, read_checkpoint, save_checkpoint
from engine.prediction import Predictor, load
from tools.demo import listen, private_folder
from tools.page.handlers import Handlers
from tools.page.inputs import draw_examples

CHECKPOINT = Path(__file__).parents[2] / "pretrain/demo-etris.safetensors"
MAX_BYTES = 300_000  # of an upload
TIMEOUT = 90_000  # milliseconds: machines may be busy


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    """The demo's adapter, and the same with its weights disturbed."""
    checkpoint = read_checkpoint(CHECKPOINT)
    segmenter = load_segmenter(checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in segmenter.trainable_state().values():
            if weight.is_floating_point() and weight.ndim > 1:
                weight += 0.1 * weight.std() * torch.randn_like(weight)
    path = tmp_path_factory.mktemp("run") / "disturbed.safetensors"
    save_checkpoint(path, segmenter, checkpoint.config)
    return {name: load(one, device="cpu") for name, one in (("demo", CHECKPOINT), ("other", path))}


class Site:
    """The address of a running page, and the folder of its uploads."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def site(
    predictors: dict[str, Predictor], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The page, served. The process may connect to no other machine."""
    connect, outside = socket.socket.connect, []

    def watched(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            outside.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("served")))
        folder = stack.enter_context(private_folder())
        pytest.importorskip("gradio", reason="no gradio; pip install -r requirements-demo.txt")
        from tools.page.app import build, make_server

        listener = stack.enter_context(listen("127.0.0.1", 0))
        patch.setattr(socket.socket, "connect", watched)
        page = build(Handlers(predictors, draw_examples(), folder), 0.35)
        server = make_server(page, "127.0.0.1", MAX_BYTES)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", folder)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive() and outside == []


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright; pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """The page, freshly opened. It may ask no other site for anything, and may raise no error."""
    from tools.page.app import POLICY

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    outside, errors = [], []

    def answer(route: Any) -> None:
        inside = route.request.url.startswith((f"{site.url}/", "data:", "blob:"))
        if not inside:
            outside.append(route.request.url)
        route.continue_() if inside else route.abort()

    context.route("**/*", answer)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.on("pageerror", lambda error: errors.append(str(error)))
    response = page.goto(site.url)
    assert response.headers["content-security-policy"] == POLICY
    page.wait_for_selector("html[data-ready] #examples button")
    yield page
    context.close()
    assert outside == [] and errors == []
