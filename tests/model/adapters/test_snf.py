"""SNF: what a flow computes, where flows go, and that a model starts near its CLIP."""

from collections.abc import Callable

import pytest
import torch

from model.adapters.snf import Flow
from model.backbones.blocks import PreNorm

SNF = {"name": "snf", "length": 4}


def plain(flow: Flow, x: torch.Tensor) -> torch.Tensor:
    """The recursion as it is written, one flow after the other."""
    z = flow.shift + flow.log_scale.exp() * x
    for u, w, b in zip(flow.u, flow.w, flow.b, strict=True):
        z = z + u * torch.tanh(z @ w + b)[..., None]
    return z


def random_flow(width: int, length: int, dtype: torch.dtype) -> Flow:
    """A flow far from the identity, whose tanh are neither straight nor all saturated."""
    torch.manual_seed(0)
    flow = Flow(width, length)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow.to(dtype)


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["32", "64"]
)
def test_flow_is_the_recursion(length: int, dtype: torch.dtype, tolerance: float) -> None:
    flow = random_flow(24, length, dtype)
    x = torch.randn(2, 7, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(2, 7, 24, dtype=dtype)
    sources = [x, *flow.parameters()]
    ours, wanted = flow(x), plain(flow, x)
    torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)
    gradients = (torch.autograd.grad((y * weight).sum(), sources) for y in (ours, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=10 * tolerance, atol=10 * tolerance)


def test_each_flow_reads_the_one_before() -> None:
    """Without the terms between the flows, the same parameters would give something else."""
    flow = random_flow(24, 4, torch.float64)
    x = torch.randn(1, 5, 24, dtype=torch.float64)
    start = flow.shift + flow.log_scale.exp() * x
    side_by_side = start + torch.tanh(start @ flow.w.T + flow.b) @ flow.u
    assert (flow(x) - side_by_side).abs().max() > 0.1


def test_flow_reads_tokens_that_lie_anywhere_in_memory() -> None:
    flow = random_flow(8, 4, torch.float64)
    x = torch.randn(8, 3, 2, dtype=torch.float64).permute(2, 1, 0)  # (2, 3, 8), not contiguous
    torch.testing.assert_close(flow(x), plain(flow, x))


def test_autocast_does_not_round_the_residual_stream() -> None:
    flow = random_flow(24, 4, torch.float32)
    x = torch.randn(2, 7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow(x), flow(x.float())) and flow(x).dtype == torch.float32
        assert flow(x.bfloat16()).dtype == torch.float32
    with torch.no_grad():
        wanted = flow(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow(x), wanted)


def test_one_graph_with_its_gradients() -> None:
    flow = random_flow(24, 4, torch.float32)
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 7, 24, requires_grad=True)
    sources = [x, *flow.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        gradients = [torch.autograd.grad(f(x).sum(), sources) for f in (flow, compiled)]
    torch.testing.assert_close(*gradients)


def test_a_start_is_near_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 50, 768)
    change = (Flow(768, 4)(x) - x).norm() / x.norm()
    assert 0 < change < 0.01


@pytest.mark.parametrize(("towers", "count"), [("both", 48), ("image", 24), ("text", 24)])
def test_a_flow_in_both_halves_of_every_block(make_vit: Callable, towers: str, count: int):
    options = {"bridges": [], "adapters": [SNF | {"towers": towers, "length": 3}]}
    clip = make_vit(options).encoder.clip
    chosen = {"both": clip, "image": clip.visual, "text": clip.text}[towers]
    halves = [module for module in chosen.modules() if isinstance(module, PreNorm)]
    assert len(halves) == count == sum(isinstance(m, Flow) for m in clip.modules())
    assert all(isinstance(half.shortcut, Flow) for half in halves)
    trains = sum(p.numel() for p in clip.parameters() if p.requires_grad)
    assert trains == sum(2 * half.width + 3 * (2 * half.width + 1) for half in halves)
