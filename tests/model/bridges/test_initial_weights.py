"""Weights start as in the released ETRIS, whose standard deviations these are."""

from pathlib import Path

import pytest
import torch

from model import build_segmenter
from utils.config import load_config

ROOT = Path(__file__).parents[3]
XAVIER_64, XAVIER_512 = (6 / (4 * 64)) ** 0.5, (6 / (4 * 512)) ** 0.5  # bounds
OF_A_STAGE = {"text_in": 0.02, "text_out": 0.02}
# of the convolutions (in, out) of the three stages
ZOOMS = {
    "etris_rn50": [(0.0884, 0.0884), (0.1768, 0.1768), (0.0156, 0.0156)],
    "etris_vitb16": [(0.1768, 0.1768), (0.1768, 0.1768), (0.0510, 0.0510)],
}
HEAD = {
    "neck.gates.0.0": XAVIER_512 / 3**0.5,
    "neck.gates.0.1": 512**-0.5 / 3**0.5,
    "neck.fuse.0": 0.0147,
    "neck.locate.0": 0.0085,
    "neck.refine.0": 0.0085,
    "transformer.layers.0.feedforward.0": 0.0255,
    "transformer.layers.0.feedforward.4": 0.0255,
    "projector.fine.0": 0.0085,
    "projector.finer.0": 0.0085,
    "projector.mix": 0.0361,
}
OF_A_BACKBONE = {
    "etris_rn50": {
        "connect.0": 0.01276,
        "neck.project": 0.0180,
        "neck.levels.0.0": 0.01276,
        "neck.levels.1.0": 0.0180,
        "neck.levels.2.0": 0.01276,
        "projector.kernel": 0.0180,
    },
    "etris_vitb16": {
        "neck.project": 0.0255,
        "neck.levels.0.0": 0.0208,
        "neck.levels.1.0": 0.0208,
        "neck.levels.2.0": 0.0255,
        "projector.kernel": 0.0255,
    },
}


@pytest.mark.parametrize("name", list(ZOOMS))
def test_every_part_has_the_released_deviation(name: str) -> None:
    config = load_config(ROOT / f"config/{name}_released.yaml")
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, image_size=416, max_tokens=17, load_weights=False)
    for stage, zooms in zip(segmenter.encoder.bridges[0].stages, ZOOMS[name], strict=True):
        for zoom, wanted in zip((stage.zoom_in, stage.zoom_out), zooms, strict=True):
            layer = zoom if name == "etris_rn50" else zoom[0]
            assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.02)
        for part, wanted in OF_A_STAGE.items():
            layer = stage.get_submodule(part)
            assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.02)
            assert not layer.bias.any()
        for interactor in (stage.image_interactor, stage.text_interactor):
            names = ["attention"] if name == "etris_vitb16" else ["self_attention"]
            names += [] if name == "etris_vitb16" else ["cross_attention"]
            for attention in map(interactor.get_submodule, names):
                check_attention(attention, XAVIER_64, out=0.02)
    for part, wanted in (HEAD | OF_A_BACKBONE[name]).items():
        layer = segmenter.decoder.get_submodule(part)
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.02), part
    for layer in segmenter.decoder.transformer.layers:
        for attention in (layer.self_attention, layer.cross_attention):
            check_attention(attention, XAVIER_512, out=512**-0.5 / 3**0.5)
    gate = segmenter.decoder.neck.gates[0]
    assert not gate[0].bias.any() and not gate[1].bias.any()


def check_attention(attention: torch.nn.Module, bound: float, *, out: float) -> None:
    """As ``nn.MultiheadAttention``: one Xavier over q, k and v, and no bias; ``out`` as given."""
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    for weight in weights:
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert float(attention.out_proj.weight.detach().std()) == pytest.approx(out, rel=0.03)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    assert not any(layer.bias.any() for layer in layers)


def test_a_small_kernel_begins_at_the_share_of_a_target(tiny_segmenter) -> None:
    small, default = (
        tiny_segmenter("vit", {"decoder": {"dim": 32, "heads": 4, "initial_kernel": kind}})
        for kind in ("small", "default")
    )
    kernels = [one.decoder.projector.kernel for one in (small, default)]
    assert float(kernels[0].bias[-1].detach()) == -2.5
    assert float(kernels[1].weight.detach().std()) > 10 * float(kernels[0].weight.detach().std())


def test_connect_stays_random_on_request(tiny_segmenter, batch) -> None:
    decoder = {"dim": 32, "heads": 4, "train_connect": False}
    segmenter = tiny_segmenter("resnet", {"decoder": decoder}).train()
    connect = segmenter.decoder.connect
    before = [parameter.clone() for parameter in connect.parameters()]
    assert not any(parameter.requires_grad for parameter in connect.parameters())
    assert any(name.startswith("decoder.connect.") for name in segmenter.trainable_state())
    segmenter(*batch[:2]).mean().backward()
    torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(*pair) for pair in zip(before, connect.parameters(), strict=True))
    assert connect[1].running_mean.any(), "its statistics move, as released"
