"""Frozen CLIPs: two towers with slots for adapters, and the reading of their weights."""

from .clip import BACKBONES, CLIP, Sizes, check_sizes_match, file_name, sizes_of_name
from .weights import (
    find_weights,
    from_openai,
    load_weights,
    read_weights,
    sha256_of,
    sizes_of_state,
    to_openai,
)

__all__ = [
    "BACKBONES",
    "CLIP",
    "Sizes",
    "check_sizes_match",
    "file_name",
    "find_weights",
    "from_openai",
    "load_weights",
    "read_weights",
    "sha256_of",
    "sizes_of_name",
    "sizes_of_state",
    "to_openai",
]
