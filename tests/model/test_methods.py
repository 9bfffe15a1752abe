"""Laws of every method in a whole model, alone, together and with what else there is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Segmenter, build_segmenter
from model.adapters import ADAPTERS
from model.bridges import BRIDGES
from model.clip.common import Features
from model.loss import text_to_pixel_loss
from model.side import SIDES
from utils.config import load_config

ROOT = Path(__file__).parents[2]

ADAPTER, COMPACTER, CONV, LORA, SNF = (
    {"name": name} for name in ("adapter", "compacter", "conv_adapter", "lora", "snf")
)
ADAPTER_IN_IMAGE, SNF_IN_TEXT = ADAPTER | {"towers": "image"}, SNF | {"towers": "text"}
BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
COOP = {"name": "coop", "tokens": 3}
INTERTWINE = {"name": "intertwine", "dim": 8}
GST = {"name": "gst", "dim": 12, "modules": 4, "queries": 3, "heads": 3}
VITS = ("tiny-vit", "tiny-eva")
ALL = ("tiny-resnet", *VITS)

# What is attached, and the kinds of image tower on which it is tried.
METHODS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "adapter": ({"adapters": [ADAPTER]}, ALL),
    "adapter as in etris": ({"adapters": [ADAPTER | {"halves": "mlp", "first_block": 3}]}, ALL[:2]),
    "compacter": ({"adapters": [COMPACTER]}, ALL),
    "conv_adapter": ({"adapters": [CONV]}, ALL),
    "lora": ({"adapters": [LORA]}, ALL),
    "snf": ({"adapters": [SNF]}, VITS),
    "snf in text": ({"adapters": [SNF_IN_TEXT]}, ("tiny-resnet",)),
    "bridger": ({"bridges": [BRIDGER]}, ALL[:2]),
    "coop": ({"bridges": [COOP]}, ALL[:2]),
    "image reads": ({"bridges": [INTERTWINE | {"directions": "image"}]}, VITS),
    "text reads once": (
        {"bridges": [INTERTWINE | {"directions": "text", "refresh": "once"}]},
        VITS,
    ),
    "no global": ({"adapters": [SNF], "bridges": [INTERTWINE]}, VITS),
    "barleria": ({"adapters": [SNF], "bridges": [INTERTWINE], "side": GST}, VITS),
    "once": ({"adapters": [SNF], "bridges": [INTERTWINE | {"refresh": "once"}]}, VITS),
    "lora and bridger": ({"adapters": [LORA], "bridges": [BRIDGER]}, ALL[:2]),
    "snf and bridger": (
        {"adapters": [SNF | {"towers": "image"}], "bridges": [BRIDGER]},
        ("tiny-vit",),
    ),
    "all in a resnet": (
        {
            "adapters": [ADAPTER_IN_IMAGE, COMPACTER, CONV, LORA, SNF_IN_TEXT],
            "bridges": [COOP, BRIDGER],
        },
        ("tiny-resnet",),
    ),
    "all in a vit": (
        {"adapters": [COMPACTER, LORA, SNF], "bridges": [BRIDGER, INTERTWINE, COOP], "side": GST},
        VITS,
    ),
    "all, the other way round": (
        {"adapters": [LORA, SNF, ADAPTER], "bridges": [INTERTWINE, BRIDGER]},
        ("tiny-vit",),
    ),
}
CASES = [(name, kind) for name, (_, kinds) in METHODS.items() for kind in kinds]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def make(request: pytest.FixtureRequest, make_model: Callable) -> Callable[..., Segmenter]:
    """``make()``: the method on its tower; ``make(None)``: the same tower with nothing attached."""
    method, kind = request.param
    return lambda name=method: make_model(
        kind, {"bridges": []} | (METHODS[name][0] if name else {})
    )


def step(segmenter: Segmenter, batch: tuple[Tensor, ...]) -> set[str]:
    """One update; the names of the parameters that train and had no gradient."""
    image, ids, mask = batch
    optimizer = torch.optim.SGD(segmenter.parameter_groups(lr=0.1, encoder_lr_scale=1.0))
    optimizer.zero_grad()
    logits, _ = segmenter(image, ids)
    text_to_pixel_loss(logits, mask).backward()
    optimizer.step()
    trains = {n: p.grad for n, p in segmenter.named_parameters() if p.requires_grad}
    return {name for name, grad in trains.items() if grad is None or not grad.any()}


def features(segmenter: Segmenter, batch: tuple[Tensor, ...]) -> Features:
    image, ids, _ = batch
    with torch.no_grad():
        return segmenter.eval().encoder(segmenter.encoder.clip.normalize(image), ids)


def test_every_method_is_here() -> None:
    attached = [options for options, _ in METHODS.values()]
    names = {
        part["name"] for o in attached for part in o.get("adapters", []) + o.get("bridges", [])
    }
    names |= {options["side"]["name"] for options in attached if "side" in options}
    assert names == {*ADAPTERS, *BRIDGES, *SIDES}


def test_only_adds_state(make: Callable) -> None:
    plain, segmenter = make(None).state_dict(), make()
    state = segmenter.state_dict()
    assert plain.keys() < state.keys()
    clip = {key for key in plain if key.startswith("encoder.clip.")}
    assert all(torch.equal(plain[key], state[key]) for key in clip)
    assert segmenter.trainable_state().keys().isdisjoint(clip)
    assert {f"encoder.clip.{name}" for name in segmenter.encoder.clip.frozen} == clip
    # a plain CLIP still loads into the adapted one
    loaded = segmenter.load_state_dict({key: plain[key] for key in clip}, strict=False)
    assert loaded.unexpected_keys == []


def test_steps_change_what_trains_alone(make: Callable, batch: tuple) -> None:
    segmenter = make().train()
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    without = step(segmenter, batch)
    changed = {k for k, value in segmenter.state_dict().items() if not value.equal(before[k])}
    assert changed <= segmenter.trainable_state().keys()
    # LoRA's A is multiplied by B, which is zero before the first step
    assert {name for name in without if not name.endswith("k_proj.bias")} == {
        name
        for name, _ in segmenter.named_parameters()
        if name.startswith("encoder.clip.") and name.endswith("_proj.down")
    }
    # a key's bias adds the same to every score of a query, which a softmax doesn't see
    assert all(name.endswith("k_proj.bias") for name in step(segmenter, batch))


def test_state_goes_round(make: Callable, batch: tuple) -> None:
    segmenter, other = make().train(), make().eval()
    step(segmenter, batch)
    other.load_trainable_state(segmenter.trainable_state())
    image, ids, _ = batch
    segmenter.eval()
    with torch.no_grad():
        assert torch.equal(segmenter(image, ids)[0], other(image, ids)[0])


def test_a_mask_depends_neither_on_its_batch_mates_nor_much_on_precision(
    make: Callable, batch: tuple
) -> None:
    image, ids, _ = batch
    segmenter = make().eval()
    with torch.no_grad():
        together = segmenter(image, ids)[0]
        alone = torch.cat([segmenter(image[i : i + 1], ids[i : i + 1])[0] for i in range(2)])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = segmenter(image, ids)[0].float()
    torch.testing.assert_close(together, alone)
    assert (together - rounded).norm() < 0.1 * together.norm()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("adapter", [ADAPTER, COMPACTER, CONV], ids=lambda a: a["name"])
def test_starts_near_its_clip(adapter: dict, kind: str, make_model: Callable, batch: tuple) -> None:
    """Adapters are drawn close to zero, and the norms that they train have not moved."""
    options = {"bridges": []}
    before = features(make_model(kind, options), batch)
    after = features(make_model(kind, options | {"adapters": [adapter]}), batch)
    pairs = zip([*before.maps, *before[1:4]], [*after.maps, *after[1:4]], strict=True)
    assert all((x - y).norm() < 0.05 * x.norm() for x, y in pairs)


@pytest.mark.parametrize("kind", ALL)
def test_lora_starts_as_its_clip(kind: str, make_model: Callable, batch: tuple) -> None:
    """``B`` is zero (Hu et al., section 4.1)."""
    before, after = (
        features(make_model(kind, {"bridges": [], "adapters": adapters}), batch)
        for adapters in ([], [LORA])
    )
    assert torch.equal(before.joint, after.joint) and torch.equal(before.words, after.words)


@pytest.mark.parametrize(
    ("kind", "adapters", "message"),
    [
        ("tiny-resnet", [ADAPTER, COMPACTER], r"Compacter and Adapter both want the 'after' slot"),
        ("tiny-vit", [COMPACTER, ADAPTER], r"Adapter and Compacter both want the 'after' slot"),
        ("tiny-vit", [SNF, CONV], r"ConvAdapter and Flow both want the 'shortcut' slot"),
        ("tiny-resnet", [LORA, LORA], r"LoRA and LoRA both want the place of 'q_proj'"),
        ("tiny-eva", [LORA, LORA], r"LoRA and LoRA both .* in the same RotaryAttention; drop one"),
        ("tiny-resnet", [CONV, CONV], r"ConvBesideConv and .* 'conv2' in the same Bottleneck"),
    ],
)
def test_two_adapters_in_one_place_are_refused(
    kind: str, adapters: list[dict], message: str, make_model: Callable
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(kind, {"bridges": [], "adapters": adapters})


@pytest.mark.parametrize("tower", ["", "_vit"], ids=["resnet", "vit"])
@pytest.mark.parametrize("name", ["adapter", "compacter", "conv_adapter", "lora"])
def test_steps_on_the_demo_weights(
    name: str, tower: str, monkeypatch: pytest.MonkeyPatch, batch: tuple
) -> None:
    """All that is attached moves, and the loss stays a number."""
    monkeypatch.chdir(ROOT)
    config = load_config(f"config/demo/{name}{tower}.yaml")
    size = config.data.image_size
    image, ids, mask = batch
    image = F.interpolate(image.float(), size)
    mask = F.interpolate(mask[:, None].float(), size)[:, 0]
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, image_size=size, max_words=17).train()
    optimizer = torch.optim.Adam(segmenter.parameter_groups(lr=1e-3, encoder_lr_scale=1.0))
    attached = [p for p in segmenter.encoder.parameters() if p.requires_grad]
    before = [parameter.detach().clone() for parameter in attached]
    for _ in range(2):
        loss = text_to_pixel_loss(segmenter(image, ids)[0], mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert attached
    assert not any(torch.equal(x, y) for x, y in zip(attached, before, strict=True))
