"""Frozen CLIP: towers with slots, run in twelve steps, and the loading of checkpoints."""

from .clip import CLIP, Sizes
from .files import BACKBONES, agree, sizes_of_name
from .names import from_openai, to_openai
from .weights import load_weights, read_weights, sha256_of, sizes_of_state

__all__ = [
    "BACKBONES",
    "CLIP",
    "Sizes",
    "agree",
    "from_openai",
    "load_weights",
    "read_weights",
    "sha256_of",
    "sizes_of_name",
    "sizes_of_state",
    "to_openai",
]
