"""Files and overrides laid over one another, and errors that say which of them is wrong."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from utils.flat_options import SECTIONS, refuse_flat
from utils.yaml_files import parse_yaml

Place = tuple[str, ...]


class Layer(NamedTuple):
    """``value`` written at ``place`` by ``source``: a file's whole tree or one override."""

    source: str
    place: Place
    value: Any

    def has(self, place: Place) -> bool:
        """Whether this layer states ``place``."""
        if place[: len(self.place)] != self.place:
            return False
        try:
            _walk(self.value, place[len(self.place) :])
        except LookupError:
            return False
        return True


def merge_layers(
    trees: Sequence[tuple[str, Mapping[str, Any]]],
    overrides: Sequence[str],
    defaults: dict[str, Any],
) -> tuple[dict[str, Any], list[Layer]]:
    """Merge ``defaults``, ``trees`` with the names of their sources, and ``overrides``."""
    refuse_flat(overrides)
    layers = [Layer("default", (), defaults), *(Layer(name, (), tree) for name, tree in trees)]
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merge(values, layer.value, defaults)
    values = copy.deepcopy(values)  # overrides write into it, and layers remember what was written
    problems = []
    for override in overrides:
        try:
            layers.append(_apply(values, override, defaults))
        except ValueError as error:
            problems += [f"--opts {override}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ValueError("\n".join(problems))
    return values, layers


def explain(
    error: ValidationError, schema: type[BaseModel], layers: Sequence[Layer]
) -> Iterator[str]:
    """One line for each mistake: who wrote it, the place, the value and the way out."""
    for mistake in error.errors(include_url=False):
        place = tuple(str(part) for part in mistake["loc"])
        source = _who_wrote(place, layers)
        where, value = ".".join(place), mistake["input"]
        if mistake["type"] == "extra_forbidden":
            section = ".".join(place[:-1]) or "top level"
            hint = _nearest_key(place, schema)
            yield f"{source}: {section}: no key {place[-1]!r} (value {value!r}); {hint}"
        elif mistake["type"] == "missing":
            yield f"{source}: {where}: is missing"
        elif mistake["type"] == "literal_error":
            choices = mistake["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
            near = get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
            yield f"{source}: {where}: {value!r} is not one of its values; {hint}"
        elif mistake["type"] == "model_type":
            keys = ", ".join(dict(_known_keys(schema))[place])
            yield f"{source}: {where}: {value!r}: should be a section with the keys {keys}"
        else:
            reason = mistake["msg"].removeprefix("Value error, ").replace("Input should", "should")
            yield f"{source}: {where}: {value!r}: {reason}"


def read_files(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The bases of ``path``, the lowest first, then ``path``, each with its name for errors."""
    files: list[tuple[str, dict[str, Any]]] = []
    problems, read, following = [], set(), [path]
    while following:
        current = following.pop()
        tree, more = _read_file(current)
        problems += more
        files.insert(0, (str(current), tree))
        read.add(current.resolve())
        if "base" not in tree:
            continue
        base = tree.pop("base")
        if not isinstance(base, str):
            problems.append(f"{current}: base: {base!r}: should be the path of one YAML file")
        elif (current.parent / base).resolve() in read:
            problems.append(f"{current}: base: {base!r}: leads back to itself; name another file")
        else:
            following.append(current.parent / base)
    if problems:
        raise ValueError("\n".join(problems))
    return files


def _read_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; check the path"
        return {}, [f"{path}: cannot be read ({error.strerror}){hint}"]
    except UnicodeDecodeError:
        return {}, [f"{path}: is no text in UTF-8; name a YAML file"]
    except ValueError as error:
        return {}, [f"{path}: {line}" for line in str(error).splitlines()]
    if tree is None:
        return {}, []
    if not isinstance(tree, dict):
        return {}, [f"{path}: should hold sections such as `train:`, not {tree!r}"]
    return tree, []


def _merge(below: dict[str, Any], above: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
    """``above`` over ``below``: an empty section changes nothing, null takes a module away."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        default = defaults.get(key) if isinstance(defaults, Mapping) else None
        is_section = isinstance(default, Mapping)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value, default)
        elif not (is_section and isinstance(old, dict) and value is None):
            merged[key] = value
    return merged


def _apply(values: dict[str, Any], override: str, defaults: Any) -> Layer:
    """Write one ``section.key=value`` into ``values``."""
    dotted, equals, text = override.partition("=")
    place = tuple(dotted.strip().split("."))
    if not equals or not all(place):
        raise ValueError("should read section.key=value")
    value = parse_yaml(text)
    for depth in range(1, len(place)):
        try:
            _walk(values, place[:depth])
        except LookupError as error:
            parent = _walk(values, place[: depth - 1])
            if not isinstance(parent, dict):
                raise ValueError(f"{'.'.join(place[:depth])}: {error.args[0]}") from None
            parent[place[depth - 1]] = {}
    parent = _walk(values, place[:-1])
    if isinstance(parent, list):
        try:
            _walk(parent, place[-1:])
        except LookupError as error:
            raise ValueError(f"{dotted}: {error.args[0]}") from None
        parent[int(place[-1])] = value
    elif isinstance(parent, dict):
        for part in place[:-1]:
            defaults = defaults.get(part) if isinstance(defaults, Mapping) else None
        parent.update(_merge(parent, {place[-1]: value}, defaults))
    else:
        raise ValueError(f"{'.'.join(place[:-1])} is {parent!r}, which has no keys")
    return Layer(f"--opts {override}", place, value)


def _walk(tree: Any, place: Place) -> Any:
    """The value at ``place``; ``LookupError`` with the reason where there is none."""
    for part in place:
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, list):
            raise LookupError(f"the list has {len(tree)} entries, counted from 0")
        else:
            raise LookupError("no such key")
    return tree


def _who_wrote(place: Place, layers: Sequence[Layer]) -> str:
    for layer in reversed(layers):
        if layer.has(place):
            return layer.source
    # A key that exists only because an override reaches below it.
    below = (layer.source for layer in layers if layer.place[: len(place)] == place)
    return next(below, layers[0].source)


def _nearest_key(place: Place, schema: type[BaseModel]) -> str:
    """A hint for an unknown key: a near one beside it, or the section that has this name."""
    known = dict(_known_keys(schema))
    siblings = known.get(place[:-1], [])
    near = get_close_matches(place[-1], siblings, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if len(place) == 1 and place[0] in SECTIONS:
        return "a section of CRIS and ETRIS; config/ has their experiments as files of this project"
    for section, keys in known.items():
        if place[-1] in keys:
            return f"did you mean {'.'.join((*section, place[-1]))!r}?"
    return f"known keys: {', '.join(siblings)}"


def _known_keys(schema: type[BaseModel], place: Place = ()) -> Iterator[tuple[Place, list[str]]]:
    yield place, list(schema.model_fields)
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, (*place, name))
