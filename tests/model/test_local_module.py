"""Laws of SNF and intertwining in a whole model, alone, together and with what else there is."""

from collections.abc import Callable

import pytest
import torch

from model import Segmenter
from model.loss import text_to_pixel_loss

SNF = {"name": "snf", "length": 4}
INTERTWINE = {"name": "intertwine", "dim": 8}
BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
GST = {"name": "gst", "dim": 12, "modules": 4, "queries": 3, "heads": 3}
VARIANTS = {
    "snf": {"adapters": [SNF | {"towers": "image"}], "bridges": []},
    "snf in both": {"adapters": [SNF], "bridges": []},
    "image reads": {"bridges": [INTERTWINE | {"directions": "image"}]},
    "text reads once": {"bridges": [INTERTWINE | {"directions": "text", "refresh": "once"}]},
    "no global": {"adapters": [SNF], "bridges": [INTERTWINE]},
    "barleria": {"adapters": [SNF], "bridges": [INTERTWINE], "side": GST},
    "once": {"adapters": [SNF], "bridges": [INTERTWINE | {"refresh": "once"}]},
    "snf and etris": {"adapters": [SNF | {"towers": "image"}], "bridges": [BRIDGER]},
    "all": {"adapters": [SNF], "bridges": [BRIDGER, INTERTWINE]},
    "all, the other way round": {"adapters": [SNF], "bridges": [INTERTWINE, BRIDGER]},
}


@pytest.fixture(params=list(VARIANTS))
def options(request: pytest.FixtureRequest) -> dict:
    return VARIANTS[request.param]


@pytest.fixture
def segmenter(options: dict, make_vit: Callable) -> Segmenter:
    return make_vit(options).train()


def step(segmenter: Segmenter, batch: tuple[torch.Tensor, ...]) -> None:
    image, ids, mask = batch
    logits, _ = segmenter(image, ids)
    text_to_pixel_loss(logits, mask).backward()
    torch.optim.SGD(segmenter.parameter_groups(lr=0.1, encoder_lr_scale=1.0)).step()


def test_only_adds_state(segmenter: Segmenter, make_vit: Callable) -> None:
    plain = make_vit({"bridges": []}).state_dict()
    state = segmenter.state_dict()
    assert plain.keys() < state.keys()
    clip = {key for key in plain if key.startswith("encoder.clip.")}
    assert all(torch.equal(plain[key], state[key]) for key in clip)
    assert segmenter.trainable_state().keys().isdisjoint(clip)


def test_a_step_changes_what_trains_alone(segmenter: Segmenter, batch: tuple) -> None:
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    step(segmenter, batch)
    changed = {k for k, value in segmenter.state_dict().items() if not value.equal(before[k])}
    assert changed <= segmenter.trainable_state().keys()
    without = [
        name
        for name, parameter in segmenter.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    # a key's bias adds the same to every score of a query, which a softmax doesn't see
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_state_goes_round(
    options: dict, segmenter: Segmenter, make_vit: Callable, batch: tuple
) -> None:
    step(segmenter, batch)
    image, ids, _ = batch
    other = make_vit(options).eval()
    other.load_trainable_state(segmenter.trainable_state())
    segmenter.eval()
    with torch.no_grad():
        assert torch.equal(segmenter(image, ids)[0], other(image, ids)[0])


def test_a_mask_does_not_depend_on_its_batch_mates(segmenter: Segmenter, batch: tuple) -> None:
    image, ids, _ = batch
    segmenter.eval()
    with torch.no_grad():
        together = segmenter(image, ids)[0]
        alone = torch.cat([segmenter(image[i : i + 1], ids[i : i + 1])[0] for i in range(2)])
    torch.testing.assert_close(together, alone)


def test_autocast_stays_close(segmenter: Segmenter, batch: tuple) -> None:
    image, ids, _ = batch
    segmenter.eval()
    with torch.no_grad():
        exact = segmenter(image, ids)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = segmenter(image, ids)[0].float()
    assert (exact - rounded).norm() < 0.1 * exact.norm()
