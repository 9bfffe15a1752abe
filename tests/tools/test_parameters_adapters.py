"""Sizes of ETRIS's table 2 that adapters have, each from its own configuration."""

import json
from pathlib import Path

import pytest

from tools import parameters

CONFIG = Path(__file__).parents[2] / "config"
# Of RN101: channels inside the bottlenecks of each layer, and how many there are.
INNER = [(64, 3), (128, 4), (256, 23), (512, 3)]
TEXT = 512
NORM = 2  # a weight and a bias per channel


def attached(capsys: pytest.CaptureFixture, name: str, *overrides: str) -> int:
    argv = ["--json", "--config", str(CONFIG / f"{name}.yaml")]
    assert parameters.main([*argv, *(["--opts", *overrides] if overrides else [])]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["attached"] == counts["parts"]["inside the towers"]
    return counts["attached"]


def bottleneck(width: int, hidden: int) -> int:
    return 2 * width * hidden + width + hidden


@pytest.mark.parametrize(
    ("name", "count", "published"),
    [
        ("adapter", 2_390_576, 2.39),
        ("conv_adapter", 1_195_952, 1.20),
        ("compacter", 192_640, 0.19),
        ("lora", 32_768, 0.03),
    ],
)
def test_table_2(capsys, name: str, count: int, published: float) -> None:
    assert attached(capsys, f"{name}_rn101") == count
    assert round(count / 1e6, 2) == published


@pytest.mark.parametrize(
    ("name", "count"),
    [("adapter", 3_871_296), ("conv_adapter", 3_550_464), ("compacter", 176_704), ("lora", 61_440)],
)
def test_the_same_on_a_vit(capsys, name: str, count: int) -> None:
    assert attached(capsys, f"{name}_vitb16") == count


def test_what_the_counts_are_made_of(capsys) -> None:
    inside = sum(number * bottleneck(width, width // 4) for width, number in INNER)
    in_text = bottleneck(TEXT, TEXT // 4)
    assert inside == 1_195_952
    assert inside + 9 * (in_text + NORM * TEXT) == 2_390_576
    halves = sum(number * 4 * width for width, number in INNER) + 24 * TEXT
    factors_and_biases = 2 * (halves + halves // 4) + halves + halves // 4
    assert factors_and_biases + 4**3 + 24 * NORM * TEXT == 192_640
    assert 12 * 2 * (TEXT + TEXT) + 2 * (2048 + 2048) == 32_768


IN_EIGHTHS = sum(number * bottleneck(width, width // 8) for width, number in INNER)


@pytest.mark.parametrize(
    ("name", "override", "count"),
    [
        ("adapter", "towers=image", 1_195_952),
        ("adapter", "towers=text", 9 * (bottleneck(512, 128) + 1024)),
        ("adapter", "norms=false", 2_390_576 - 9 * 1024),
        ("adapter", "reduction=8", IN_EIGHTHS + 9 * (bottleneck(512, 64) + 1024)),
        ("compacter", "norms=false", 168_064),
        ("compacter", "divisions=8", 192_640 - 4**3 + 8**3),
        ("lora", "rank=3", 3 * 32_768),
        ("lora", "towers=text", 24_576),
        ("lora", "projections=[q_proj,k_proj,v_proj]", 12 * 3 * 1024 + 3 * 4096),
    ],
)
def test_parts(capsys, name: str, override: str, count: int) -> None:
    assert attached(capsys, f"{name}_rn101", f"model.adapters.0.{override}") == count
