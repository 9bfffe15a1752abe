"""What a sweep is: methods, overrides, seeds and keys for all, read from one YAML file."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError

from utils.config import Count, Section
from utils.config_layers import Layer, explain, merge_layers, read_files
from utils.yaml_files import parse_yaml

RESERVED = {
    "train.seed": "'seeds' lists the seeds",
    "run.folder": "'folder' says where all runs go",
}


def _free(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for key, reason in RESERVED.items():
        if key in options:
            raise ValueError(f"{key} is the sweep's own: {reason}")
    return options


def _plain(name: str) -> str:
    if not re.fullmatch(r"[\w.+-]+", name) or "-seed" in name:
        raise ValueError("should be of letters, digits, '_', '.', '+' and '-', without '-seed'")
    return name


def _plainly_called(folder: str) -> str:
    _plain(Path(folder).name)
    return folder


def _some(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("should list at least one")
    return values


def _distinct(values: list[Any]) -> list[Any]:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{repeated[0]!r} stands twice; name each once")
    return _some(values)


def _number_or_auto(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError("should be 'auto' or how many run at a time, from 1")
    return value


Options = Annotated[dict[str, JsonValue], AfterValidator(_free)]
Seed = Annotated[int, Field(ge=0)]
Slots = Annotated[Literal["auto"] | int, BeforeValidator(_number_or_auto)]


class MethodConfig(Section):
    """A row of the comparison: a configuration file and the keys that go over it here."""

    config: str
    name: Annotated[str, AfterValidator(_plain)] | None = None
    opts: Options = Field(default={})

    @property
    def label(self) -> str:
        """What its runs are called; without a name of its own, as the file."""
        return self.name or Path(self.config).stem


def _method(value: Any) -> Any:
    """A path alone stands for ``{config: PATH}``."""
    if not isinstance(value, str | dict):
        raise ValueError("should be a path or {config: PATH, name: NAME, opts: {...}}")
    keys = {"config": value} if isinstance(value, str) else value
    try:
        return MethodConfig.model_validate(keys)
    except ValidationError as error:
        problems = explain(error, MethodConfig, [Layer("its keys", (), keys)])
        raise ValueError("; ".join(problems)) from None


Methods = list[Annotated[MethodConfig, BeforeValidator(_method)]]


class SweepConfig(Section):
    """All keys of a sweep; the help of ``tools/sweep.py`` shows them in an example.

    Attributes:
        configs: the methods, paths or ``{config: PATH, name: NAME, opts: {...}}``.
        seeds: each method is trained with every one.
        opts: keys that go over those of every configuration.
        overrides: each a name and its keys, ``{lr3: {train.lr: 1e-3}}``; every method is trained
            with each of them, as a row ``<method>.<name>``. They go over all other keys.
        splits: what the best checkpoint of each run is scored on.
        folder: of all runs, each ``<name>-seed<seed>``, and of the comparison.
        parallel: how many run at a time. ``auto``: one for each GPU, or without any one for every
            ``threads`` cores.
        threads: that each run computes with on a CPU.
        record: keep each run in ``results/`` as ``<name of the folder>-<name>-seed<seed>``.
    """

    configs: Annotated[Methods, AfterValidator(_some)] = Field(default=[])
    seeds: Annotated[list[Seed], AfterValidator(_distinct)] = Field(default=[0])
    opts: Options = Field(default={})
    overrides: dict[Annotated[str, AfterValidator(_plain)], Options] = Field(default={})
    splits: Annotated[list[str], AfterValidator(_distinct)] = Field(default=[])
    folder: Annotated[str, AfterValidator(_plainly_called)]
    parallel: Slots = "auto"
    threads: Count = 1
    record: bool = False

    @property
    def rows(self) -> list[MethodConfig]:
        """``configs`` x ``overrides``, each override of a method after the other."""
        if not self.overrides:
            return self.configs
        return [
            MethodConfig(config=one.config, name=f"{one.label}.{name}", opts=one.opts | options)
            for one in self.configs
            for name, options in self.overrides.items()
        ]


def load_sweep(path: Path) -> SweepConfig:
    """Read ``path``; one ``ValueError`` has a line for every mistake.

    Runs go to ``runs/sweep-<name of the file>`` unless it says otherwise.
    """
    tree, layers = merge_layers(read_files(path), (), {})
    values = {"folder": f"runs/sweep-{path.stem}", **tree}
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        # without the layer of defaults: what is missing is told of the file
        raise ValueError("\n".join(explain(error, SweepConfig, layers[1:]))) from None


def to_overrides(options: Mapping[str, JsonValue]) -> list[str]:
    """``options`` as ``--opts`` takes them."""
    return [f"{key}={_to_text(value)}" for key, value in options.items()]


def _to_text(value: JsonValue) -> str:
    """YAML for ``value``: itself where that is read as the same text, else JSON."""
    with suppress(ValueError):
        if isinstance(value, str) and parse_yaml(value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)
