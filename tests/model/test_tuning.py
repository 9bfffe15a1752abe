"""Laws of a CLIP that trains as a whole, of one that does not, and of the necks and depths."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model import Segmenter
from model.decoder import Decoder
from model.loss import text_to_pixel_loss

DECODER = {"dim": 32, "layers": 1, "heads": 4, "feedforward": 32, "dropout": 0.0}
DECODERS: dict[str, dict] = {
    "etris": {},
    "cris": {"neck": "fpn", "feedforward": 128},
    "no hierarchical alignment": {"neck": "plain"},
    "no global alignment": {"layers": 0},
}
RATES = {"lr": 0.1, "encoder_lr_scale": 2.0, "backbone_lr_scale": 0.5}
Make = Callable[..., Segmenter]


@pytest.fixture
def make(kind: str, tiny_segmenter: Make, clip_file: Callable[[str], Path]) -> Make:
    """``make("full", neck="fpn")``: a model of that tuning and decoder, in training mode."""

    def make(tuning: str, bridges: list[dict] | None = None, **decoder: object) -> Segmenter:
        options = {
            "backbone": {"name": None, "weights": str(clip_file(kind)), "tuning": tuning},
            "bridges": bridges or [],
            "decoder": DECODER | decoder,
        }
        return tiny_segmenter(kind, options).train()

    return make


@pytest.fixture(params=list(DECODERS))
def decoder(request: pytest.FixtureRequest) -> dict:
    return DECODERS[request.param]


def step(segmenter: torch.nn.Module, batch: tuple[Tensor, ...]) -> None:
    image, ids, mask = batch
    text_to_pixel_loss(segmenter(image, ids), mask).backward()


def moved(segmenter: Segmenter, batch: tuple[Tensor, ...]) -> set[str]:
    """What one update changes."""
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    step(segmenter, batch)
    torch.optim.SGD(segmenter.parameter_groups(**RATES)).step()
    return {key for key, value in segmenter.state_dict().items() if not value.equal(before[key])}


def without_gradient(segmenter: Segmenter) -> list[str]:
    names = [
        name
        for name, parameter in segmenter.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    # a key's bias adds the same to every score of a query, which a softmax doesn't see
    return [name for name in names if not name.endswith("k_proj.bias")]


def test_full_tuning_moves_everything(make: Make, batch: tuple, decoder: dict) -> None:
    segmenter = make("full", **decoder)
    changed = moved(segmenter, batch)
    assert without_gradient(segmenter) == []
    stays = segmenter.state_dict().keys() - changed
    assert [key for key in stays if not key.endswith("k_proj.bias")] == []
    assert segmenter.trainable_state().keys() == segmenter.state_dict().keys()


def test_a_frozen_clip_stays_bit_identical(make: Make, batch: tuple, decoder: dict) -> None:
    segmenter = make("frozen", **decoder)
    changed = moved(segmenter, batch)
    assert without_gradient(segmenter) == []
    assert {key.partition(".")[0] for key in changed} == {"decoder"}
    clip = {f"encoder.clip.{key}" for key in segmenter.encoder.clip.state_dict()}
    assert segmenter.trainable_state().keys() == segmenter.state_dict().keys() - clip


def test_rates_of_the_groups(make: Make) -> None:
    bridger = [{"name": "bridger", "dim": 16, "heads": 4}]
    groups = {g["name"]: g for g in make("full", bridger).parameter_groups(**RATES)}
    assert {n: group["lr"] for n, group in groups.items()} == pytest.approx(
        {"backbone": 0.05, "encoder": 0.2, "decoder": 0.1}
    )
    segmenter = make("full", bridger)
    groups = {g["name"]: g["params"] for g in segmenter.parameter_groups(**RATES)}
    encoder = segmenter.encoder
    assert ids(groups["backbone"]) == ids(encoder.clip.parameters())
    assert ids(groups["encoder"]) == ids(encoder.bridges.parameters())
    assert ids(groups["decoder"]) == ids(segmenter.decoder.parameters())
    frozen = make("frozen", bridger).parameter_groups(**RATES)
    assert [group["name"] for group in frozen] == ["encoder", "decoder"]


def ids(parameters: object) -> set[int]:
    return {id(parameter) for parameter in parameters}


def test_distributed_training_finds_no_parameter_unused(
    make: Make, batch: tuple, decoder: dict, tmp_path: Path
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        parallel = DistributedDataParallel(make("full", **decoder))
        for _ in range(2):  # a second pass refuses what the first left waiting
            step(parallel, batch)
    finally:
        torch.distributed.destroy_process_group()


def test_logits_and_batch_mates(make: Make, batch: tuple, decoder: dict) -> None:
    image, ids, _ = batch
    segmenter = make("full", **decoder).eval()
    with torch.no_grad():
        together = segmenter(image, ids)
        alone = torch.cat([segmenter(image[i : i + 1], ids[i : i + 1]) for i in range(2)])
    assert together.shape == (2, 1, 16, 16)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("neck", ["fpn", "plain"])
def test_a_neck_is_one_graph(make: Make, batch: tuple, neck: str) -> None:
    image, ids, _ = batch
    segmenter = make("full", neck=neck).eval()
    compiled = torch.compile(segmenter.decoder.neck, fullgraph=True, backend="eager")
    with torch.no_grad():
        features = segmenter.encoder(image.float(), ids)
        inputs = (*features.maps[:-1], features.joint), features.sentence
        torch.testing.assert_close(compiled(*inputs), segmenter.decoder.neck(*inputs))


def test_what_an_alignment_reads(make: Make, batch: tuple, decoder: dict) -> None:
    """Without the hierarchical one no earlier map is read, without the global one no word."""
    image, ids, _ = batch
    segmenter = make("frozen", **decoder).eval()
    with torch.no_grad():
        features = segmenter.encoder(image.float(), ids)
        logits = segmenter.decoder(features, ids)
        first, *rest = features.maps
        other_map = features._replace(maps=(torch.randn_like(first), *rest))
        other_words = features._replace(words=torch.randn_like(features.words))
        reads_maps = not segmenter.decoder(other_map, ids).equal(logits)
        reads_words = not segmenter.decoder(other_words, ids).equal(logits)
    assert reads_maps == (decoder.get("neck") != "plain")
    assert reads_words == (decoder.get("layers") != 0)


def test_a_neck_that_is_not_there_is_named(make: Make) -> None:
    clip = make("frozen").encoder.clip
    with pytest.raises(ValueError, match="no neck 'pyramid'; known: aligned, fpn, plain"):
        Decoder(clip, grid=4, max_words=9, neck="pyramid")


def test_the_towers_of_a_tuned_clip_start_as_loaded(make: Make, batch: tuple) -> None:
    image, ids, _ = batch
    full, frozen = make("full").eval().encoder, make("frozen").eval().encoder
    with torch.no_grad():
        a, b = full(image.float(), ids), frozen(image.float(), ids)
    torch.testing.assert_close(a.joint, b.joint)
    assert torch.equal(a.sentence, b.sentence)
