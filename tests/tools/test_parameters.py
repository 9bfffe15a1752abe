"""The published sizes, to the single parameter."""

import json
from pathlib import Path

import pytest

from tools import parameters

CONFIG = Path(__file__).parents[2] / "config"
HEADS = {
    "rn50": {"connect": 2_099_200, "neck": 11_291_136, "projector": 5_968_897},
    "rn101": {"connect": 1_049_600, "neck": 9_717_760, "projector": 4_788_737},
    "vitb16": {"neck": 8_144_896, "projector": 4_788_737},
}


def counts(capsys: pytest.CaptureFixture, name: str, *overrides: str) -> dict:
    argv = ["--json", "--config", str(CONFIG / f"{name}.yaml")]
    assert parameters.main([*argv, *(["--opts", *overrides] if overrides else [])]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("backbone", "bridger"), [("rn50", 1_678_104), ("rn101", 1_942_080), ("vitb16", 1_387_648)]
)
def test_published_sizes(capsys, backbone: str, bridger: int):
    result = counts(capsys, f"etris_{backbone}")
    head = HEADS[backbone] | {"decoder": 7_899_136}
    assert {part: result["parts"][part] for part in head} == head
    assert ("connect" in result["parts"]) == ("connect" in head)
    assert result["parts"]["bridger"] == result["attached"] == bridger
    assert result["head"] == sum(head.values())
    assert result["trainable"] == result["head"] + bridger


@pytest.mark.parametrize(
    ("backbone", "bridger"), [("rn50", 1_942_080), ("rn101", 1_942_080), ("vitb16", 598_592)]
)
def test_sizes_at_width_64(capsys, backbone: str, bridger: int):
    assert counts(capsys, f"etris_{backbone}", "model.bridges.0.dim=64")["attached"] == bridger


def test_stages_of_the_bridger(capsys):
    parts = counts(capsys, "etris_rn101")["parts"]
    stages = [parts[f"bridger stage {stage}"] for stage in range(3)]
    assert stages == [428_992, 297_920, 1_215_168]


@pytest.mark.parametrize(
    ("stages", "millions"),
    [([0], 0.43), ([1], 0.30), ([2], 1.22), ([0, 1], 0.73), ([1, 2], 1.51), ([0, 1, 2], 1.94)],
)
def test_table_4(capsys, stages: list[int], millions: float):
    """Published: 0.43, 0.29, 1.22, 0.72, 1.51, 1.94 M (0.2977 and 0.7267 are cut, not rounded)."""
    attached = counts(capsys, "etris_rn101", f"model.bridges.0.stages={stages}")["attached"]
    assert round(attached / 1e6, 2) == millions


# Of BarLeRIa's table 5: 0.18, 1.57, 0.39 and 2.21 M.
SNF, INTERTWINE, BRIDGER, GST = 184_416, 41_760 + 41_504, 1_387_648, 1_822_832
SNF_IN_TEXT = 122_976


@pytest.mark.parametrize(
    ("name", "parts", "total"),
    [
        ("etris_vitb16", {"bridger": BRIDGER}, "1,387,648"),
        ("snf_vitb16", {"inside the towers": SNF}, "184,416"),
        ("snf_etris_vitb16", {"inside the towers": SNF, "bridger": BRIDGER}, "1,572,064"),
        (
            "no_global_vitb16",
            {"inside the towers": SNF + SNF_IN_TEXT, "intertwine": INTERTWINE},
            "390,656",
        ),
        (
            "barleria_vitb16",
            {"inside the towers": SNF + SNF_IN_TEXT, "intertwine": INTERTWINE, "gst": GST},
            "2,213,488",
        ),
    ],
)
def test_table_5_of_barleria(capsys, name: str, parts: dict[str, int], total: str):
    result = counts(capsys, name)
    assert {part: result["parts"].get(part) for part in parts} == parts
    assert result["attached"] == sum(parts.values())
    assert f"{result['attached']:,}" == total
    head = HEADS["vitb16"] | {"decoder": 7_899_136}
    assert result["head"] == sum(head.values())
    assert result["trainable"] == result["head"] + result["attached"]


@pytest.mark.parametrize(
    ("override", "attached"),
    [
        ("model.adapters.0.towers=image", SNF + INTERTWINE),
        ("model.adapters.0.towers=text", SNF_IN_TEXT + INTERTWINE),
        ("model.adapters.0.length=1", 48 * 1 + 24 * 4 * (768 + 512) + INTERTWINE),
        ("model.bridges.0.directions=image", SNF + SNF_IN_TEXT + 41_760),
        ("model.bridges.0.directions=text", SNF + SNF_IN_TEXT + 41_504),
        ("model.bridges.0.refresh=once", SNF + SNF_IN_TEXT + INTERTWINE),
    ],
)
def test_parts_of_the_local_module(capsys, override: str, attached: int):
    assert counts(capsys, "no_global_vitb16", override)["attached"] == attached


@pytest.mark.parametrize("name", ["barleria_vitb16", "barleria_vitl14"])
def test_mixed_training_changes_no_size(capsys, name: str):
    parts, mixed = counts(capsys, name)["parts"], counts(capsys, f"{name}_mixed")["parts"]
    assert parts == mixed


def test_shares_and_frozen_counts(capsys):
    result = counts(capsys, "etris_vitb16")
    assert result["frozen"] == result["frozen_image_tower"] + result["frozen_text_tower"]
    share = result["attached_share_of_image_tower"]
    assert share == pytest.approx(result["attached"] / result["frozen_image_tower"])
    assert 0.0155 < share < 0.0165  # the published 1.61 %


def test_table_and_errors(capsys):
    assert parameters.main(["--config", str(CONFIG / "etris_rn101.yaml")]) == 0
    assert "1,942,080" in capsys.readouterr().out
    assert parameters.main(["--config", str(CONFIG / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
