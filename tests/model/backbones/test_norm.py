"""The frozen normalisation against nn.BatchNorm2d in evaluation."""

import torch
from torch import nn

from model.backbones.norm import FrozenNorm


def test_it_is_batch_norm_that_stays_as_it_is():
    plain = nn.BatchNorm2d(5)
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    norm = FrozenNorm(5)
    norm.load_state_dict(plain.state_dict())  # num_batches_tracked is passed over
    assert not list(norm.parameters()) and len(norm.state_dict()) == 4
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = torch.randn(2, 5, 4, 3, requires_grad=True)
    result, wanted = norm.train()(x), plain.eval()(x)
    torch.testing.assert_close(result, wanted)
    weight = torch.randn_like(result)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (result, wanted))
    torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_it_keeps_the_type_of_its_input_and_nothing_of_it():
    norm, kept = FrozenNorm(5), []
    x = torch.randn(2, 5, 4, 3).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor), lambda _: None
    ):
        assert norm(x).dtype == torch.bfloat16
    assert [tensor.shape for tensor in kept] == [(5,)]
