"""The command that looks at a packed data set: its numbers, its picture, its mistakes."""

import re
from pathlib import Path

import cv2
import pytest

from tools.dataset_statistics import says
from tools.inspect_dataset import main
from utils.data.store import ReferStore
from utils.demo.writer import write_demo
from utils.prepare.pack import pack_dataset
from utils.prepare.refer import refer_source


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed demo."""
    root = tmp_path_factory.mktemp("datasets")
    write_demo(root / "demo", seed=5, num_train_objects=20, num_test_objects=30)
    pack_dataset(root, refer_source(root, "demo"))
    return root


def inspect(root: Path, *arguments: str) -> int:
    return main(["--root", str(root), "--dataset", "demo", "--split", "val", *arguments])


def test_counts_are_those_of_the_header(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(root, "--output", str(tmp_path / "sheet.png")) == 0
    shown = capsys.readouterr().out
    header = ReferStore(root, "demo").header
    found = dict(re.findall(r"^  (references|expressions|images) +([\d,]+)$", shown, re.MULTILINE))
    counts = header["splits"]["val"]
    assert found == {
        "references": str(counts["refs"]),
        "expressions": str(counts["sentences"]),
        "images": str(counts["images"]),
    }
    assert f"{counts['over_17']} longer than 17, {counts['over_22']} longer than 22" in shown
    assert header["fingerprint"] in shown
    assert all(f"{sha}  {name}" in shown for name, sha in header["sources"].items())


def test_words_choose_sentences(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        [text for _, text in record["sentences"] if says(text, "circle")]
        for record in ReferStore(root, "demo").references("val")
    ]
    assert inspect(root, "--sentence", "Circle", "--output", str(tmp_path / "sheet.png")) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"references +{sum(map(bool, texts))}\n", shown)
    assert re.search(rf"expressions +{sum(map(len, texts))}\n", shown)
    assert f"circle {sum(map(len, texts))}" in shown


def test_the_sheet_depends_on_the_seed_alone(root: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}/sheet.png" for number in range(3)]
    for path, seed in zip(paths, "001", strict=True):
        assert inspect(root, "--sample", "7", "--seed", seed, "--output", str(path)) == 0
        assert [child.name for child in path.parent.iterdir()] == ["sheet.png"]
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    assert cv2.imread(str(paths[0])).shape[1] > 1800


def test_a_sample_beyond_the_split_is_all_of_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(root, "--sample", "9999", "--output", str(tmp_path / "all.png")) == 0
    number = ReferStore(root, "demo").header["splits"]["val"]["refs"]
    assert f"all.png: {number} references" in capsys.readouterr().out
    assert inspect(root, "--sample", "0") == 0
    assert "png" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "no split 'test'; it has train, val, testA, testB"),
        (["--dataset", "refcoco"], "python tools/prepare_datasets.py --dataset refcoco"),
        (["--sentence", "zebra"], "no sentence with the words of 'zebra'"),
        (["--sentence", "?"], "--sentence '?' has no word"),
        (["--sample", "-1"], "--sample is -1; give 0"),
        (["--seed", "-1"], "--seed is -1; give 0"),
        (["--output", "sheet.jpg"], "--output sheet.jpg should end in .png"),
        (["--output", "/dev/null/sheet.png"], "/dev/null/sheet.png cannot be written"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert inspect(root, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
