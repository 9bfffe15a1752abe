"""Read and write YAML: safe, with ``1e-4`` a float and no duplicate keys."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

# YAML 1.1 wants a dot and a signed exponent in a float, so PyYAML reads `1e-4` as a string.
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
MOST_NODES = 100_000  # of a document, with aliases written out
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """SafeLoader that collects the keys that are not text or are duplicates in one mapping."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.problems: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # PyYAML refuses lists and mappings as keys
            place, key = f"line {key_node.start_mark.line + 1}", key_node.value
            if key_node.tag not in _KEY_TAGS:
                self.problems.append(f"{place}: {key!r} is not text and cannot be a key; quote it")
            elif key in seen:
                self.problems.append(f"{place}: duplicate key {key!r}; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors: two equal lists are written out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):  # the writer too: it quotes the text "1e-4", which stays text
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Read one YAML document: safe, ``1e-4`` is a float, no duplicate keys.

    Raises:
        ValueError: with a line for every problem.
    """
    problems: list[str] = []
    value = None
    try:
        loader = _Loader(text)
        problems = loader.problems
        node = loader.get_single_node()
        if node is not None and _count_nodes(node, {}) > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} entries, with its aliases")
        value = None if node is None else loader.construct_document(node)
    except RecursionError:
        problems.append("not valid YAML: nested too deeply")
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problems.append(f"{line}not valid YAML: {error.problem}")
    # a value that its tag does not fit, such as the date 2024-13-45 or !!int ''
    except (yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError) as error:
        problems.append(f"not valid YAML: {' '.join(str(error).split())}")
    if problems:
        raise ValueError("\n".join(problems))
    return value


def _count_nodes(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Count the nodes below ``node``, an alias as often as it is used."""
    if node not in counts:
        counts[node] = MOST_NODES + 1  # what it has if it contains itself
        children = node.value if isinstance(node.value, list) else []
        flat = [
            one for child in children for one in (child if isinstance(child, tuple) else [child])
        ]
        counts[node] = 1 + sum(_count_nodes(child, counts) for child in flat)
    return counts[node]


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Write ``value`` as ASCII YAML in its own key order; the same value gives the same text."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=100)
