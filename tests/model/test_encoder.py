"""What the sentences about an image share: computed once, and the same to the last bit."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from model.backbones.state import STEPS
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
    states = [segmenter.begin(one[None]) for one in image]
    assert [one.step for one in states] == [step, step]
    for i in range(2):
        for j in range(2):
            plain = segmenter(image[i : i + 1], ids[j : j + 1])
            assert torch.equal(segmenter.finish([states[i]], ids[j : j + 1]), plain)
    rows = [0, 1, 1, 0, 1]
    shared = segmenter.finish([states[row] for row in rows], ids[[0, 0, 1, 1, 1]])
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
    states = segmenter.begin(image[:1])
    assert steps == list(range(min(step + 1, STEPS)))
    segmenter.finish([states, states], ids)
    assert steps == list(range(STEPS))


CHECKPOINTED = {
    **{name: MODELS[name][:2] for name in ("vit bridger", "resnet bridger", "intertwine")},
    "batch norm": ("resnet", {"backbone_norm": "batch", "train_positions": True}),
    "full tuning": ("resnet", {"bridges": []}),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointed_activations_take_less_room_and_change_nothing(
    name: str, tiny_segmenter: Callable, clip_file: Callable, batch: tuple[torch.Tensor, ...]
) -> None:
    """Neither logits nor gradients nor the statistics of batch norms, which move once."""
    kind, model = CHECKPOINTED[name]
    if name == "full tuning":
        weights = str(clip_file(kind))
        model = model | {"backbone": {"name": None, "weights": weights, "tuning": "full"}}
    outcomes, stored = [], []
    for checkpoints in (False, True):
        segmenter = tiny_segmenter(kind, model).train()
        segmenter.encoder.checkpoint_activations = checkpoints
        torch.manual_seed(1)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(note, sizes), lambda kept: kept):
            logits = segmenter(*batch[:2])
        logits.mean().backward()
        gradients = {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}
        outcomes.append((logits, gradients, dict(segmenter.named_buffers())))
        stored.append(sum(sizes))
        for module in segmenter.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.num_batches_tracked == 1 and module.momentum == 0.1
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)
    assert stored[1] < 0.8 * stored[0]


def note(sizes: list[int], kept: torch.Tensor) -> torch.Tensor:
    sizes.append(kept.numel())
    return kept


def test_nothing_is_kept_of_what_comes_before_the_first_bridge(
    case: tuple[Segmenter, int], batch: tuple[torch.Tensor, ...]
) -> None:
    segmenter, _ = case
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(partial(note, sizes), lambda kept: kept):
        states = segmenter.train().begin(batch[0])
    assert not sizes and not states.tower.x.requires_grad
