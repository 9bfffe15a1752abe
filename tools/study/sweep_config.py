"""Read a sweep from a YAML file: methods, overrides, seeds and the keys of all runs."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError

from engine.record import check_method_name
from utils.config import Count, Section, explain, read_yaml_file
from utils.yaml_files import parse_yaml

RESERVED_KEYS = {
    "train.seed": "'seeds' lists the seeds",
    "run.folder": "'folder' names the folder of all runs",
}


def _check_keys(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for key, reason in RESERVED_KEYS.items():
        if key in options:
            raise ValueError(f"the sweep sets {key} itself: {reason}")
    return options


def _check_folder(folder: str) -> str:
    check_method_name(Path(folder).name)
    return folder


def _check_distinct(values: list[Any]) -> list[Any]:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"duplicate {repeated[0]!r}; name each once")
    return values


def _check_parallel(value: Any) -> Any:
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError("should be 'auto' or how many run at a time, from 1")
    return value


Name = Annotated[str, AfterValidator(check_method_name)]
Options = Annotated[dict[str, JsonValue], AfterValidator(_check_keys)]
Value = TypeVar("Value")
Distinct = Annotated[list[Value], AfterValidator(_check_distinct)]
Seed = Annotated[int, Field(ge=0)]


class MethodConfig(Section):
    """A row of the comparison: a configuration file and the keys that replace its own."""

    config: str
    name: Name | None = None
    opts: Options = Field(default={})

    @property
    def label(self) -> str:
        """What its runs are called: ``name``, or the name of the file."""
        return self.name or Path(self.config).stem


def _read_method(value: Any) -> Any:
    """Read ``{config: PATH, ...}``, or a path alone."""
    keys = {"config": value} if isinstance(value, str) else value
    if not isinstance(keys, dict):
        raise ValueError("should be a path or {config: PATH, name: NAME, opts: {...}}")
    try:
        return MethodConfig.model_validate(keys)
    except ValidationError as error:
        problems = explain(error, MethodConfig, "its keys")
        raise ValueError("; ".join(problems)) from None


Methods = list[Annotated[MethodConfig, BeforeValidator(_read_method)]]


class SweepConfig(Section):
    """All keys of a sweep; the help of ``tools/sweep.py`` explains them in an example."""

    configs: Methods = Field(default=[], min_length=1)
    seeds: Distinct[Seed] = Field(default=[0], min_length=1)
    opts: Options = Field(default={})
    overrides: dict[Name, Options] = Field(default={})
    splits: Distinct[str] = Field(default=[], min_length=1)
    folder: Annotated[str, AfterValidator(_check_folder)]
    parallel: Annotated[Literal["auto"] | int, BeforeValidator(_check_parallel)] = "auto"
    threads: Count = 1
    record: bool = False

    @property
    def rows(self) -> list[MethodConfig]:
        """Return ``configs`` x ``overrides``, all overrides of a method in turn."""
        if not self.overrides:
            return self.configs
        return [
            MethodConfig(config=one.config, name=f"{one.label}.{name}", opts=one.opts | options)
            for one in self.configs
            for name, options in self.overrides.items()
        ]


def load_sweep(path: Path) -> SweepConfig:
    """Read the sweep in ``path``; one ``ValueError`` has a line for every mistake.

    The default folder is ``runs/sweep-<name of the file>``.
    """
    tree = read_yaml_file(path, {})
    try:
        return SweepConfig.model_validate({"folder": f"runs/sweep-{path.stem}", **tree})
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, SweepConfig, str(path)))) from None


def to_overrides(options: Mapping[str, JsonValue]) -> list[str]:
    """Write ``options`` as ``--opts`` takes them: JSON, or text alone where YAML reads it so."""
    overrides = []
    for key, value in options.items():
        text = json.dumps(value, ensure_ascii=False)
        with suppress(ValueError):
            text = value if isinstance(value, str) and parse_yaml(value) == value else text
        overrides.append(f"{key}={text}")
    return overrides
