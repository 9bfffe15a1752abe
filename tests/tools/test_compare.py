"""Runs side by side: what is added up, what is refused, what is reported below the table."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from tools import compare
from utils.config import Config

Write = Callable[..., Path]
Capture = pytest.CaptureFixture


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("snf-seed0.json", 70.0, bridges=[…])``: a results file with that oIoU on val."""

    def make(name: str, score: float, *, dirty: bool = False, seed: int | None = None, **changes):
        number = int(name.rpartition("-seed")[2][0]) if seed is None else seed
        backbone = {"name": changes.pop("backbone", "demo-vit")}
        model = {"backbone": backbone, "bridges": changes.pop("bridges", [])}
        config = {"data": {"dataset": "demo", "image_size": 160}, "model": model}
        config["train"] = {"seed": number, **changes.pop("train", {})}
        splits = changes.pop("splits", ("val", "testA"))
        results = {
            "splits": {split: {"oIoU": score, "mIoU": score + 10} for split in splits},
            "protocol": {"threshold": 0.35} | changes,
            "data": {"fingerprint": "f"},
            "dirty": dirty,
            "config": Config.from_dict(config).to_dict(),
        }
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results))
        return path

    return make


def output(capsys: Capture, *argv: object) -> str:
    assert compare.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def rows(capsys: Capture, *argv: object) -> list[list[str]]:
    lines = [line for line in output(capsys, *argv).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def error(capsys: Capture, *argv: object) -> str:
    assert compare.main([str(a) for a in argv]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and len(err.splitlines()) == 1
    return err


def test_mean_and_range_over_seeds(capsys: Capture, write: Write) -> None:
    paths = [write(f"b-seed{i}.json", score) for i, score in enumerate((70.0, 71.0, 73.5))]
    bridger = [{"name": "bridger", "dim": 64, "heads": 4}]
    paths.append(write("a-seed4.json", 60.0, bridges=bridger))
    header, _, *methods = rows(capsys, *paths)
    assert header[4:] == ["val oIoU", "val mIoU", "testA oIoU", "testA mIoU"]
    assert [row[0] for row in methods] == ["b", "a"]
    assert methods[0][3:6] == ["3", "71.50 (70.00–73.50)", "81.50 (80.00–83.50)"]
    assert methods[1][3:6] == ["1", "60.00", "70.00"]
    attached, trained = ([int(row[i].replace(",", "")) for row in methods] for i in (1, 2))
    assert attached[0] == 0 < attached[1] == trained[1] - trained[0]


def test_splits_are_those_of_all_runs_or_those_asked_for(capsys: Capture, write: Write) -> None:
    one, other = write("a-seed0.json", 1.0), write("b-seed0.json", 2.0, splits=("testA",))
    assert rows(capsys, one, other)[0][4:] == ["testA oIoU", "testA mIoU"]
    assert rows(capsys, one, "--splits", "val")[0][4:] == ["val oIoU", "val mIoU"]
    message = error(capsys, one, other, "--splits", "val")
    assert str(other) in message and "'val'" in message
    assert "no split" in error(capsys, one, other, write("c-seed0.json", 2.0, splits=("val",)))


def test_names_come_from_the_folders_of_runs_too(capsys: Capture, write: Write) -> None:
    seeds = [write(f"runs/x-seed{i}/test/results.json", i, seed=i) for i in (0, 1)]
    plain = write("runs/y/test/results.json", 5.0, seed=0)
    assert [row[0] for row in rows(capsys, *seeds, plain)[2:]] == ["x", "y"]


def test_what_is_not_the_same_for_all_is_reported(capsys: Capture, write: Write) -> None:
    paths = [write("a-seed0.json", 1.0), write("b-seed0.json", 2.0)]
    assert "not the same" not in output(capsys, *paths)
    paths += [
        write("b-seed1.json", 2.0, threshold=0.5),
        write("d-seed0.json", 2.0, train={"max_steps": 7}, dirty=True),
    ]
    lines = output(capsys, *paths).splitlines()
    assert [line for line in lines if line.startswith("not the same for all: ")] == [
        "not the same for all: protocol.threshold: 0.35 in a, b seed 0, d; 0.5 in b seed 1",
        "not the same for all: train.max_steps: None in a, b; 7 in d",
        "not the same for all: d: measured with uncommitted changes",
    ]


def test_seeds_of_a_method_have_one_configuration(capsys: Capture, write: Write) -> None:
    one = write("a-seed0.json", 1.0)
    message = error(capsys, one, write("a-seed1.json", 1.0, train={"lr": 0.5}))
    assert "'a'" in message and "train.lr is 0.0001 in one and 0.5 in the other" in message
    again = write("a-seed2.json", 1.0, seed=0)
    assert f"{one} and {again}: duplicate seed 0" in error(capsys, one, again)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"config": {}}', "\ufeff{"])
def test_other_files_are_named(capsys: Capture, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    assert str(path) in error(capsys, path)
    assert str(tmp_path) in error(capsys, tmp_path)


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("splits.val.oIoU", {"splits": {"val": {"mIoU": 1}}}),
        ("splits", {"splits": 3}),
        ("protocol", {"protocol": 3}),
        ("checkpoint", {"checkpoint": None}),
        ("'RN5'", {"config": {"model": {"backbone": {"name": "RN5"}}}}),
    ],
)
def test_what_a_results_file_lacks_is_named(
    capsys: Capture, write: Write, place: str, changes: dict
) -> None:
    path = write("a-seed0.json", 1.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    message = error(capsys, path)
    assert str(path) in message and place in message


@pytest.mark.parametrize("name", ["x.jpg", "gone/x.png", "folder.png"])
def test_a_chart_that_cannot_be_written_is_refused_first(
    capsys: Capture, write: Write, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    chart = tmp_path / name
    assert str(chart.parent) in error(capsys, write("a-seed0.json", 1.0), "--chart", chart)


def test_each_backbone_has_panels_of_its_own(capsys: Capture, write: Write, tmp_path: Path) -> None:
    paths = [write("a-seed0.json", 70.0), write("b-seed0.json", 71.0, backbone="demo-resnet")]
    for i, number in enumerate((1, 2)):
        rows(capsys, *paths[:number], "--splits", "val", "--chart", tmp_path / f"{i}.png")
    one, both = (cv2.imread(str(tmp_path / f"{i}.png")) for i in range(2))
    assert one.std() > 1 and both.shape[0] > 1.8 * one.shape[0] and both.shape[1] == one.shape[1]
    rows(capsys, *paths, "--splits", "val", "--chart", tmp_path / "chart.svg")
    endings = sorted(path.suffix for path in tmp_path.iterdir())
    assert endings == [".json", ".json", ".png", ".png", ".svg"]
