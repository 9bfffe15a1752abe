"""The page served by this process, and a real Chromium that looks at it."""

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
from tools.page.examples import draw_examples
from tools.page.handlers import Handlers
from tools.page.server import POLICY, application, listen, private_folder, server

CHECKPOINT = Path(__file__).parents[2] / "pretrain/demo-etris.safetensors"
MOST_BYTES = 300_000  # of an upload
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
    """The address of a running page, the folder of its uploads, and where it has called."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.outside: list[Any] = []

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def site(
    predictors: dict[str, Predictor], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    connect = socket.socket.connect
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("served")))
        folder = stack.enter_context(private_folder())
        pytest.importorskip("gradio", reason="no gradio; pip install -r requirements-demo.txt")
        from tools.page.app import appearance, build

        with listen("127.0.0.1", 0) as listener:
            site = Site(f"http://127.0.0.1:{listener.getsockname()[1]}", folder)

            def watched(self: socket.socket, address: Any) -> None:
                if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
                    site.outside.append(address)
                connect(self, address)

            patch.setattr(socket.socket, "connect", watched)
            page = build(Handlers(predictors, draw_examples()), 0.35)
            running = server(application(page, appearance(), "127.0.0.1", MOST_BYTES))
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
            thread.start()
            yield site
            running.should_exit = True
            thread.join(20)
            assert not thread.is_alive() and site.outside == []


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
    """The page, freshly opened. It may ask nobody else for anything, and may not complain."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    outside, complaints = [], []

    def answer(route: Any) -> None:
        inside = route.request.url.startswith((f"{site.url}/", "data:", "blob:"))
        if not inside:
            outside.append(route.request.url)
        route.continue_() if inside else route.abort()

    context.route("**/*", answer)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    response = page.goto(site.url)
    assert response.headers["content-security-policy"] == POLICY
    page.wait_for_selector("html[data-ready] #examples button")
    yield page
    context.close()
    assert outside == [] and complaints == []
