"""YAML as the configuration reads it: safe, with ``1e-4`` a float and no key written twice."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

# YAML 1.1 wants a dot and a signed exponent in a float, so PyYAML reads `1e-4` as a string.
_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """SafeLoader that notes each key which is not text or stands twice in one mapping."""

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
                self.problems.append(f"{place}: key {key!r} stands twice; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors: two equal lists are written out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))
# The writer needs it too, so that the *text* "1e-4" is quoted and stays text.
_Dumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Read one YAML document; ``ValueError`` lists all that is wrong, a problem a line."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise ValueError(_explain(error)) from None
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError("\n".join([*loader.problems, _explain(error)])) from None
    except (TypeError, ValueError) as error:  # an unhashable key, a date such as 2024-13-45
        raise ValueError("\n".join(loader.problems or [f"not valid YAML: {error}"])) from None
    finally:
        loader.dispose()
    if loader.problems:
        raise ValueError("\n".join(loader.problems))
    return value


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Write ``value`` as ASCII YAML in its own key order; the same value gives the same text."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=100)


def _explain(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    reason = getattr(error, "problem", None) or "cannot be read"
    return f"line {mark.line + 1}: not valid YAML: {reason}"
