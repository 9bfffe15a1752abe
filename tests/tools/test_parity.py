"""Masks and scores of the released code, and that the tool reports what differs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tools import parity
from tools.parity import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The tool computes on two threads; the tests after it on as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(file: str, *options: str) -> list[str]:
    """Of the tool, for a golden file called after its method."""
    name = file.removeprefix("train_")
    config = ROOT / f"config/{name if name.startswith('cris') else f'{name}_released'}.yaml"
    words = [str(GOLDEN / f"{file}.npz"), "--config", str(config)]
    return [*words, "--keys", str(GOLDEN / f"keys/{name}.tsv"), *options]


@pytest.mark.parametrize("name", ["etris_vitb16", "etris_rn50", "etris_rn101", "cris_rn50"])
def test_masks_are_those_of_the_released_code(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(name)) == 0
    rows = capsys.readouterr().out.splitlines()
    assert {row.split()[0] for row in rows} >= {"logits", "neck_mean", "words", "map2_mean"}


def test_another_number_of_heads_is_seen(capsys: pytest.CaptureFixture) -> None:
    assert main(arguments("etris_rn50", "--opts", "model.bridges.0.heads=8")) == 1
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines()}
    assert float(rows["logits"].split()[1]) > 0.1


def test_scoring_and_target_are_those_of_the_released_code(capsys: pytest.CaptureFixture) -> None:
    assert main([str(GOLDEN / "released_protocol.npz")]) == 0
    assert "all 8 equal" in capsys.readouterr().out


def test_nan_never_fits() -> None:
    assert not parity.Difference("x", float("nan"), 1.0).fits


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere.npz"], "nowhere.npz"),
        ([str(GOLDEN / "etris_rn50.npz")], "--config"),
        (arguments("etris_rn50", "--opts", "data.image_size=224"), "416"),
        ([*arguments("etris_rn50")[:3], "--keys", str(ROOT / "README.md")], "README.md"),
        ([*arguments("etris_rn50")[:3], "--keys", str(GOLDEN / "keys/cris_rn50.tsv")], "CRIS|keys"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], named: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert any(part in error for part in named.split("|"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert main([str(tmp_path / "other.npz")]) == 2
    assert "other.npz" in capsys.readouterr().err
