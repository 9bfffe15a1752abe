"""Check the page without gradio: uploads, questions, masks, downloads and examples."""

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
from PIL import Image, ImageColor

from engine.prediction import Predictor, load
from tools.page.drawing import COLOURS, SIDE, lay_over, render_stage
from tools.page.handlers import NOTHING, Handlers, render_problem
from tools.page.inputs import draw_examples, read_examples, take_upload

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
TEXTS = "a red star\n\n  the   ring "
FIRST, BOTH = ("first", NOTHING), ("first", "second")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def predictors(tiny_checkpoint: Callable[..., Path]) -> dict[str, Predictor]:
    """Two small models on one tiny CLIP."""
    return {name: load(tiny_checkpoint(seed), device="cpu") for seed, name in enumerate(BOTH)}


@pytest.fixture
def handlers(predictors: dict[str, Predictor], tmp_path: Path) -> Handlers:
    return Handlers(predictors, draw_examples(), tmp_path)


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


def decode(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def turned(array: np.ndarray) -> bytes:
    tags, content = Image.Exif(), io.BytesIO()
    tags[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    Image.fromarray(array).save(content, "JPEG", exif=tags)
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header claims this many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_an_upload_is_turned_and_deleted_with_its_folder(upload: Callable[..., Path]) -> None:
    path = upload("picture.jpg", turned(IMAGE))
    image = take_upload(path, path.parents[1])
    assert image.shape == (70, 50, 3) and image.dtype == np.uint8
    assert not path.parent.exists(), "its folder's name is a hash of the picture"


def test_a_file_that_is_no_upload_is_neither_read_nor_deleted(
    upload: Callable[..., Path], tmp_path: Path
) -> None:
    path = upload("private.png", png(np.zeros((50, 70, 3), np.uint8)))
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link.png").symlink_to(path)
    for sent in (path, uploads / ".." / "hash" / "private.png", uploads / "link.png"):
        with pytest.raises(ValueError, match=sent.name):
            take_upload(sent, uploads)
        assert path.is_file()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xd8 no picture", "JPEG"),
        (b"", "JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "JPEG"),
        (bomb(50_000, 50_000), "25 million pixels"),
        (bomb(6_000, 6_000), "6000 x 6000 pixels"),
        (bomb(60, 60), ""),
        (png(np.zeros((50, 70, 3), np.uint8))[:-40], ""),
        (bytes(20 * 2**20 + 200_000), "20.2 MB"),
    ],
    ids=["damaged", "empty", "EPS", "bomb", "large", "hollow", "cut", "many bytes"],
)
def test_a_bad_upload_is_refused_and_deleted(
    upload: Callable[..., Path], content: bytes, named: str
) -> None:
    path = upload("broken.jpg", content)
    with pytest.raises(ValueError, match=f"^broken.jpg: .*{re.escape(named)}"):
        take_upload(path, path.parents[1])
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (" \n ", "No sentence"),
        ("a\n" * (len(COLOURS) + 1), "7 sentences"),
        ("a star\n" + "star " * 12, "Sentence 2 is too long: it has 12 .* first reads 7;"),
        ("star" * 1000, "4000 characters"),
    ],
)
def test_a_wrong_question_leaves_the_picture_and_names_the_problem(
    handlers: Handlers, text: str, named: str
) -> None:
    shown, *_ = handlers.take_example(0.35, 0)
    again, stage, problem = handlers.find(shown, 0.35, text, *FIRST)
    assert again is shown and 'class="base"' in stage
    assert re.search(named, problem) and problem.count("</p>") == 1


def test_nothing_is_found_without_a_picture_or_downloaded_without_an_answer(
    handlers: Handlers,
) -> None:
    shown, stage, problem = handlers.find(None, 0.35, "a star", *FIRST)
    assert shown is None and "stage empty" in stage and "No picture" in problem
    assert handlers.find_again(None, 0.35, "a star", *FIRST)[2] == ""
    for file, problem in (handlers.download(None, 0.35), handlers.download(None, 0.35, 0.5)):
        assert file is None and problem != ""


def test_an_answer_that_would_fill_the_memory_is_refused(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.page.handlers.MAX_PROBABILITIES", 132 * 176)
    shown, *_ = handlers.take_example(0.35, 0)
    *_, problem = handlers.find(shown, 0.35, TEXTS, *BOTH)
    assert "2 sentences for 2 adapters" in problem and "176 x 132" in problem
    assert handlers.find(shown, 0.35, "a star", "first", "first")[2] == ""


def test_masks_are_those_of_a_call_and_sliders_need_no_model(
    handlers: Handlers, predictors: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, *_ = handlers.take_example(0.35, 0)
    shown, _, problem = handlers.find(shown, 0.35, TEXTS, *BOTH)
    assert shown is not None and problem == ""
    probability = predictors["second"].probability(shown.image, "the ring")
    threshold = float(np.median(probability))
    monkeypatch.setattr(Predictor, "logits", None)  # whoever runs a model now fails
    stage = render_stage(shown, threshold)
    assert stage.count("<figure") == 2 and stage.count('class="fill"') == 4
    layers = re.findall(r'class="fill" src="data:image/png;base64,([^"]+)"', stage)
    alpha = decode(base64.b64decode(layers[3]))[:, :, 3]
    wanted = (probability > threshold).astype(np.uint8) * 255
    assert 0.2 < (wanted > 0).mean() < 0.8, "an empty or full mask proves little"
    resized = cv2.resize(wanted, (SIDE, SIDE * 132 // 176), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(alpha, resized)

    file, _ = handlers.download(shown, threshold)
    assert file is not None and file["name"] == "masks.zip"
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(file["uri"].partition(",")[2])))
    assert archive.namelist() == [
        f"{name}-{number}-{words}-mask.png"
        for name in BOTH
        for number, words in ((1, "a-red-star"), (2, "the-ring"))
    ]
    assert np.array_equal(decode(archive.read("second-2-the-ring-mask.png")), wanted)
    file, _ = handlers.download(shown, threshold, 0.5)
    assert file is not None and file["name"] == "overlays.zip"


def test_text_stays_text_and_one_mask_is_one_png(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "num_tokens", lambda *_: 3)
    shown, *_ = handlers.take_example(0.35, 0)
    shown, stage, _ = handlers.find(shown, 0.35, "<b> {{7*7}}", *FIRST)
    assert "<b> " not in stage and "&lt;b&gt; {{7*7}}" in stage
    assert "&lt;b&gt;" in render_problem("no <b>")
    files = [handlers.download(shown, 0.35)[0], handlers.download(shown, 0.35, 0.5)[0]]
    assert [file and file["name"] for file in files] == ["1-b-7-7-mask.png", "overlay.png"]


def test_colours_are_mixed_by_opacity_inside_an_outline() -> None:
    colours = [ImageColor.getrgb(colour) for colour in COLOURS]
    masks = np.zeros((2, 50, 70), bool)
    masks[0, 5:30, 5:40], masks[1, 20:45, 30:65] = True, True
    drawn = lay_over(IMAGE, masks, 0.25).astype(int)
    outside = ~masks.any(axis=0)
    assert np.array_equal(drawn[outside], IMAGE[outside])
    mixed = 0.25 * np.array(colours[0]) + 0.75 * IMAGE[15, 15]
    assert np.abs(drawn[15, 15] - mixed).max() <= 0.5
    assert tuple(drawn[5, 20]) == colours[0] and tuple(drawn[44, 50]) == colours[1]
    whole = lay_over(IMAGE, np.ones((1, 50, 70), bool), 0.0)
    assert tuple(whole[0, 30]) == colours[0]
    assert np.array_equal(whole[2:-2, 2:-2], IMAGE[2:-2, 2:-2])


def test_examples_are_always_the_same_or_the_users_own(tmp_path: Path) -> None:
    first, again = draw_examples(), draw_examples()
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert all(len(example.texts) == 2 for example in first)
    (tmp_path / "a.png").write_bytes(png(IMAGE))
    assert [one.image.shape for one in read_examples([str(tmp_path)])] == [IMAGE.shape]
    assert (tmp_path / "a.png").exists(), "only uploads are deleted"
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(IMAGE))
    for words, named in (([str(tmp_path)], "9 pictures"), (["none.png"], "none.png")):
        with pytest.raises(ValueError, match=f"--examples: {named}"):
            read_examples(words)
