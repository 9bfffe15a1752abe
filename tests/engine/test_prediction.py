"""The three-line call: load a checkpoint, give it a picture and a sentence, get a mask."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.checkpoint import save_checkpoint
from engine.prediction import Predictor, load
from engine.sharing import num_bytes
from model import build_segmenter
from model.backbones import sha256_of
from utils.config import Config

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
BRIDGER = {"bridges": [{"name": "bridger", "dim": 16, "heads": 4}]}
FLOWS = {"bridges": [], "adapters": [{"name": "snf", "length": 2}]}


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable
) -> Callable[..., Path]:
    """``checkpoint(seed=0, model={...})``: a file with a small model on the tiny ViT."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(seed: int = 0, model: dict | None = None, **data: Any) -> Path:
        config = tiny_config("vit", model or BRIDGER, data=data, train={"precision": "fp32"})
        torch.manual_seed(seed)
        segmenter = build_segmenter(
            config.model,
            image_size=config.data.image_size,
            max_words=config.data.longest_sentence,
        )
        path = folder / f"{len(list(folder.iterdir()))}.safetensors"
        save_checkpoint(path, segmenter, config)
        return path

    return make


@pytest.fixture(scope="module")
def predictor(checkpoint: Callable[..., Path]) -> Predictor:
    return load(checkpoint(), device="cpu")


def test_a_call_gives_a_mask_for_every_kind_of_picture(
    predictor: Predictor, tmp_path: Path
) -> None:
    predictor.threshold = float(np.median(predictor.probability(IMAGE, "a red star")))
    mask = predictor(IMAGE, "a red star")
    assert mask.shape == IMAGE.shape[:2] and mask.dtype == bool and 0.2 < mask.mean() < 0.8
    Image.fromarray(IMAGE).save(tmp_path / "picture.png")
    for same in (tmp_path / "picture.png", str(tmp_path / "picture.png"), Image.fromarray(IMAGE)):
        assert np.array_equal(predictor(same, "a red star"), mask)


def test_sentences_together_are_as_each_alone(predictor: Predictor) -> None:
    texts = ["a red star", "the ring on the left", *["a star"] * 8]
    together = predictor.probability(IMAGE, texts)
    assert together.shape == (10, *IMAGE.shape[:2]) and together.dtype == np.float32
    for text, probability in zip(texts[:3], together, strict=False):
        assert np.array_equal(predictor.probability(IMAGE, text), probability)
    assert not np.array_equal(together[0], together[1])
    masks = predictor(IMAGE, texts)
    assert np.array_equal(masks, together > predictor.threshold)


def test_a_picture_is_seen_once_for_all_its_sentences(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, seen = predictor.segmenter, []
    encode = segmenter.encode_image
    monkeypatch.setattr(segmenter, "encode_image", lambda x: seen.append(len(x)) or encode(x))
    answers = list(predictor.each(IMAGE, ["a star"] * 9))
    assert len(answers) == 9 and answers[0].shape == IMAGE.shape[:2]
    assert seen == [1]


def test_long_sentences_can_be_told(predictor: Predictor) -> None:
    assert predictor.num_tokens("a star") == 4 <= predictor.max_words
    assert predictor.num_tokens("a " * 20) == 22 > predictor.max_words


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (IMAGE, " ", "sentence 1 is empty; say what to find"),
        (IMAGE, ["a star", ""], "sentence 2 is empty"),
        (IMAGE, [], "no sentence"),
        (IMAGE / 255, "a star", "an array of float64"),
        ("missing.png", "a star", "missing.png: no such picture"),
    ],
)
def test_a_wrong_call_is_explained(
    predictor: Predictor, image: Any, text: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(image, text)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(checkpoint: Callable[..., Path], device: str) -> None:
    with pytest.raises(ValueError, match=f"no device '{device}' .*use cpu, cuda or cuda:1"):
        load(checkpoint(), device=device)


def frozen(predictor: Predictor) -> dict[str, torch.Tensor]:
    clip = predictor.segmenter.encoder.clip
    return {name: value for name, value in clip.state_dict().items() if name in clip.frozen}


def test_adapters_share_one_frozen_clip_and_keep_their_own(
    checkpoint: Callable[..., Path],
) -> None:
    paths = [checkpoint(), checkpoint(seed=1), checkpoint(model=FLOWS)]
    apart = []
    for path in paths:
        apart.append(load(path, device="cpu").probability(IMAGE, "a star"))
        gc.collect()
    predictors = [load(path, device="cpu") for path in paths]
    for name, tensor in frozen(predictors[0]).items():
        for other in predictors[1:]:
            assert frozen(other)[name].data_ptr() == tensor.data_ptr(), name
    for predictor, alone in zip(predictors, apart, strict=True):
        assert np.array_equal(predictor.probability(IMAGE, "a star"), alone)
    assert not np.array_equal(apart[0], apart[1])

    weights = [list(predictor.segmenter.state_dict().values()) for predictor in predictors]
    shared = num_bytes(frozen(predictors[0]).values())
    together = num_bytes(tensor for tensors in weights for tensor in tensors)
    assert together == sum(map(num_bytes, weights)) - 2 * shared
    assert f"{shared / 1e6:.1f} MB of a frozen CLIP" in repr(predictors[0])


def test_only_equal_positions_are_shared(checkpoint: Callable[..., Path]) -> None:
    small, large = load(checkpoint()), load(checkpoint(image_size=96))
    different = {
        name
        for name, tensor in frozen(small).items()
        if tensor.data_ptr() != frozen(large)[name].data_ptr()
    }
    assert different == {"visual.positions"}
    assert large(IMAGE, "a star").shape == small(IMAGE, "a star").shape


def test_frozen_weights_are_held_in_the_precision_of_the_run(
    checkpoint: Callable[..., Path],
) -> None:
    path = checkpoint()
    exact = load(path, device="cpu")
    config = Config.from_dict(exact.config.to_dict() | {"train": {"precision": "bf16"}})
    halved = [load(path, device="cpu", config=config) for _ in range(2)]
    name = "visual.blocks.0.mlp.branch.fc1.weight"
    weights = [frozen(predictor)[name] for predictor in (exact, *halved)]
    assert [weight.dtype for weight in weights] == [torch.float32, *[torch.bfloat16] * 2]
    assert weights[1].data_ptr() == weights[2].data_ptr()
    exact.precision = "bf16"  # the same products, rounded at every use
    expected = exact.probability(IMAGE, "a star")
    assert np.array_equal(halved[0].probability(IMAGE, "a star"), expected)


def test_what_nobody_uses_is_freed(checkpoint: Callable[..., Path]) -> None:
    first = load(checkpoint(image_size=128))
    before = frozen(first)["visual.positions"].data_ptr()
    second = load(checkpoint(image_size=128))
    assert frozen(second)["visual.positions"].data_ptr() == before
    del first
    gc.collect()
    third = load(checkpoint(image_size=128))
    assert frozen(third)["visual.positions"].data_ptr() == before, "the second still uses it"


def test_the_backbone_is_found_by_its_hash(
    checkpoint: Callable[..., Path],
    clip_file: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, original = checkpoint(), clip_file("vit")
    wanted = load(path).probability(IMAGE, "a star")
    sha256, away = sha256_of(original), original.with_name("away.pt")
    monkeypatch.chdir(tmp_path)
    original.rename(away)
    try:
        (tmp_path / "pretrain").mkdir()
        (tmp_path / "pretrain" / "another.pt").write_bytes(b"another")
        with pytest.raises(ValueError, match=f"SHA-256 {sha256}, and neither .* put that file in"):
            load(path)
        shutil.copy(away, tmp_path / "pretrain" / "renamed.pt")
        found = load(path)
    finally:
        away.rename(original)
    assert found.segmenter.backbone["weights"] == str(tmp_path / "pretrain" / "renamed.pt")
    assert np.array_equal(found.probability(IMAGE, "a star"), wanted)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("RN101", "get it with `python tools/download_weights.py RN101`"),
        ("demo-vit", "git restore pretrain/demo-vit.pt"),
    ],
)
def test_a_backbone_that_is_nowhere_says_where_to_get_it(
    tiny_config: Callable, tmp_path: Path, name: str, way: str
) -> None:
    from engine.backbone_files import with_backbone

    config = tiny_config("vit", {"backbone": {"name": name, "weights": "pretrain/none.pt"}})
    story = {"holds": "trainable", "backbone": {"name": name, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match=f"the {name} with SHA-256 000.*{way}"):
        with_backbone(config, story, tmp_path / "best.safetensors")
