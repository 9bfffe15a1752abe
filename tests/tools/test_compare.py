"""Runs side by side: what is added up, what is refused, what is said beside the table."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from tools import compare
from utils.config import Config

Write = Callable[..., Path]


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
        scores = {"oIoU": score, "mIoU": score + 10}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "splits": dict.fromkeys(splits, scores),
                    "protocol": {"threshold": 0.35} | changes,
                    "data": {"fingerprint": "f"},
                    "dirty": dirty,
                    "config": Config.from_dict(config).to_dict(),
                }
            )
        )
        return path

    return make


def rows(capsys: pytest.CaptureFixture, *argv: object) -> list[list[str]]:
    assert compare.main([str(a) for a in argv]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    assert compare.main([str(a) for a in argv]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and len(err.splitlines()) == 1
    return err


def test_mean_and_range_over_seeds(capsys, write: Write):
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


def test_splits_are_those_of_all_or_those_asked_for(capsys, write: Write):
    one, other = write("a-seed0.json", 1.0), write("b-seed0.json", 2.0, splits=("testA",))
    assert rows(capsys, one, other)[0][4:] == ["testA oIoU", "testA mIoU"]
    assert rows(capsys, one, "--splits", "val")[0][4:] == ["val oIoU", "val mIoU"]
    assert f"{other} has no split 'val'; it has testA" in refused(
        capsys, one, other, "--splits", "val"
    )
    third = write("c-seed0.json", 2.0, splits=("val",))
    assert "no split was scored in all" in refused(capsys, one, other, third)


def test_names_come_from_the_folders_of_runs_too(capsys, write: Write):
    seeds = [write(f"runs/x-seed{i}/test/results.json", i, seed=i) for i in (0, 1)]
    plain = write("runs/y/test/results.json", 5.0, seed=0)
    assert [row[0] for row in rows(capsys, *seeds, plain)[2:]] == ["x", "y"]


def test_what_is_not_the_same_for_all_is_said(capsys, write: Write):
    paths = [write("a-seed0.json", 1.0), write("b-seed0.json", 2.0)]
    assert compare.main([str(path) for path in paths]) == 0
    assert "not the same" not in capsys.readouterr().out
    paths += [
        write("c-seed0.json", 2.0, threshold=0.5),
        write("d-seed0.json", 2.0, train={"max_steps": 7}, dirty=True),
    ]
    assert compare.main([str(path) for path in paths]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "not the same" in line]
    assert told == [
        "not the same for all: protocol.threshold: 0.35 in a, b, d; 0.5 in c",
        "not the same for all: train.max_steps: None in a, b, c; 7 in d",
        "not the same for all: d: measured with uncommitted changes",
    ]


def test_seeds_that_are_not_like_the_others_are_named(capsys, write: Write):
    paths = [write(f"{name}-seed{i}.json", 1.0, precision="bf16") for name in "ab" for i in (0, 1)]
    write("b-seed1.json", 2.0, precision="fp32")
    assert compare.main([str(path) for path in paths]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "not the same" in line]
    assert told == [
        "not the same for all: protocol.precision: bf16 in a, b seed 0; fp32 in b seed 1"
    ]


def test_seeds_of_a_method_are_of_one_configuration(capsys, write: Write):
    one = write("a-seed0.json", 1.0)
    other = write("a-seed1.json", 1.0, train={"lr": 0.5})
    message = refused(capsys, one, other)
    assert "both called 'a', but train.lr is 0.0001 in one and 0.5 in the other" in message
    assert "seed 0 of 'a' stands twice" in refused(capsys, one, write("a-seed2.json", 1.0, seed=0))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {}}', "\ufeff{"])
def test_other_files_are_named(capsys, tmp_path: Path, content: str):
    path = tmp_path / "other.json"
    path.write_text(content)
    assert f"{path} is no results file of test.py" in refused(capsys, path)
    assert "gone.json is missing" in refused(capsys, tmp_path / "gone.json")


def test_what_a_results_file_lacks_is_named(capsys, write: Write):
    path = write("a-seed0.json", 1.0)
    assert f"{path.parent} cannot be read (Is a directory); name" in refused(capsys, path.parent)
    values = json.loads(path.read_text())
    wrong = {
        "splits.val.oIoU: Field required": {"splits": {"val": {"mIoU": 1}}},
        "splits: Input should be a valid dictionary": {"splits": 3},
        "protocol: Input should be a valid dictionary": {"protocol": 3},
        "checkpoint: Input should be a valid dictionary": {"checkpoint": None},
    }
    for reason, changes in wrong.items():
        path.write_text(json.dumps(values | changes))
        assert f"{path} is no results file of test.py ({reason}" in refused(capsys, path)
    path.write_text(json.dumps(values | {"config": {"model": {"backbone": {"name": "RN5"}}}}))
    assert f"{path}: model.backbone.name: no backbone 'RN5'" in refused(capsys, path)


def test_a_chart_that_cannot_be_written_is_refused_first(capsys, write: Write, tmp_path: Path):
    path = write("a-seed0.json", 1.0)
    assert "x.jpg should end in one of .png, .svg, .pdf" in refused(
        capsys, path, "--chart", "x.jpg"
    )
    gone = tmp_path / "gone" / "x.png"
    assert f"{gone.parent}, the folder of --chart, is not" in refused(capsys, path, "--chart", gone)
    (tmp_path / "x.png").mkdir()
    assert "x.png is a folder" in refused(capsys, path, "--chart", tmp_path / "x.png")


def test_chart(capsys, write: Write, tmp_path: Path):
    paths = [write(f"b-seed{i}.json", score) for i, score in enumerate((70.0, 71.0))]
    rows(capsys, *paths, "--chart", tmp_path / "chart.png")
    picture = cv2.imread(str(tmp_path / "chart.png"))
    assert picture is not None and picture.std() > 1
    rows(capsys, *paths, "--splits", "val", "--chart", tmp_path / "chart.svg")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".png", ".svg"]
    assert "should end in one of .png, .svg, .pdf" in refused(
        capsys, *paths, "--chart", tmp_path / "chart.doc"
    )


def test_each_backbone_has_panels_of_its_own(capsys, write: Write, tmp_path: Path):
    paths = [write("a-seed0.json", 70.0), write("b-seed0.json", 71.0, backbone="demo-resnet")]
    for i, number in enumerate((1, 2)):
        rows(capsys, *paths[:number], "--chart", tmp_path / f"{i}.png")
    one, both = (cv2.imread(str(tmp_path / f"{i}.png")) for i in range(2))
    assert both.shape[0] > 1.8 * one.shape[0] and both.shape[1] == one.shape[1]
