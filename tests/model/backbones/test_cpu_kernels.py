"""The fast form of each CPU kernel against its plain form."""

import pytest
import torch
from torch import nn

from model.backbones.cpu_kernels import (
    Dropout,
    FrozenNorm,
    attend_by_products,
    attend_by_sdpa,
    dropout,
    products_are_faster,
)


def random_heads(*lengths: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(2, 3, length, 8, dtype=dtype).requires_grad_() for length in lengths]


@pytest.mark.parametrize("kind", ["all", "masked", "last keys masked", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(kind: str, dtype: torch.dtype) -> None:
    inputs = random_heads(20, 20, 20, dtype=dtype)
    assert products_are_faster(*inputs[:2], 0.0)
    options = {"causal": kind == "causal"}
    if "masked" in kind:
        mask = torch.rand(2, 20 if kind == "masked" else 7) > 0.4
        options["attention_mask"] = mask.index_fill(1, torch.tensor([0]), True)
    ours = attend_by_products(*inputs, **options).float()
    wanted = attend_by_sdpa(*(x.float() for x in inputs), **options)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(wanted)
    gradients = (torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, wanted))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=4 * tolerance)


def test_attention_drops_its_weights() -> None:
    inputs = random_heads(7, 19, 19, dtype=torch.float64)  # 7: weights do not fill whole bytes
    query, key, value = inputs
    torch.manual_seed(5)
    wanted = dropout((query @ key.mT / 8**0.5).softmax(dim=3), 0.3) @ value
    torch.manual_seed(5)
    ours = attend_by_products(*inputs, dropout=0.3)
    torch.testing.assert_close(ours, wanted)
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, wanted)]
    torch.testing.assert_close(*gradients)


def stored_by(run, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a function stores for its backward pass."""
    stored: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(x) or x, lambda x: x):
        run(*inputs)
    return stored


def test_attention_stores_a_bit_of_each_weight() -> None:
    stored = stored_by(lambda *x: attend_by_products(*x, dropout=0.1), *random_heads(*[200] * 3))
    assert sum(tensor.nbytes for tensor in stored) < 2 * 3 * 200 * 200  # a byte a weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_and_scales_the_rest(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    dropped = dropout(x, 0.1)
    assert dropped.unique().tolist() == [0, torch.tensor(1 / 0.9, dtype=dtype)]
    share = (dropped == 0).double().flatten()
    assert abs(share.mean() - 0.1) < 0.004  # four standard deviations
    # entries that come from one random number do not depend on each other
    lags = [(share[k:] * share[:-k]).mean() for k in (1, 2, 3)]
    assert all(abs(lag - 0.01) < 0.0013 for lag in lags)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient, dropped.detach())


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(dropout(x, 0.0), x)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(3)
        outcomes.append(Dropout(0.5)(x))
    assert torch.equal(*outcomes)


def test_frozen_norm_is_batch_norm_in_evaluation() -> None:
    plain = nn.BatchNorm2d(5)
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    norm = FrozenNorm(5)
    norm.load_state_dict(plain.state_dict())  # without num_batches_tracked
    assert not list(norm.parameters()) and len(norm.state_dict()) == 4
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = torch.randn(2, 5, 4, 3, requires_grad=True)
    result, wanted = norm.train()(x), plain.eval()(x)
    torch.testing.assert_close(result, wanted)
    weight = torch.randn_like(result)
    gradients = [torch.autograd.grad((y * weight).sum(), x) for y in (result, wanted)]
    torch.testing.assert_close(*gradients)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_frozen_norm_keeps_the_type_of_its_input_and_stores_nothing_of_it() -> None:
    x = torch.randn(2, 5, 4, 3).bfloat16().requires_grad_()
    assert FrozenNorm(5)(x).dtype == torch.bfloat16
    assert [tensor.shape for tensor in stored_by(FrozenNorm(5), x)] == [(5,)]
