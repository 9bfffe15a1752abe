"""Laws of the whole model: what is frozen stays, what trains gets a gradient, states go round."""

from collections.abc import Callable

import pytest
import torch

from model import build_segmenter
from model.backbones.blocks import resize_positions
from model.loss import text_to_pixel_loss

BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
VARIANTS = {
    "bridger": {},
    "frozen": {"bridges": []},
    "one stage": {"bridges": [BRIDGER | {"stages": [1]}]},
    "two stages": {"bridges": [BRIDGER | {"stages": [0, 2]}]},
}


@pytest.fixture(params=list(VARIANTS))
def segmenter(request: pytest.FixtureRequest, kind: str, tiny_segmenter: Callable):
    return tiny_segmenter(kind, VARIANTS[request.param]).train()


def step(segmenter, batch) -> None:
    image, ids, mask = batch
    logits = segmenter(image, ids)
    text_to_pixel_loss(logits, mask).backward()
    groups = segmenter.parameter_groups(lr=0.1, encoder_lr_scale=2.0)
    torch.optim.SGD(groups).step()


def test_logits_are_four_times_as_fine_as_the_middle_map(segmenter, batch):
    image, ids, _ = batch
    logits = segmenter(image, ids)
    assert logits.shape == (2, 1, 16, 16)


def test_frozen_tensors_stay_bit_identical(segmenter, batch):
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    trainable = segmenter.trainable_state().keys()
    step(segmenter, batch)
    after = segmenter.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed <= trainable
    assert {f"encoder.clip.{key}" for key in segmenter.encoder.clip.frozen}.isdisjoint(changed)
    assert changed & {key for key in trainable if key.startswith("decoder.")}


def test_every_trainable_tensor_gets_a_gradient(segmenter, batch):
    step(segmenter, batch)
    without = [
        name
        for name, parameter in segmenter.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    # a key's bias adds the same to every score of a query, which a softmax doesn't see
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_groups_hold_all_that_trains_once(segmenter):
    groups = segmenter.parameter_groups(lr=0.1, encoder_lr_scale=2.0)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trains = [id(p) for p in segmenter.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trains)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["decoder"] == 0.1
    assert rates.get("encoder", 0.2) == 0.2


def test_trainable_state_goes_round(segmenter, batch, kind, tiny_config):
    step(segmenter, batch)
    image, ids, _ = batch
    torch.manual_seed(5)
    model = tiny_config(kind).model.model_copy(
        update={"bridges": [dict(BRIDGER, stages=list_stages(segmenter))]}
    )
    if not segmenter.encoder.bridges:
        model = model.model_copy(update={"bridges": []})
    other = build_segmenter(model, image_size=64, max_words=9)
    other.load_trainable_state(segmenter.trainable_state())
    segmenter.eval(), other.eval()
    with torch.no_grad():
        assert torch.equal(segmenter(image, ids), other(image, ids))


def list_stages(segmenter) -> list[int]:
    ends = {3: 0, 7: 1, 11: 2}
    bridges = segmenter.encoder.bridges
    return [ends[step] for step in bridges[0].positions] if len(bridges) else [0]


def test_a_mask_does_not_depend_on_its_batch_mates(segmenter, batch):
    image, ids, _ = batch
    segmenter.eval()
    with torch.no_grad():
        together = segmenter(image, ids)
        alone = torch.cat([segmenter(image[i : i + 1], ids[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone)


def test_padding_words_do_not_matter_to_the_decoder(kind, tiny_segmenter, batch):
    """Logits stay when the padding behind the end token is cut off (a Bridger attends to it)."""
    image, ids, _ = batch
    segmenter = tiny_segmenter(kind, {"bridges": []}).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            segmenter(image, ids[:, :7]), segmenter(image, ids), rtol=1e-4, atol=1e-5
        )


def test_no_graph_before_the_first_trainable_parameter(kind, tiny_segmenter, batch):
    segmenter = tiny_segmenter(kind, {"bridges": [BRIDGER | {"stages": [2]}]})
    image, ids, _ = batch
    features = segmenter.encoder(image.float(), ids)
    assert [x.requires_grad for x in features.maps] == [False, False, True]


def test_released_behaviours_train_positions_and_move_statistics(tiny_segmenter, batch):
    options = {"train_positions": True, "backbone_norm": "batch"}
    segmenter = tiny_segmenter("resnet", options).train()
    trainable = segmenter.trainable_state().keys()
    assert {"encoder.clip.visual.positions", "encoder.clip.text.positions"} <= trainable
    assert "encoder.clip.visual.layer3.0.bn1.running_mean" in trainable
    assert "encoder.clip.visual.layer3.0.bn1.weight" not in trainable
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    step(segmenter, batch)
    after = segmenter.state_dict()
    for key in ("visual.positions", "text.positions", "visual.layer1.0.bn2.running_var"):
        assert not torch.equal(before[f"encoder.clip.{key}"], after[f"encoder.clip.{key}"])
    assert torch.equal(
        before["encoder.clip.visual.bn1.weight"], after["encoder.clip.visual.bn1.weight"]
    )


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_other_weights_are_refused_by_name(tiny_segmenter, change):
    segmenter = tiny_segmenter("vit")
    state = dict(segmenter.trainable_state())
    name = "decoder.projector.mix.bias"
    value = state.pop(name)
    if change == "unexpected":
        state |= {name: value, "decoder.extra": value}
        name = "decoder.extra"
    if change == "shape":
        state[name] = value[:3]
    with pytest.raises(ValueError, match=name):
        segmenter.load_trainable_state(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bridges": [{"name": "bridge"}]}, r"model\.bridges\.0: no 'bridge'; known: bridger"),
        ({"bridges": [BRIDGER | {"dims": 8}]}, r"bridger has no option 'dims'; did you mean 'dim'"),
        ({"bridges": [BRIDGER | {"stages": [2, 1]}]}, "stages .* ascending"),
        ({"bridges": [BRIDGER | {"stages": [3]}]}, "stages"),
        ({"bridges": [BRIDGER | {"heads": 5}]}, "dim 16 cannot be split into 5 heads"),
        ({"bridges": [BRIDGER | {"dim": "wide"}]}, r"model\.bridges\.0: bridger cannot be built"),
        ({"adapters": [{"name": "bitfit"}]}, r"model\.adapters\.0: no 'bitfit'"),
        ({"backbone": {"name": None, "weights": None}}, "weights is not set"),
        ({"backbone": {"name": "RN50", "weights": None}}, "download_weights.py RN50"),
    ],
)
def test_mistakes_are_named(tiny_segmenter, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_segmenter("vit", options)


def test_sizes_without_weights(tiny_config):
    config = tiny_config("vit", {"backbone": {"name": "RN50", "weights": "nowhere.pt"}}).model
    with torch.device("meta"):
        segmenter = build_segmenter(config, image_size=64, max_words=9, load_weights=False)
    assert segmenter.encoder.clip.visual.widths == (512, 1024, 2048)
    assert segmenter.backbone == {"name": "RN50", "weights": "nowhere.pt", "sha256": None}


GST = {"name": "gst", "dim": 12, "modules": 2, "queries": 3, "heads": 3}


def test_a_module_trains_at_a_rate_of_its_own(tiny_segmenter):
    adapters = [{"name": "snf", "length": 2, "lr_scale": 3}, {"name": "lora", "rank": 2}]
    model = {
        "adapters": adapters,
        "bridges": [BRIDGER | {"lr_scale": 10}],
        "side": GST | {"lr_scale": 0.5},
    }
    segmenter = tiny_segmenter("joint", model)
    groups = segmenter.parameter_groups(lr=0.1, encoder_lr_scale=2.0)
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    wanted = {"bridges.": 1.0, "side.": 0.05, "decoder.": 0.1, "shortcut.": 0.3}
    wanted |= {"_proj.down": 0.2, "_proj.up": 0.2}  # of LoRA, at the rate of all that has none
    trained = [(name, p) for name, p in segmenter.named_parameters() if p.requires_grad]
    assert len(rate_of) == len(trained)
    for name, parameter in trained:
        kind = next(key for key in wanted if key in name)
        assert rate_of[id(parameter)] == pytest.approx(wanted[kind]), name
    plain = tiny_segmenter("joint", {"bridges": [BRIDGER]})
    assert len(plain.parameter_groups(lr=0.1, encoder_lr_scale=2.0)) == 2


@pytest.mark.parametrize("scale", [0, -1, True, "fast", float("inf")])
def test_a_rate_that_is_none_is_refused(tiny_config, scale):
    with pytest.raises(ValueError, match="lr_scale"):
        tiny_config("vit", {"bridges": [BRIDGER | {"lr_scale": scale}]})


def test_older_positions_of_an_attention_pool_are_read(tiny_segmenter, batch):
    """Once they were resized to the image when CLIP was loaded; now in every pass."""
    name = "encoder.clip.visual.positions"
    segmenter = tiny_segmenter("resnet", {"train_positions": True}).eval()
    state = dict(segmenter.trainable_state())
    torch.nn.init.normal_(state[name])
    with torch.no_grad():
        wanted = segmenter(*batch[:2])
    state[name] = resize_positions(state[name], 4)
    positions = segmenter.encoder.clip.visual.positions
    segmenter.load_trainable_state(state)
    assert segmenter.encoder.clip.visual.positions is positions and len(positions) == 17
    with torch.no_grad():
        other = segmenter(*batch[:2])
    assert other.shape == wanted.shape and not other.equal(wanted)
    state[name] = torch.zeros(16, positions.shape[1])
    with pytest.raises(ValueError, match="positions"):
        segmenter.load_trainable_state(state)
