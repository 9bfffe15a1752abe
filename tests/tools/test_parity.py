"""Masks and scores are those of the released code, and the tool reports what differs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.golden import Difference, in_deviations
from tools.parity import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
PROTOCOL = GOLDEN / "released_protocol.npz"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore the number of threads, which the tool sets to two."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(name: str, *options: str) -> list[str]:
    """Return the arguments for a golden file that has the name of its method."""
    config = ROOT / f"config/{name if name.startswith('cris') else f'{name}_released'}.yaml"
    words = [str(GOLDEN / f"{name}.npz"), "--config", str(config)]
    return [*words, "--keys", str(GOLDEN / f"keys/{name}.tsv"), *options]


@pytest.mark.parametrize("name", ["etris_vitb16", "etris_rn50", "etris_rn101", "cris_rn50"])
def test_masks_are_those_of_the_released_code(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(name)) == 0
    rows = capsys.readouterr().out.splitlines()
    assert {row.split()[0] for row in rows} >= {"logits", "neck_mean", "words", "map2_mean"}


def test_scoring_and_target_are_those_of_the_released_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(PROTOCOL)]) == 0
    assert "all 8 equal" in capsys.readouterr().out


def test_a_figure_that_differs_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = dict(np.load(PROTOCOL))
    golden |= {key: value + 1e-5 for key, value in golden.items() if key.startswith("mean_iou")}
    np.savez(tmp_path / "other.npz", **golden)
    assert main([str(tmp_path / "other.npz")]) == 1
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines() if "TOO FAR" in line] == ["mIoU"]
    assert "7 of 8" in output


def test_nan_and_another_shape_never_fit() -> None:
    assert not Difference("x", float("nan"), 1.0).fits
    assert np.isnan(in_deviations(torch.zeros(3), np.zeros(4, np.float32)))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere.npz"], "nowhere.npz"),
        ([str(GOLDEN / "etris_rn50.npz")], "--config"),
        (arguments("etris_rn50", "--opts", "data.image_size=224"), "416"),
        ([*arguments("etris_rn50")[:3], "--keys", str(ROOT / "README.md")], "README.md"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error


def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert main([str(tmp_path / "other.npz")]) == 2
    assert "other.npz" in capsys.readouterr().err
