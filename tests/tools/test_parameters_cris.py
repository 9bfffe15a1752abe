"""Sizes of CRIS, of full and of no tuning, and of ETRIS without its alignments."""

import json
from pathlib import Path

import pytest

from tools import parameters

CONFIG = Path(__file__).parents[2] / "config"
# CLIP's own input: published counts are those of its file, before positions are fitted to 416 x 416
NATIVE = ("data.image_size=224", "data.max_words=77")
POSITIONS = (1 + 7 * 7) * 2048 + 77 * 512  # of both towers of a ResNet
LOGIT_SCALE = 1  # of CLIP's loss; counted, but never acts, and not there in ours


def counts(capsys: pytest.CaptureFixture, name: str, *overrides: str) -> dict:
    argv = ["--json", "--config", str(CONFIG / f"{name}.yaml")]
    assert parameters.main([*argv, *(["--opts", *overrides] if overrides else [])]) == 0
    return json.loads(capsys.readouterr().out)


def millions(number: int) -> float:
    return round(number / 1e6, 2)


@pytest.mark.parametrize(
    ("backbone", "neck", "projector", "total", "image_tower", "head"),
    [
        ("rn50", 24_142_336, 5_968_897, 146_849_121, 40.42, 42.88),
        ("rn101", 23_093_760, 4_788_737, 161_251_681, 57.31, 40.66),
    ],
)
def test_cris(
    capsys, backbone: str, neck: int, projector: int, total: int, image_tower: float, head: float
):
    """Published: 146.85 and 161.25 M in all.

    The image towers have ``connect`` in them, and the heads the positions of both towers, which
    the released training has in the head's optimizer group.
    """
    result = counts(capsys, f"cris_{backbone}", *NATIVE)
    parts = result["parts"]
    own = {"neck": neck, "decoder": 12_631_552, "projector": projector}
    assert {part: parts[part] for part in own} == own
    assert result["trainable"] == total
    assert millions(total + LOGIT_SCALE) == {"rn50": 146.85, "rn101": 161.25}[backbone]
    assert millions(parts["image tower"] + parts["connect"]) == image_tower
    assert millions(sum(own.values()) + POSITIONS) == head
    assert result["attached"] == result["frozen"] == 0


def test_full_tuning(capsys):
    """Table 2 of ETRIS: 120.74 M are both towers as CLIP's file has them, and ``connect``."""
    result = counts(capsys, "full_rn101", *NATIVE)
    assert result["backbone"] == 119_688_032
    assert millions(result["backbone"] + result["parts"]["connect"] + LOGIT_SCALE) == 120.74
    assert result["trainable"] == result["backbone"] + result["head"]
    at_416 = counts(capsys, "full_rn101")
    assert at_416["backbone"] == result["backbone"] - (77 - 17) * 512


@pytest.mark.parametrize("backbone", ["rn101", "vitb16"])
def test_no_tuning_and_full_tuning_part_the_same_weights(capsys, backbone: str):
    full, frozen = (counts(capsys, f"{name}_{backbone}") for name in ("full", "frozen"))
    assert frozen["backbone"] == frozen["attached"] == full["attached"] == full["frozen"] == 0
    assert full["backbone"] == frozen["frozen"]
    assert frozen["trainable"] == frozen["head"] == full["head"]


def test_without_an_alignment(capsys):
    """Table 6 of ETRIS; what stays is as in the whole model."""
    whole, no_ha, no_ga = (
        counts(capsys, f"etris_rn101{name}")["parts"] for name in ("", "_no_ha", "_no_ga")
    )
    assert no_ha == whole | {"neck": 512 * 512 * 2 * 2 + 2 * 512}
    assert no_ga == whole | {"decoder": 0}


def test_the_table_tells_clip_from_what_is_attached(capsys):
    assert parameters.main(["--config", str(CONFIG / "cris_rn50.yaml")]) == 0
    assert "trained of CLIP itself" in capsys.readouterr().out
    assert parameters.main(["--config", str(CONFIG / "frozen_rn101.yaml")]) == 0
    assert "trained of CLIP itself" not in capsys.readouterr().out
