"""Results files of ``test.py``, checked when they are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from utils.config import Config


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Scores(_Part):
    oIoU: float  # noqa: N815 - as the file has it
    mIoU: float  # noqa: N815


class _Results(_Part):
    """What every results file has."""

    splits: dict[str, _Scores]
    protocol: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    dirty: bool | None
    checkpoint: dict[str, Any] = {}
    other_protocols: list[dict[str, Any]] = []


def read_results(path: Path) -> tuple[dict[str, Any], Config]:
    """A results file and the configuration that was tested.

    Raises:
        ValueError: if ``path`` is missing or no results file of this project.
    """
    try:
        results = json.loads(path.read_text("utf-8"))
        _Results.model_validate(results)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; name results files that test.py wrote") from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); name results files that test.py wrote, "
            "such as runs/mine/test/results.json"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "top level"
        raise _refusal(path, f"{place}: {first['msg']}") from None
    except ValueError as error:  # of UTF-8 or of JSON
        raise _refusal(path, str(error)) from None
    protocol = results["protocol"]
    if "name" not in protocol:  # written before there was another one
        padded_to = protocol.get("max_words")
        results["protocol"] = {"name": "native", "number": 1, "padded_to": padded_to} | protocol
    return results, Config.from_dict(results["config"], source=str(path))


def splits_by_protocol(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The scores of a results file: protocol -> split -> score."""
    measured = [results, *results.get("other_protocols", [])]
    return {one["protocol"]["name"]: one["splits"] for one in measured}


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is no results file of test.py ({reason}); name one that it wrote, or run it again"
    )
