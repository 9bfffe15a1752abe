"""What the papers published, as ``tools/study/published.yaml`` holds it."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from utils.yaml_files import parse_yaml

PUBLISHED = Path(__file__).with_name("published.yaml")
Size = Literal["towers", "prompts", "head", "all"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Row(_Part):
    """A line of a table, and the name of the configuration in ``config/`` that it is here."""

    name: str
    config: str | None = None
    sizes: list[str | None] = []
    scores: list[float | None] = []


class Table(_Part):
    """A table; ``sizes`` and ``scores`` say what its columns are here.

    A size is one that is counted. Scores are of ``data set/split``, of several their mean; words
    without ``/`` are the measures to show.
    """

    title: str
    source: str
    metric: str | None = None
    digits: int = 0
    sizes: dict[str, Size] = {}
    scores: dict[str, str] = {}
    notes: list[str] = []
    rows: list[Row]

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        for row in self.rows:
            if (len(row.sizes), len(row.scores)) != (len(self.sizes), len(self.scores)):
                raise ValueError(f"{row.name}: has not one value for each column")
        return self


def read_tables(path: Path = PUBLISHED) -> dict[str, Table]:
    """The published tables by their names, such as ``etris-2``.

    Raises:
        ValueError: naming the first table with a mistake, and its place.
    """
    tables = {}
    for name, values in parse_yaml(path.read_text("utf-8")).items():
        try:
            tables[name] = Table.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (name, *first["loc"])))
            raise ValueError(f"{path}: {place}: {first['msg']}") from None
    return tables
