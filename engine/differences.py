"""Where two configurations, or other trees of plain values, are not the same."""

from collections.abc import Mapping
from typing import Any

Differences = dict[str, tuple[Any, Any]]
ABSENT = "(none)"


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, apart_from: tuple[str, ...] = ()
) -> Differences:
    """The dotted keys whose values differ, each with our value and theirs.

    Those that begin as one of ``apart_from`` may differ. A list of sections counts as one with the
    keys 0, 1, ...; one of plain values is a value.
    """
    mine, other = flatten(ours), flatten(theirs)
    pairs = {key: (mine.get(key, ABSENT), other.get(key, ABSENT)) for key in [*mine, *other]}
    return {
        key: (a, b) for key, (a, b) in pairs.items() if a != b and not key.startswith(apart_from)
    }


def list_changes(unequal: Differences) -> str:
    """``train.lr is 0.1, was 0.2; train.seed is 1, was 0``."""
    return "; ".join(f"{key} is {now!r}, was {before!r}" for key, (now, before) in unequal.items())


def flatten(tree: Any, place: str = "") -> dict[str, Any]:
    """The values of ``tree`` by their dotted keys, all of them below ``place``."""
    if isinstance(tree, list) and any(isinstance(value, list | Mapping) for value in tree):
        tree = {str(position): value for position, value in enumerate(tree)}
    if not isinstance(tree, Mapping) or not tree:
        return {place: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{place}.{key}" if place else key)
    return flat
