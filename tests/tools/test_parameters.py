"""The published sizes, to the single parameter, each from its own configuration."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from engine.parameters import count
from tools import parameters
from utils.config import load_config

CONFIG = Path(__file__).parents[2] / "config"
HEADS = {
    "rn50": {"connect": 2_099_200, "neck": 11_291_136, "projector": 5_968_897},
    "rn101": {"connect": 1_049_600, "neck": 9_717_760, "projector": 4_788_737},
    "vitb16": {"neck": 8_144_896, "projector": 4_788_737},
}
DECODER = {"decoder": 7_899_136}
# CLIP's own input: published counts are those of its file, before positions are fitted to 416 x 416
NATIVE = ("data.image_size=224", "data.max_words=77")
POSITIONS = (1 + 7 * 7) * 2048 + 77 * 512  # of both towers of a ResNet
LOGIT_SCALE = 1  # of CLIP's loss; counted in the papers, but not part of our models


@lru_cache
def counts(name: str, *overrides: str) -> dict[str, Any]:
    return count(load_config(CONFIG / f"{name}.yaml", overrides))


def attached(name: str, *overrides: str) -> int:
    return counts(name, *overrides)["attached"]


def millions(number: int) -> float:
    return round(number / 1e6, 2)


@pytest.mark.parametrize(
    ("backbone", "bridger"), [("rn50", 1_678_104), ("rn101", 1_942_080), ("vitb16", 1_387_648)]
)
def test_etris(backbone: str, bridger: int) -> None:
    result = counts(f"etris_{backbone}")
    head = HEADS[backbone] | DECODER
    assert {part: result["parts"][part] for part in head} == head
    assert ("connect" in result["parts"]) == ("connect" in head)
    assert result["parts"]["bridger"] == result["attached"] == bridger
    assert result["head"] == sum(head.values())
    assert result["trainable"] == result["head"] + bridger
    assert result["frozen"] == result["frozen_image_tower"] + result["frozen_text_tower"]
    share = result["attached_share_of_image_tower"]
    assert share == pytest.approx(bridger / result["frozen_image_tower"])
    if backbone == "vitb16":
        assert 0.0155 < share < 0.0165  # the published 1.61 %


@pytest.mark.parametrize(
    ("backbone", "bridger"), [("rn50", 1_942_080), ("rn101", 1_942_080), ("vitb16", 598_592)]
)
def test_etris_at_width_64(backbone: str, bridger: int) -> None:
    assert attached(f"etris_{backbone}", "model.bridges.0.dim=64") == bridger


def test_stages_of_the_bridger() -> None:
    parts = counts("etris_rn101")["parts"]
    stages = [parts[f"bridger stage {stage}"] for stage in range(3)]
    assert stages == [428_992, 297_920, 1_215_168]


# Rows of ETRIS's tables: 2 (adapters on RN101 and a ViT, CoOp), 4 (stages) and 5 (zoom layers).
@pytest.mark.parametrize(
    ("name", "number", "published"),
    [
        ("adapter_rn101", 2_390_576, 2.39),
        ("conv_adapter_rn101", 1_195_952, 1.20),
        ("compacter_rn101", 192_640, 0.19),
        ("lora_rn101", 32_768, 0.03),
        ("coop_rn101", 4_096, 0.00),
        ("coop_vitb16", 4_096, 0.00),
        ("adapter_vitb16", 3_871_296, None),
        ("conv_adapter_vitb16", 3_550_464, None),
        ("compacter_vitb16", 176_704, None),
        ("lora_vitb16", 61_440, None),
        ("etris_rn101_stages_0", 428_736, 0.43),
        ("etris_rn101_stages_1", 297_664, 0.29),
        ("etris_rn101_stages_2", 1_215_168, 1.22),
        ("etris_rn101_stages_0_1", 726_656, 0.72),
        ("etris_rn101_stages_1_2", 1_513_088, 1.51),
        ("etris_rn101", 1_942_080, 1.94),
        ("etris_rn101_linear", 5_766_641, 5.77),
        ("etris_rn101_interpolate", 1_450_560, 1.45),
        ("etris_rn101_mlp", 1_682_633, 1.68),
    ],
)
def test_tables_of_etris(name: str, number: int, published: float | None) -> None:
    assert attached(name) == number
    if published is not None:  # some figures of table 4 are cut, not rounded
        assert abs(number / 1e6 - published) < (0.01 if "stages" in name else 0.0051)


def test_linear_zoom_grows_with_the_image() -> None:
    """From 40, 20 and 10 cells a side to 20 and back, where 416 pixels have 52, 26 and 13."""
    smaller = attached("etris_rn101_linear", "data.image_size=320")
    positions = [(1600, 400), (400, 1600), (400, 400), (400, 400), (100, 400), (400, 100)]
    at_416 = [(2704, 676), (676, 2704), (676, 676), (676, 676), (169, 676), (676, 169)]
    sizes = [sum((cells + 1) * out for cells, out in pairs) for pairs in (positions, at_416)]
    assert smaller == 5_766_641 + sizes[0] - sizes[1]


# Channels inside the bottlenecks of each layer of an RN101, and how many there are.
INNER = [(64, 3), (128, 4), (256, 23), (512, 3)]
TEXT = 512
NORM = 2  # a weight and a bias per channel


def bottleneck(width: int, hidden: int) -> int:
    return 2 * width * hidden + width + hidden


IN_EIGHTHS = sum(number * bottleneck(width, width // 8) for width, number in INNER)


def test_the_parts_of_the_counts_of_adapters() -> None:
    inside = sum(number * bottleneck(width, width // 4) for width, number in INNER)
    in_text = bottleneck(TEXT, TEXT // 4)
    assert inside == 1_195_952
    assert inside + 9 * (in_text + NORM * TEXT) == 2_390_576
    halves = sum(number * 4 * width for width, number in INNER) + 24 * TEXT
    factors_and_biases = 2 * (halves + halves // 4) + halves + halves // 4
    assert factors_and_biases + 4**3 + 24 * NORM * TEXT == 192_640
    assert 12 * 2 * (TEXT + TEXT) + 2 * (2048 + 2048) == 32_768


# Of BarLeRIa's table 5: 0.18, 1.57, 0.39 and 2.21 M.
SNF, INTERTWINE, BRIDGER, GST = 184_416, 41_760 + 41_504, 1_387_648, 1_822_832
SNF_IN_TEXT = 122_976


@pytest.mark.parametrize(
    ("name", "override", "number"),
    [
        ("adapter_rn101", "model.adapters.0.towers=image", 1_195_952),
        ("adapter_rn101", "model.adapters.0.towers=text", 9 * (bottleneck(512, 128) + 1024)),
        ("adapter_rn101", "model.adapters.0.norms=false", 2_390_576 - 9 * 1024),
        (
            "adapter_rn101",
            "model.adapters.0.reduction=8",
            IN_EIGHTHS + 9 * (bottleneck(512, 64) + 1024),
        ),
        ("compacter_rn101", "model.adapters.0.norms=false", 168_064),
        ("compacter_rn101", "model.adapters.0.divisions=8", 192_640 - 4**3 + 8**3),
        ("lora_rn101", "model.adapters.0.rank=3", 3 * 32_768),
        ("lora_rn101", "model.adapters.0.towers=text", 24_576),
        (
            "lora_rn101",
            "model.adapters.0.projections=[q_proj,k_proj,v_proj]",
            12 * 3 * 1024 + 3 * 4096,
        ),
        ("no_global_vitb16", "model.adapters.0.towers=image", SNF + INTERTWINE),
        ("no_global_vitb16", "model.adapters.0.towers=text", SNF_IN_TEXT + INTERTWINE),
        (
            "no_global_vitb16",
            "model.adapters.0.length=1",
            48 * 1 + 24 * 4 * (768 + 512) + INTERTWINE,
        ),
        ("no_global_vitb16", "model.bridges.0.directions=image", SNF + SNF_IN_TEXT + 41_760),
        ("no_global_vitb16", "model.bridges.0.directions=text", SNF + SNF_IN_TEXT + 41_504),
        ("no_global_vitb16", "model.bridges.0.refresh=once", SNF + SNF_IN_TEXT + INTERTWINE),
    ],
)
def test_options_of_adapters_and_bridges(name: str, override: str, number: int) -> None:
    assert attached(name, override) == number


@pytest.mark.parametrize(
    ("name", "parts", "total"),
    [
        ("snf_vitb16", {"inside the towers": SNF}, 184_416),
        ("snf_etris_vitb16", {"inside the towers": SNF, "bridger": BRIDGER}, 1_572_064),
        (
            "no_global_vitb16",
            {"inside the towers": SNF + SNF_IN_TEXT, "intertwine": INTERTWINE},
            390_656,
        ),
        (
            "barleria_vitb16",
            {"inside the towers": SNF + SNF_IN_TEXT, "intertwine": INTERTWINE, "gst": GST},
            2_213_488,
        ),
    ],
)
def test_table_5_of_barleria(name: str, parts: dict[str, int], total: int) -> None:
    result = counts(name)
    assert {part: result["parts"].get(part) for part in parts} == parts
    assert result["attached"] == sum(parts.values()) == total
    assert result["head"] == sum((HEADS["vitb16"] | DECODER).values())
    assert result["trainable"] == result["head"] + total


@pytest.mark.parametrize("name", ["barleria_vitb16", "barleria_vitl14"])
def test_mixed_training_changes_no_size(name: str) -> None:
    assert counts(name)["parts"] == counts(f"{name}_mixed")["parts"]


@pytest.mark.parametrize(
    ("backbone", "neck", "projector", "total", "image_tower", "head"),
    [
        ("rn50", 24_142_336, 5_968_897, 146_849_121, 40.42, 42.88),
        ("rn101", 23_093_760, 4_788_737, 161_251_681, 57.31, 40.66),
    ],
)
def test_cris(
    backbone: str, neck: int, projector: int, total: int, image_tower: float, head: float
) -> None:
    """Published: 146.85 and 161.25 M in all.

    The image towers include ``connect``, and the heads the positions of both towers, which the
    released training has in the head's optimizer group.
    """
    result = counts(f"cris_{backbone}", *NATIVE)
    parts = result["parts"]
    own = {"neck": neck, "decoder": 12_631_552, "projector": projector}
    assert {part: parts[part] for part in own} == own
    assert result["trainable"] == total
    assert millions(total + LOGIT_SCALE) == {"rn50": 146.85, "rn101": 161.25}[backbone]
    assert millions(parts["image tower"] + parts["connect"]) == image_tower
    assert millions(sum(own.values()) + POSITIONS) == head
    assert result["attached"] == result["frozen"] == 0


def test_full_tuning() -> None:
    """Table 2 of ETRIS: 120.74 M are both towers as CLIP's file has them, and ``connect``."""
    result = counts("full_rn101", *NATIVE)
    assert result["backbone"] == 119_688_032
    assert millions(result["backbone"] + result["parts"]["connect"] + LOGIT_SCALE) == 120.74
    assert result["trainable"] == result["backbone"] + result["head"]
    at_416 = counts("full_rn101")
    assert at_416["backbone"] == result["backbone"] - (77 - 17) * 512


@pytest.mark.parametrize("backbone", ["rn101", "vitb16"])
def test_no_tuning_and_full_tuning_divide_the_same_weights(backbone: str) -> None:
    full, frozen = (counts(f"{name}_{backbone}") for name in ("full", "frozen"))
    assert frozen["backbone"] == frozen["attached"] == full["attached"] == full["frozen"] == 0
    assert full["backbone"] == frozen["frozen"]
    assert frozen["trainable"] == frozen["head"] == full["head"]


def test_without_an_alignment() -> None:
    """Table 6 of ETRIS; the other parts are as in the whole model."""
    whole, no_ha, no_ga = (
        counts(f"etris_rn101{name}")["parts"] for name in ("", "_no_ha", "_no_ga")
    )
    assert no_ha == whole | {"neck": 512 * 512 * 2 * 2 + 2 * 512}
    assert no_ga == whole | {"decoder": 0}


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    name = str(CONFIG / "etris_vitb16.yaml")
    argv = ["--config", name, "--json", "--opts", "model.bridges.0.dim=64"]
    assert parameters.main(argv) == 0
    values = counts("etris_vitb16", "model.bridges.0.dim=64")
    assert json.loads(capsys.readouterr().out) == {"config": name, **values}
    assert parameters.main(["--config", str(CONFIG / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_the_table_separates_clip_from_what_is_attached() -> None:
    table = parameters.format_table("full", counts("full_rn101"))
    assert f"{counts('full_rn101')['backbone']:,}" in table
    assert "trained of CLIP itself" in table
    assert "trained of CLIP itself" not in parameters.format_table("", counts("frozen_rn101"))
