"""The page without gradio: what it takes, asks, keeps, draws and hands out."""

import base64
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from engine.checkpoint import save_checkpoint
from engine.prediction import Predictor, load
from model import build_segmenter
from tools.page import markup, uploads
from tools.page.answers import MOST_SENTENCES, read_sentences
from tools.page.examples import draw_examples, read_examples
from tools.page.handlers import NOTHING, Handlers
from tools.page.layers import COLOURS, SIDE, lay_over
from tools.page.uploads import take_upload

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
TEXTS = "a red star\n\n  the   ring "
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def predictors(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable
) -> dict[str, Predictor]:
    """Two small models on one tiny CLIP."""
    config = tiny_config("vit", train={"precision": "fp32"})
    found = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        segmenter = build_segmenter(config.model, image_size=64, max_words=9)
        path = tmp_path_factory.mktemp(name) / "best.safetensors"
        save_checkpoint(path, segmenter, config)
        found[name] = load(path, device="cpu")
    return found


@pytest.fixture
def handlers(predictors: dict[str, Predictor]) -> Handlers:
    return Handlers(predictors, draw_examples())


@pytest.fixture
def upload(tmp_path: Path) -> Callable[..., Path]:
    """``upload("a.png", content)``: a file in a folder of its own, as gradio leaves them."""

    def make(name: str, content: bytes) -> Path:
        (tmp_path / "hash").mkdir()
        path = tmp_path / "hash" / name
        path.write_bytes(content)
        return path

    return make


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def exif(array: np.ndarray, orientation: int) -> bytes:
    tags, content = Image.Exif(), io.BytesIO()
    tags[0x0112] = orientation
    Image.fromarray(array).save(content, "JPEG", exif=tags, quality=100)
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims this many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (png(IMAGE[:, :, 0]), (50, 70, 3)),
        (png(np.dstack([IMAGE, IMAGE[:, :, :1]])), (50, 70, 3)),
        (png(IMAGE.astype(np.uint16) * 257), (50, 70, 3)),
        (exif(IMAGE, 6), (70, 50, 3)),
    ],
    ids=["grey", "rgba", "16 bit", "turned"],
)
def test_an_upload_comes_out_as_rgb_and_is_gone(
    upload: Callable[..., Path], content: bytes, shape: tuple[int, ...]
) -> None:
    path = upload("picture.png", content)
    image = take_upload(path)
    assert image.shape == shape and image.dtype == np.uint8
    assert not path.parent.exists(), "its folder's name is a hash of the picture"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xd8 no picture", "broken.jpg: no picture that can be read; give a JPEG"),
        (b"", "broken.jpg: no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),
        (bomb(50_000, 50_000), "broken.jpg: far too many pixels; .* 25 million pixels"),
        (bomb(6_000, 6_000), "broken.jpg: 6000 x 6000 pixels are too many"),
        (bomb(60, 60), "broken.jpg: "),
        (png(np.zeros((50, 70, 3), np.uint8))[:-40], "broken.jpg: "),
    ],
    ids=["damaged", "empty", "EPS", "bomb", "large", "hollow", "cut"],
)
def test_a_bad_upload_is_explained_and_gone(
    upload: Callable[..., Path], content: bytes, message: str
) -> None:
    path = upload("broken.jpg", content)
    with pytest.raises(ValueError, match=f"^(?!.*hash/).*{message}"):
        take_upload(path)
    assert not path.parent.exists()


def test_a_file_that_is_too_large_is_not_opened(
    upload: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"a\.png: 1\.1 MB are too much; a picture may have 1 MB"):
        take_upload(upload("a.png", bytes(1_200_000)))


def test_sentences_are_lines() -> None:
    assert read_sentences(TEXTS) == ["a red star", "the ring"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n ", "No sentence yet; type what to find"),
        ("a\n" * (MOST_SENTENCES + 1), "7 sentences are too many at once"),
        ("a star\n" + "star " * 12, "Sentence 2 is too long: it has 12 words .* first reads 7;"),
        ("star" * 1000, "The sentence has 4000 characters"),
    ],
)
def test_what_cannot_be_asked_is_said_on_the_page(
    handlers: Handlers, text: str, message: str
) -> None:
    shown, *_ = handlers.take_example(0, 0.35)
    again, stage, problem = handlers.find(shown, text, "first", NOTHING, 0.35)
    assert again is shown and 'class="base"' in stage
    assert re.search(message, problem) and problem.count("</p>") == 1


def test_without_a_picture_or_an_answer(handlers: Handlers) -> None:
    shown, stage, problem = handlers.find(None, "a star", "first", NOTHING, 0.35)
    assert shown is None and "stage empty" in stage and "No picture yet" in problem
    assert handlers.find_again(None, "a star", "first", NOTHING, 0.35)[2] == ""
    for file, problem in (handlers.masks(None, 0.35), handlers.overlays(None, 0.35, 0.5)):
        assert file is None and "nothing to download yet" in problem.lower()


def test_a_picture_that_would_fill_the_memory_with_masks(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.page.answers.MOST_KEPT", 132 * 176)
    shown, *_ = handlers.take_example(0, 0.35)
    *_, problem = handlers.find(shown, TEXTS, "first", "second", 0.35)
    assert "2 sentences for 2 adapters are too much for a picture of 176 x 132 pixels" in problem
    assert handlers.find(shown, "a star", "first", "first", 0.35)[2] == ""


def test_masks_are_those_of_a_call_and_sliders_need_no_model(
    handlers: Handlers, predictors: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = handlers.examples[0].image
    shown, *_ = handlers.take_example(0, 0.35)
    shown, _, problem = handlers.find(shown, TEXTS, "first", "second", 0.35)
    assert problem == ""
    probability = predictors["second"].probability(image, "the ring")
    threshold = float(np.median(probability))
    monkeypatch.setattr(Predictor, "logits", None)  # whoever runs a model now fails
    stage = handlers.redraw(shown, threshold)
    assert stage.count("<figure") == 2 and stage.count('class="fill"') == 4
    layers = re.findall(r'class="fill" src="data:image/png;base64,([^"]+)"', stage)
    alpha = decode(base64.b64decode(layers[3]))[:, :, 3]
    wanted = (probability > threshold).astype(np.uint8) * 255
    assert 0.2 < (wanted > 0).mean() < 0.8, "an empty or full mask proves little"
    resized = cv2.resize(wanted, (SIDE, SIDE * 132 // 176), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(alpha, resized)

    file, _ = handlers.masks(shown, threshold)
    assert file is not None and file["name"] == "masks.zip"
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(file["uri"].partition(",")[2])))
    assert archive.namelist() == [
        f"{name}-{number}-{words}-mask.png"
        for name in ("first", "second")
        for number, words in ((1, "a-red-star"), (2, "the-ring"))
    ]
    assert np.array_equal(decode(archive.read("second-2-the-ring-mask.png")), wanted)
    file, _ = handlers.overlays(shown, threshold, 0.5)
    assert file is not None and file["name"] == "overlays.zip"


def test_one_mask_is_one_png(handlers: Handlers) -> None:
    shown, *_ = handlers.take_example(0, 0.35)
    shown, *_ = handlers.find(shown, "a/b: <star>", "first", NOTHING, 0.35)
    file, _ = handlers.masks(shown, 0.35)
    assert file is not None and file["name"] == "1-a-b-star-mask.png"
    assert handlers.overlays(shown, 0.35, 0.5)[0]["name"] == "overlay.png"  # type: ignore[index]


def test_colours_are_mixed_by_opacity_inside_an_outline() -> None:
    masks = [np.zeros((50, 70), bool), np.zeros((50, 70), bool)]
    masks[0][5:30, 5:40], masks[1][20:45, 30:65] = True, True
    drawn = lay_over(IMAGE, masks, 0.25).astype(int)
    outside = ~(masks[0] | masks[1])
    assert np.array_equal(drawn[outside], IMAGE[outside])
    mixed = 0.25 * np.array(COLOURS[0]) + 0.75 * IMAGE[15, 15]
    assert np.abs(drawn[15, 15] - mixed).max() <= 0.5
    assert tuple(drawn[5, 20]) == COLOURS[0] and tuple(drawn[44, 50]) == COLOURS[1]
    whole = lay_over(IMAGE, [np.ones((50, 70), bool)], 0.0)
    assert tuple(whole[0, 30]) == COLOURS[0] and np.array_equal(
        whole[2:-2, 2:-2], IMAGE[2:-2, 2:-2]
    )


def test_text_stays_text(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<img src=x onerror=alert(1)> {{ 7 * 7 }} ${7}"
    shown, *_ = handlers.take_example(0, 0.35)
    monkeypatch.setattr(Predictor, "num_tokens", lambda *_: 3)
    _, stage, _ = handlers.find(shown, evil, "first", NOTHING, 0.35)
    assert "<img src=x" not in stage and "&lt;img src=x" in stage and "{{ 7 * 7 }}" in stage
    assert "<b>" not in markup.problem("<b>").replace('<p class="problem" role="alert">', "")


def test_examples_are_always_the_same_or_the_users_own(tmp_path: Path) -> None:
    first, again = draw_examples(), draw_examples()
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert all(len(example.texts) == 2 for example in first)
    (tmp_path / "a.png").write_bytes(png(IMAGE))
    assert [one.image.shape for one in read_examples([str(tmp_path)])] == [IMAGE.shape]
    assert (tmp_path / "a.png").exists(), "only uploads are deleted"
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(IMAGE))
    with pytest.raises(ValueError, match="--examples: 9 pictures; name 8 at most"):
        read_examples([str(tmp_path)])
    with pytest.raises(ValueError, match=r"--examples: none\.png: no such picture"):
        read_examples(["none.png"])


def decode(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
