"""The whole model: its optimizer groups, released behaviours, and loading of states."""

import pytest
import torch

from model import build_segmenter
from model.backbones.blocks import resize_positions
from model.loss import text_to_pixel_loss

BRIDGER = {"name": "bridger", "dim": 16, "heads": 4}
GST = {"name": "gst", "dim": 12, "modules": 2, "queries": 3, "heads": 3}
SNF = {"name": "snf", "length": 2}
RATES = {"lr": 0.1, "encoder_lr_scale": 2.0, "backbone_lr_scale": 0.5}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vit", {"bridges": []}),
        ("resnet", {"bridges": []}),
        (
            "joint",
            {"adapters": [SNF], "bridges": [{"name": "intertwine", "dim": 8}], "side": GST},
        ),
    ],
)
def test_longer_padding_changes_no_mask(tiny_segmenter, batch, kind, options):
    """A Bridger attends to padding; nothing else does."""
    image, ids, _ = batch
    segmenter = tiny_segmenter(kind, options).eval()
    if segmenter.side is not None:
        torch.nn.init.normal_(segmenter.side.image_out.weight, std=0.1)
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
    text_to_pixel_loss(segmenter(*batch[:2]), batch[2]).backward()
    torch.optim.SGD(segmenter.parameter_groups(**RATES)).step()
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


def test_sizes_without_weights(tiny_config):
    config = tiny_config("vit", {"backbone": {"name": "RN50", "weights": "nowhere.pt"}}).model
    with torch.device("meta"):
        segmenter = build_segmenter(config, image_size=64, max_tokens=9, load_weights=False)
    assert segmenter.encoder.clip.visual.widths == (512, 1024, 2048)
    assert segmenter.backbone == {"name": "RN50", "weights": "nowhere.pt", "sha256": None}


def test_a_module_trains_at_a_rate_of_its_own(tiny_segmenter):
    model = {
        "adapters": [SNF | {"lr_scale": 3}, {"name": "lora", "rank": 2}],
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


def test_rates_of_the_groups(kind, tiny_segmenter, clip_file, batch):
    """A tuned CLIP trains at a rate of its own, and starts with the weights of a frozen one."""
    backbone = {"name": None, "weights": str(clip_file(kind)), "tuning": "full"}
    full, frozen = tiny_segmenter(kind, {"backbone": backbone}), tiny_segmenter(kind)
    groups = {group["name"]: group for group in full.parameter_groups(**RATES)}
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates == pytest.approx({"backbone": 0.05, "encoder": 0.2, "decoder": 0.1})
    parts = {
        "backbone": full.encoder.clip,
        "encoder": full.encoder.bridges,
        "decoder": full.decoder,
    }
    for name, part in parts.items():
        assert {*map(id, groups[name]["params"])} == {*map(id, part.parameters())}
    groups = frozen.parameter_groups(**RATES)
    assert [group["name"] for group in groups] == ["encoder", "decoder"]
    with torch.no_grad():
        a, b = (model.eval().encoder(batch[0].float(), batch[1]) for model in (full, frozen))
    torch.testing.assert_close(a.joint_map, b.joint_map)


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
