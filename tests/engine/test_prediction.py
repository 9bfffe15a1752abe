"""Check the three-line call: load a checkpoint, give it a picture and a sentence, get a mask."""

import gc
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.prediction import Predictor, count_bytes, load
from utils.config import Config
from utils.files import sha256_of

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Callable[..., Path]) -> Predictor:
    return load(tiny_checkpoint(), device="cpu")


def frozen(predictor: Predictor) -> dict[str, torch.Tensor]:
    clip = predictor.segmenter.encoder.clip
    return {name: value for name, value in clip.state_dict().items() if name in clip.frozen}


def test_a_mask_depends_neither_on_the_kind_of_picture_nor_on_other_sentences(
    predictor: Predictor, tmp_path: Path
) -> None:
    texts = ["a red star", "the ring on the left", *["a star"] * 8]
    together = predictor.probability(IMAGE, texts)
    assert together.shape == (10, *IMAGE.shape[:2]) and together.dtype == np.float32
    predictor.threshold = float(np.median(together[0]))
    mask = predictor(IMAGE, texts[0])
    assert mask.shape == IMAGE.shape[:2] and mask.dtype == bool and 0.2 < mask.mean() < 0.8
    Image.fromarray(IMAGE).save(tmp_path / "picture.png")
    for same in (tmp_path / "picture.png", str(tmp_path / "picture.png"), Image.fromarray(IMAGE)):
        assert np.array_equal(predictor(same, texts[0]), mask)
    for text, probability in zip(texts[:3], together, strict=False):
        assert np.array_equal(predictor.probability(IMAGE, text), probability)
    assert not np.array_equal(together[0], together[1])
    assert np.array_equal(predictor(IMAGE, texts), together > predictor.threshold)


def test_tokens_are_counted_before_a_sentence_is_cut(predictor: Predictor) -> None:
    assert predictor.num_tokens("a star") == 4 <= predictor.max_words
    assert predictor.num_tokens("a " * 20) == 22 > predictor.max_words


@pytest.mark.parametrize(
    ("image", "text", "named"),
    [
        (IMAGE, " ", "sentence 1"),
        (IMAGE, ["a star", ""], "sentence 2"),
        (IMAGE, [], "no sentence"),
        (IMAGE / 255, "a star", "float64"),
        ("missing.png", "a star", "missing.png"),
    ],
)
def test_wrong_calls_are_refused(predictor: Predictor, image: Any, text: Any, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        predictor(image, text)


def test_adapters_share_one_frozen_clip_and_keep_their_own(
    tiny_checkpoint: Callable[..., Path], predictor: Predictor
) -> None:
    alone = predictor.probability(IMAGE, "a star")
    other = load(tiny_checkpoint(adapter="snf"), device="cpu")
    for name, tensor in frozen(predictor).items():
        assert frozen(other)[name].data_ptr() == tensor.data_ptr(), name
    assert np.array_equal(predictor.probability(IMAGE, "a star"), alone)
    assert not np.array_equal(other.probability(IMAGE, "a star"), alone)
    weights = [list(one.segmenter.state_dict().values()) for one in (predictor, other)]
    shared = count_bytes(frozen(predictor).values())
    assert count_bytes(weights[0] + weights[1]) == sum(map(count_bytes, weights)) - shared
    assert f"{shared / 1e6:.1f} MB of a frozen CLIP" in repr(predictor)


def test_only_equal_positions_are_shared_and_unused_tensors_are_freed(
    tiny_checkpoint: Callable[..., Path], predictor: Predictor
) -> None:
    first = load(tiny_checkpoint(image_size=96), device="cpu")
    pointers = {name: tensor.data_ptr() for name, tensor in frozen(first).items()}
    others = frozen(predictor)
    different = {name for name, pointer in pointers.items() if pointer != others[name].data_ptr()}
    assert different == {"visual.positions"}
    assert first(IMAGE, "a star").shape == predictor(IMAGE, "a star").shape
    second = load(tiny_checkpoint(image_size=96), device="cpu")
    assert frozen(second)["visual.positions"].data_ptr() == pointers["visual.positions"]
    positions = weakref.ref(first.segmenter.encoder.clip.visual.positions)
    del first
    gc.collect()
    assert positions() is not None, "the second model still uses it"
    del second
    gc.collect()
    assert positions() is None


def test_frozen_weights_are_stored_in_the_precision_of_the_run(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    exact = load(tiny_checkpoint(), device="cpu")
    config = Config.from_dict(exact.config.to_dict() | {"train": {"precision": "bf16"}})
    halved = [load(tiny_checkpoint(), device="cpu", config=config) for _ in range(2)]
    name = "visual.blocks.0.mlp.branch.fc1.weight"
    weights = [frozen(one)[name] for one in (exact, *halved)]
    assert [weight.dtype for weight in weights] == [torch.float32, *[torch.bfloat16] * 2]
    assert weights[1].data_ptr() == weights[2].data_ptr()
    exact.precision = "bf16"  # the same products, rounded at every use
    expected = exact.probability(IMAGE, "a star")
    assert np.array_equal(halved[0].probability(IMAGE, "a star"), expected)


def test_the_backbone_is_found_by_its_hash(
    tiny_checkpoint: Callable[..., Path],
    predictor: Predictor,
    clip_file: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, original = tiny_checkpoint(), clip_file("vit")
    sha256, away = sha256_of(original), original.with_name("away.pt")
    monkeypatch.chdir(tmp_path)
    original.rename(away)
    try:
        (tmp_path / "pretrain").mkdir()
        (tmp_path / "pretrain" / "another.pt").write_bytes(b"another")
        with pytest.raises(ValueError, match=sha256):
            load(path)
        shutil.copy(away, tmp_path / "pretrain" / "renamed.pt")
        found = load(path, device="cpu")
    finally:
        away.rename(original)
    assert found.segmenter.backbone["weights"] == str(tmp_path / "pretrain" / "renamed.pt")
    wanted = predictor.probability(IMAGE, "a star")
    assert np.array_equal(found.probability(IMAGE, "a star"), wanted)
