"""Use the page in a real Chromium: masks to the pixel, mistakes, and what stays of an upload."""

import base64
import io
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from engine.prediction import Predictor
from tools.page.drawing import COLOURS, SIDE
from tools.page.inputs import draw_examples

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
torch.set_num_threads(1)
# gradio's use of pandas
pytestmark = pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword)")


def take_example(page: Any, number: int) -> None:
    page.click(f"#examples button >> nth={number}")
    page.locator(".legend").wait_for()
    settle(page)


def ask(page: Any, *texts: str) -> None:
    """Type sentences, press the button and wait until each has its row."""
    page.fill("#text textarea", "\n".join(texts))
    page.click("#find")
    rows = "() => [...document.querySelectorAll('.panel:first-child .words')]"
    same = f"(texts) => ({rows})().map((row) => row.innerText).join() === texts.join()"
    page.wait_for_function(same, arg=[*texts])
    settle(page)


def settle(page: Any) -> None:
    page.wait_for_function("() => !document.querySelector('#stage .meta-text')")


def assert_layer_shows(page: Any, number: int, mask: np.ndarray) -> None:
    """Compare the ``number``-th filled mask of the page with ``mask``, at the size shown."""
    uri = page.locator("#stage .fill").nth(number).get_attribute("src")
    layer = decode(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    scale = SIDE / max(mask.shape)
    size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    wanted = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(layer[:, :, 3] > 0, wanted > 0)


def decode(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def slide(page: Any, slider: str, value: str) -> None:
    page.fill(f"{slider} input[type=number]", value)
    page.press(f"{slider} input[type=number]", "Enter")


def download(page: Any, button: str) -> tuple[str, bytes]:
    with page.expect_download() as started:
        page.click(button)
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def choose(page: Any, dropdown: str, name: str) -> None:
    page.click(f"{dropdown} input")
    page.get_by_role("option", name=name, exact=True).click()


def send(page: Any, name: str, content: bytes) -> None:
    """Upload a file as the dialog would."""
    file = {"name": name, "mimeType": "image/jpeg", "buffer": content}
    page.set_input_files("#upload input[type=file]", file)


def jpeg(**options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(IMAGE).save(content, "JPEG", **options)
    return content.getvalue()


def test_an_example_and_sentences_give_the_masks_of_a_call(
    page: Any, predictors: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw_examples()[0].image
    take_example(page, 0)
    assert page.input_value("#text textarea") == "\n".join(draw_examples()[0].texts)
    ask(page, "the yellow circle", "big black triangle")
    probability = predictors["demo"].probability(image, ["the yellow circle", "big black triangle"])
    for number, one in enumerate(probability):
        assert 0.03 < (one > 0.35).mean() < 0.5
        assert_layer_shows(page, number, one > 0.35)
    assert float(page.inner_text(".time").removesuffix(" s")) > 0

    monkeypatch.setattr(Predictor, "logits", None)  # sliders: whoever runs a model now fails
    before = page.locator("#stage .fill").first.get_attribute("src")
    slide(page, "#threshold", "0.6")
    redrawn = "(before) => document.querySelector('#stage .fill').src !== before"
    page.wait_for_function(redrawn, arg=before)
    assert_layer_shows(page, 0, probability[0] > 0.6)
    name, content = download(page, "#masks")
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert name == "masks.zip" and archive.namelist()[1] == "2-big-black-triangle-mask.png"
    mask = decode(archive.read("2-big-black-triangle-mask.png"))
    assert np.array_equal(mask, (probability[1] > 0.6) * np.uint8(255))

    slide(page, "#opacity", "1")
    drawn = decode(page.locator("#stage .picture").screenshot())[:, :, 2::-1].astype(int)
    size = drawn.shape[1::-1]
    mask = cv2.resize(
        (probability[0] > 0.6).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST
    )
    kernel = np.ones((9, 9), np.uint8)
    off = np.abs(drawn - ImageColor.getrgb(COLOURS[0])).max(axis=2)
    assert off[cv2.erode(mask, kernel) > 0].max() <= 2 < off[cv2.dilate(mask, kernel) == 0].min()
    name, content = download(page, "#overlays")
    assert name == "overlay.png" and decode(content).shape == image.shape


def test_a_second_adapter_is_shown_beside_the_first(
    page: Any, predictors: dict[str, Predictor]
) -> None:
    take_example(page, 1)
    ask(page, "the green star")
    choose(page, "#other", "other")
    page.locator(".panels-2").wait_for()
    settle(page)
    assert page.locator("figcaption b").all_inner_texts() == ["demo", "other"]
    masks = [one(draw_examples()[1].image, "the green star") for one in predictors.values()]
    assert all(mask.any() for mask in masks) and not np.array_equal(*masks)
    for number, mask in enumerate(masks):
        assert_layer_shows(page, number, mask)
    choose(page, "#other", "nothing")
    page.locator(".panels-1").wait_for()
    choose(page, "#adapter", "other")
    page.locator("figcaption b", has_text="other").wait_for()
    settle(page)
    assert_layer_shows(page, 0, masks[1])


def test_an_upload_is_turned_shown_and_not_stored(page: Any, site: Any) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    send(page, "turned.jpg", jpeg(exif=tags))
    page.locator("#stage .base").wait_for()
    box = page.locator("#stage .picture").bounding_box()
    assert box["height"] / box["width"] == pytest.approx(90 / 60, abs=0.02)
    assert site.files() == []
    ask(page, "a star")
    assert site.files() == []
    assert page.evaluate("async () => (await indexedDB.databases()).length") == 0


def test_a_picture_can_be_pasted(page: Any, site: Any) -> None:
    paste = """(bytes) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
      const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
      document.body.dispatchEvent(event);
    }"""
    page.evaluate(paste, list(cv2.imencode(".png", IMAGE[:40, :40])[1].tobytes()))
    page.locator("#stage .base").wait_for()
    assert site.files() == []


def test_mistakes_are_one_sentence_and_the_page_goes_on(page: Any, site: Any) -> None:
    page.fill("#text textarea", "a star")
    page.click("#find")
    page.locator(".problem", has_text="No picture yet").wait_for()
    send(page, "broken.jpg", b"\xff\xd8 no picture")
    page.locator(".problem", has_text="broken.jpg").wait_for()
    assert site.files() == []
    send(page, "good.jpg", jpeg())
    page.locator("#stage .base").wait_for()
    assert page.locator(".problem").count() == 0
    page.fill("#text textarea", "star " * 40)
    page.click("#find")
    page.locator(".problem", has_text="40 words").wait_for()
    ask(page, "a star")
    assert page.locator(".problem").count() == 0


def test_no_address_is_fetched_for_a_visitor(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    name = "gradio.processing_utils.async_ssrf_protected_download"
    monkeypatch.setattr(name, lambda url, **_: fetched.append(url))
    ask_for = """async (file) => {
      const body = { fn_index: 0, data: [null, 0.5, file], session_hash: "visitor" };
      const head = { method: "POST", headers: { "Content-Type": "application/json" } };
      await fetch("gradio_api/queue/join", { ...head, body: JSON.stringify(body) });
      return await (await fetch("gradio_api/queue/data?session_hash=visitor")).text();
    }"""
    file = {"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
    assert "a.png: is no upload" in page.evaluate(ask_for, file)
    assert fetched == []


def test_a_file_that_is_too_large_is_refused(page: Any, site: Any) -> None:
    send(page, "large.jpg", jpeg() + bytes(300_000))
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    assert site.files() == []
