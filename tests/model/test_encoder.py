"""What the sentences about an image share: computed once, and the same to the last bit."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from model.backbones.blocks import STEPS
from model.segmenter import Segmenter

BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
INTERTWINE = {"name": "intertwine", "dim": 8}
GST = {"name": "gst", "dim": 12, "modules": 4, "queries": 3}
# kind, what is attached, the step after which a bridge first reads or changes the image tower
MODELS = {
    "vit bridger": ("vit", {}, 3),
    "resnet bridger": ("resnet", {}, 3),
    "late bridger": ("resnet", {"bridges": [BRIDGER | {"stages": [2]}]}, 11),
    "frozen vit": ("vit", {"bridges": []}, STEPS),
    "frozen resnet": ("resnet", {"bridges": []}, STEPS),
    "coop": ("vit", {"bridges": [{"name": "coop", "tokens": 2}]}, STEPS),
    "frozen beside": ("joint", {"bridges": [], "side": GST}, STEPS),
    "bridger beside": ("joint", {"side": GST}, 3),
    "intertwine": ("joint", {"bridges": [INTERTWINE], "side": GST}, -1),
    "text reads": ("vit", {"bridges": [INTERTWINE | {"directions": "text"}]}, -1),
    "two bridges": ("vit", {"bridges": [{"name": "coop", "tokens": 2}, BRIDGER]}, 3),
}


@pytest.fixture(params=list(MODELS))
def case(request: pytest.FixtureRequest, tiny_segmenter: Callable) -> tuple[Segmenter, int]:
    kind, model, step = MODELS[request.param]
    return tiny_segmenter(kind, model).eval(), step


@torch.no_grad()
def test_an_image_that_was_seen_before_gives_the_same_logits(
    case: tuple[Segmenter, int], batch: tuple[torch.Tensor, ...]
) -> None:
    segmenter, step = case
    image, ids, _ = batch
    seen = [segmenter.encode_image(one[None]) for one in image]
    assert [one.step for one in seen] == [step, step]
    for i in range(2):
        for j in range(2):
            plain = segmenter(image[i : i + 1], ids[j : j + 1])
            assert torch.equal(segmenter([seen[i]], ids[j : j + 1]), plain)
    rows = [0, 1, 1, 0, 1]
    shared = segmenter([seen[row] for row in rows], ids[[0, 0, 1, 1, 1]])
    torch.testing.assert_close(shared, segmenter(image[rows], ids[[0, 0, 1, 1, 1]]))


@torch.no_grad()
def test_nothing_of_the_image_tower_runs_twice(
    case: tuple[Segmenter, int],
    batch: tuple[torch.Tensor, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter, step = case
    image, ids, _ = batch
    visual, steps = segmenter.encoder.clip.visual, []
    run = visual.run
    monkeypatch.setattr(visual, "run", lambda step, hidden: steps.append(step) or run(step, hidden))
    seen = segmenter.encode_image(image[:1])
    assert steps == list(range(min(step + 1, STEPS)))
    segmenter([seen, seen], ids)
    assert steps == list(range(STEPS))


@pytest.mark.parametrize("name", ["vit bridger", "resnet bridger", "intertwine"])
def test_towers_that_are_recomputed_keep_less_and_learn_the_same(
    name: str, tiny_segmenter: Callable, batch: tuple[torch.Tensor, ...]
) -> None:
    kind, model, _ = MODELS[name]
    outcomes, kept = [], []
    for recomputes in (False, True):
        segmenter = tiny_segmenter(kind, model).train()
        segmenter.encoder.recomputes = recomputes
        torch.manual_seed(1)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(note, sizes), lambda kept: kept):
            logits = segmenter(*batch[:2])
        logits.mean().backward()
        trains = {n: p.grad for n, p in segmenter.named_parameters() if p.requires_grad}
        outcomes.append((logits, trains))
        kept.append(sum(sizes))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)
    assert kept[1] < 0.8 * kept[0]


FULL = {"bridges": [], "decoder": {"dim": 32, "heads": 4, "layers": 1}}


@pytest.mark.parametrize("backbone_norm", ["batch", "full tuning"])
def test_statistics_move_once_where_towers_are_recomputed(
    backbone_norm: str,
    tiny_segmenter: Callable,
    clip_file: Callable,
    batch: tuple[torch.Tensor, ...],
) -> None:
    model = FULL | {"backbone_norm": "batch", "train_positions": True}
    if backbone_norm == "full tuning":
        weights = str(clip_file("resnet"))
        model = FULL | {"backbone": {"name": None, "weights": weights, "tuning": "full"}}
    outcomes = []
    for recomputes in (False, True):
        segmenter = tiny_segmenter("resnet", model).train()
        segmenter.encoder.recomputes = recomputes
        before = segmenter.encoder.clip.visual.layer2[0].bn1.running_mean.clone()
        torch.manual_seed(1)
        segmenter(*batch[:2]).mean().backward()
        norm = segmenter.encoder.clip.visual.layer2[0].bn1
        assert norm.num_batches_tracked == 1 and norm.momentum == 0.1
        assert not norm.running_mean.equal(before)
        gradients = {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}
        outcomes.append((dict(segmenter.named_buffers()), gradients))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


def note(sizes: list[int], kept: torch.Tensor) -> torch.Tensor:
    sizes.append(kept.numel())
    return kept


def test_nothing_is_kept_of_what_comes_before_the_first_bridge(
    case: tuple[Segmenter, int], batch: tuple[torch.Tensor, ...]
) -> None:
    segmenter, _ = case
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(partial(note, sizes), lambda kept: kept):
        seen = segmenter.train().encode_image(batch[0])
    assert not sizes and not seen.hidden.x.requires_grad
