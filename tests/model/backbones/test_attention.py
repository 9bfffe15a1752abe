"""Both ways to compute attention, and dropout by the bit."""

import pytest
import torch
import torch.nn.functional as F

from model.backbones.attention import Dropout, attend, drop


@pytest.mark.parametrize("kind", ["all", "keep", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_agree_with_sdpa(kind, dtype):
    query, key, value = (
        torch.randn(2, 3, 20, 8, dtype=dtype).requires_grad_() for _ in range(3)
    )  # short and with a gradient: by products in either type
    keep = torch.rand(2, 20) > 0.4 if kind == "keep" else None
    keep = keep if keep is None else keep.index_fill(1, torch.tensor([0]), True)
    mask = None if keep is None else keep[:, None, None]
    wanted = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), mask, is_causal=kind == "causal"
    )
    wanted = wanted.transpose(1, 2).flatten(2)
    result = attend(query, key, value, keep, causal=kind == "causal")
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(result.float(), wanted, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(wanted)
    ours = torch.autograd.grad((result.float() * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((wanted * weight).sum(), (query, key, value))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_zeroes_its_share_and_scales_the_rest(dtype):
    torch.manual_seed(0)
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    dropped = drop(x, 0.1)
    assert dropped.unique().tolist() == [0, torch.tensor(1 / 0.9, dtype=dtype)]
    share = (dropped == 0).double()
    assert abs(share.mean() - 0.1) < 0.004  # four standard deviations
    # draws that come from one random number do not depend on each other
    lags = [(share.flatten()[k:] * share.flatten()[: -k or None]).mean() for k in (1, 2, 3)]
    assert all(abs(lag - 0.01) < 0.0013 for lag in lags)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient, dropped.detach())


def test_attention_drops_its_weights():
    # 7 queries: the weights do not fill whole bytes
    query, key, value = (
        torch.randn(1, 3, number, 8).double().requires_grad_() for number in (7, 19, 19)
    )

    def plain(query, key, value):
        torch.manual_seed(5)
        weights = (query @ key.mT / 8**0.5).softmax(dim=3)
        return (drop(weights, 0.3) @ value).transpose(1, 2).flatten(2)

    wanted = plain(query, key, value)
    torch.manual_seed(5)
    result = attend(query, key, value, dropout=0.3)
    torch.testing.assert_close(result, wanted)
    weight = torch.randn_like(wanted)
    ours = torch.autograd.grad((result * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((wanted * weight).sum(), (query, key, value))
    torch.testing.assert_close(ours, theirs)


def test_dropout_rests_outside_training():
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(drop(x, 0.0), x)
    torch.manual_seed(3)
    once = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), once)


def test_the_weights_of_an_attention_are_not_kept():
    kept = []

    def note(tensor):
        kept.append(tensor)
        return tensor

    query, key, value = (torch.randn(2, 3, 200, 8).requires_grad_() for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attend(query, key, value, dropout=0.1)
    assert sum(tensor.nbytes for tensor in kept) < 2 * 3 * 200 * 200  # a byte a weight
