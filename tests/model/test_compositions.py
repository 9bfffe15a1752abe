"""Which adapters go together, and what is said of those that want one place."""

from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest

from model.adapters import ADAPTERS

AFTER, SHORTCUT = "both want the 'after' slot", "both want the 'shortcut' slot"
REFUSED = {
    "tiny-resnet": {
        ("adapter", "adapter"): "adapter and adapter both want the place of 'conv3'",
        ("adapter", "compacter"): f"compacter and adapter {AFTER}",
        ("compacter", "compacter"): f"compacter and compacter {AFTER}",
        ("conv_adapter", "conv_adapter"): "conv_adapter and .* 'conv2' in the same Bottleneck",
        ("lora", "lora"): "lora and lora both want the place of 'q_proj'",
        ("snf", "snf"): f"snf and snf {SHORTCUT}",
    },
    "tiny-vit": {
        ("adapter", "adapter"): f"adapter and adapter {AFTER}",
        ("adapter", "compacter"): f"compacter and adapter {AFTER}",
        ("compacter", "compacter"): f"compacter and compacter {AFTER} of the same PreNorm; drop",
        ("conv_adapter", "conv_adapter"): f"conv_adapter and conv_adapter {SHORTCUT}",
        ("conv_adapter", "snf"): f"snf and conv_adapter {SHORTCUT}",
        ("lora", "lora"): "lora and lora both .* in the same Attention; drop one",
        ("snf", "snf"): f"snf and snf {SHORTCUT}",
    },
}


@pytest.mark.parametrize("kind", REFUSED)
def test_two_adapters_compose_or_are_refused(kind: str, make_model: Callable) -> None:
    """Every pair, also of one with itself; the message names both and the place."""
    snf = {"towers": "text"} if kind == "tiny-resnet" else {}
    options = {name: {"name": name} for name in ADAPTERS} | {"snf": {"name": "snf"} | snf}
    for pair in combinations_with_replacement(ADAPTERS, 2):
        model = {"bridges": [], "adapters": [options[name] for name in pair]}
        if pair not in REFUSED[kind]:
            make_model(kind, model)
            continue
        with pytest.raises(ValueError, match=REFUSED[kind][pair]):
            make_model(kind, model)
