"""Published sizes of ETRIS's tables 2 (CoOp), 4 and 5, each from its own configuration."""

import json
from pathlib import Path

import pytest

from tools import parameters

CONFIG = Path(__file__).parents[2] / "config"


def attached(capsys: pytest.CaptureFixture, name: str, *overrides: str) -> int:
    argv = ["--json", "--config", str(CONFIG / f"{name}.yaml")]
    assert parameters.main([*argv, *(["--opts", *overrides] if overrides else [])]) == 0
    return json.loads(capsys.readouterr().out)["attached"]


@pytest.mark.parametrize("backbone", ["rn101", "vitb16"])
def test_coop_in_table_2(capsys, backbone: str) -> None:
    """Published: 4.10 K, eight tokens of the text tower's width."""
    assert attached(capsys, f"coop_{backbone}") == 8 * 512 == 4_096


@pytest.mark.parametrize(
    ("name", "count", "published"),
    [
        ("etris_rn101_stages_0", 428_736, 0.43),
        ("etris_rn101_stages_1", 297_664, 0.29),
        ("etris_rn101_stages_2", 1_215_168, 1.22),
        ("etris_rn101_stages_0_1", 726_656, 0.72),
        ("etris_rn101_stages_1_2", 1_513_088, 1.51),
        ("etris_rn101", 1_942_080, 1.94),
    ],
)
def test_table_4(capsys, name: str, count: int, published: float) -> None:
    """The published figures are those of the counts, some rounded and some cut."""
    assert attached(capsys, name) == count
    assert abs(count / 1e6 - published) < 0.01


@pytest.mark.parametrize(
    ("name", "count", "published"),
    [
        ("etris_rn101_linear", 5_766_641, 5.77),
        ("etris_rn101_interpolate", 1_450_560, 1.45),
        ("etris_rn101_mlp", 1_682_633, 1.68),
        ("etris_rn101", 1_942_080, 1.94),
    ],
)
def test_table_5(capsys, name: str, count: int, published: float) -> None:
    assert attached(capsys, name) == count
    assert round(count / 1e6, 2) == published


def test_linear_zoom_grows_with_the_image(capsys) -> None:
    """From 40, 20 and 10 cells a side to 20 and back, where 416 pixels have 52, 26 and 13."""
    smaller = attached(capsys, "etris_rn101_linear", "data.image_size=320")
    positions = [(1600, 400), (400, 1600), (400, 400), (400, 400), (100, 400), (400, 100)]
    at_416 = [(2704, 676), (676, 2704), (676, 676), (676, 676), (169, 676), (676, 169)]
    sizes = [sum((cells + 1) * out for cells, out in pairs) for pairs in (positions, at_416)]
    assert smaller == 5_766_641 + sizes[0] - sizes[1]
