"""The papers' tables: published figures stay as they are, ours are counted and read."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from engine.evaluator import describe_protocol
from tools import tables
from tools.study.tables import PREFACE, PUBLISHED, read_tables
from utils.config import load_config

ROOT = Path(__file__).parents[2]
Write = Callable[..., Path]
Capture = pytest.CaptureFixture


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("snf_vitb16", {"val": 70.0}, "train.seed=1")``: a record with these mIoUs."""

    def make(config: str, scores: dict[str, float], *opts: str, name: str = "", **changes: Any):
        file = f"config/{config}.yaml"
        values = load_config(ROOT / file, opts)
        path = tmp_path / f"{name or config}-{len(list(tmp_path.iterdir()))}-seed0.json"
        made = {"commit": "c0ffee", "dirty": False}
        record = {
            "config_file": file,
            "splits": {
                split: {"oIoU": x - 1, "mIoU": x, "Pr@0.5": x + 5, "Pr@0.7": x, "Pr@0.9": x - 50}
                for split, x in scores.items()
            },
            "protocol": describe_protocol(values, 17, precision="bf16", name="native", length=17),
            "data": {"fingerprint": "f"},
            "checkpoint": {"provenance": made | {"dirty": changes.pop("trained_dirty", False)}},
            "config": values.to_dict(),
        }
        path.write_text(json.dumps(record | made | changes))
        return path

    return make


@pytest.fixture
def show(tmp_path: Path, capsys: Capture) -> Callable[[str], str]:
    """``show("etris-5")``: what is printed."""

    def make(name: str) -> str:
        assert tables.main(["--results", str(tmp_path), "--table", name]) == 0
        return capsys.readouterr().out

    return make


def rows(page: str) -> dict[str, list[str]]:
    """The cells of each line of a table by its first."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: cells for first, *cells in split}


def test_the_papers_tables_are_there() -> None:
    published = read_tables()
    expected = [f"etris-{i}" for i in range(1, 7)] + [f"barleria-{i}" for i in range(1, 6)]
    assert list(published) == expected
    for name, table in published.items():
        paper, number = name.split("-")
        assert table.source.lower().startswith(paper)
        assert table.source.endswith(f"table {number}")
        metric = {"etris": "oIoU", "barleria": "IoU"}[paper]
        assert table.metric == (None if name == "etris-3" else metric)
    names = {row.config for table in published.values() for row in table.rows if row.config}
    assert len(names) > 25
    assert [name for name in names if not (ROOT / f"config/{name}.yaml").exists()] == []


def test_published_figures_agree_with_one_another() -> None:
    """A digit mistyped in one place would show in another."""
    published = read_tables()
    scores = {
        name: {row.name: row.scores for row in table.rows} for name, table in published.items()
    }
    for name in ("barleria-1", "barleria-5"):  # Avg is the mean over data sets
        for row, (*columns, average) in scores[name].items():
            if average is None:
                continue
            datasets = [mean(columns[start : start + 3]) for start in (0, 3, 6)]
            assert mean(datasets) == pytest.approx(average, abs=0.1), row
            if name == "barleria-5":
                assert scores["barleria-4"][row] == pytest.approx([*datasets, average], abs=0.1)
    for name in ("barleria-2", "barleria-3"):  # over columns
        for row, (*columns, average) in scores[name].items():
            printed = 66.7 if (name, row) == ("barleria-2", "ETRIS") else average
            assert mean(columns) == pytest.approx(printed, abs=0.06), row
    for short, long in (("CRIS", "CRIS CLIP ResNet-101"), ("ETRIS", "ETRIS ViT-B-16")):
        rounded = [round(x, 1) if x else None for x in scores["etris-1"][long]]
        assert scores["barleria-1"][short][:9] == rounded
    best = scores["etris-5"]["(d) Conv & Deconv"]
    assert scores["etris-6"]["all"] == best
    assert scores["etris-6"]["without Bridger"][0] == scores["etris-2"]["Fix Backbone"][0]
    val = scores["etris-1"]["ETRIS CLIP ResNet-101"][0]
    assert {val} == {best[0], *scores["etris-2"]["ETRIS"], *scores["etris-4"]["3 from 2 to n"]}


def mean(scores: list[float | None]) -> float:
    return fmean(score for score in scores if score is not None)


def test_published_figures_are_shown_and_ours_are_empty(show: Callable[[str], str]) -> None:
    page = show("etris-5")
    assert page.startswith(PREFACE) and "mIoU" in PREFACE
    found = rows(page)
    assert found["(c) MLP"] == ["1.68 M", "70.62", "82.36", "71.05", "17.70", ""]
    assert found["↳ `config/etris_rn101_mlp.yaml`"] == ["1.68 M", "", "", "", "", ""]


def test_sizes_are_counted(show: Callable[[str], str]) -> None:
    found = rows(show("etris-2"))
    assert found["CoOp"][:3] == ["0.00 M", "4.10 K", "23.98 M"]
    assert found["↳ `config/coop_rn101.yaml`"][:3] == ["0.00 M", "4.10 K", "23.46 M"]
    assert found["↳ `config/etris_rn101.yaml`"][:3] == ["1.94 M", "0.00 K", "23.46 M"]
    assert rows(show("etris-3"))["↳ `config/etris_rn50.yaml`"] == ["1.68 M", "27.26 M", "28.94 M"]


def test_scores_are_means_over_seeds(write: Write, show: Callable[[str], str]) -> None:
    write("etris_rn101", {"val": 70.0, "testA": 9.0})
    write("etris_rn101", {"val": 72.0}, "train.seed=1", "data.workers=0", "train.micro_batch=2")
    ours = rows(show("etris-6"))["↳ `config/etris_rn101.yaml`"]
    assert ours == [
        "70.00 (69.00–71.00) / 71.00 (70.00–72.00)",
        "76.00 (75.00–77.00)",
        "71.00 (70.00–72.00)",
        "21.00 (20.00–22.00)",
        "2",
    ]


def test_data_sets_have_their_columns(write: Write, show: Callable[[str], str]) -> None:
    for dataset, splits in {
        "refcoco": ["val", "testA", "testB"],
        "refcoco+": ["val", "testA", "testB"],
        "refcocog_u": ["val", "test"],
    }.items():
        scores = {split: 60.0 + i for i, split in enumerate(splits)}
        write("snf_vitb16", scores, f"data.dataset={dataset}")
    write("snf_vitb16", {"val": 64.0}, "data.dataset=refcocog_u", "train.seed=1")
    ours = "↳ `config/snf_vitb16.yaml`"
    found = rows(show("barleria-5"))[ours]
    assert found[1] == found[4] == "59.00 / 60.00" and found[3] == "61.00 / 62.00"
    ranges = "61.00 (59.00–63.00) / 62.00 (60.00–64.00)"
    assert found[7:] == [ranges, "60.00 / 61.00", "", "", "1–2"]
    found = rows(show("barleria-4"))[ours]
    assert found == ["0.18 M", "60.00 / 61.00", "60.00 / 61.00", "", "", "1–2"]
    write("snf_vitb16", {"val": 58.5}, "data.dataset=refcocog_g")
    found = rows(show("barleria-4"))[ours]
    assert found[3:5] == ["59.50 / 60.50", "59.83 / 60.83"]


def test_one_model_of_several_data_sets(write: Write, show: Callable[[str], str]) -> None:
    write("barleria_vitl14_mixed", {"refcoco/val": 80.0, "refcocog_u/test": 70.0})
    found = rows(show("barleria-3"))
    ours = found["↳ `config/barleria_vitl14_mixed.yaml`"][:8]
    assert ours == ["79.00 / 80.00", *[""] * 6, "69.00 / 70.00"]
    assert set(found["↳ `config/barleria_vitl14.yaml`"]) == {""}


def test_what_a_reader_must_know_marks_a_row(write: Write, show: Callable[[str], str]) -> None:
    write("etris_rn101", {"val": 70.0}, trained_dirty=True)
    write("frozen_rn101", {"val": 60.0}, "train.seed=1")
    write("frozen_rn101", {"val": 65.0}, "train.batch_size=16", name="small")
    write("frozen_rn101", {"val": 66.0}, "eval.threshold=0.5", name="half", commit=None)
    page = show("etris-6")
    found = rows(page)
    assert found["↳ `config/etris_rn101.yaml` *"][0] == "69.00 / 70.00"
    assert found["↳ `config/frozen_rn101.yaml`"][0] == "59.00 / 60.00"
    half, small = [name for name in found if " as " in name]
    assert found[small][0] == "64.00 / 65.00" and found[half][0] == "65.00 / 66.00"
    marks = [line for line in page.splitlines() if line.startswith("- \\*")]
    own = "`config/frozen_rn101.yaml` as"
    assert marks == [
        f"- \\* {own} `half-3`: protocol: threshold is 0.5, the project's is 0.35.",
        f"- \\* {own} `half-3`: tested by code of an unknown commit.",
        f"- \\* {own} `small-2`: train.batch_size is 16, 32 in the file.",
        "- \\* `config/etris_rn101.yaml`: trained with uncommitted changes.",
    ]


def test_a_duplicate_seed_is_refused(write: Write, tmp_path: Path, capsys: Capture) -> None:
    first, second = (write("etris_rn101", {"val": x}) for x in (70.0, 71.0))
    assert tables.main(["--results", str(tmp_path), "--table", "etris-6"]) == 2
    assert f"error: {first} and {second} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"--table": "etris-7"}, "etris-7"),
        ({"--results": "."}, "x-seed0.json"),
        ({"--results": "gone"}, "gone"),
        ({"--write": "gone/x.md"}, "--write"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: dict, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x-seed0.json").write_text("{}")
    argv = [word for option in ({"--table": "etris-6"} | options).items() for word in option]
    assert tables.main(argv) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and value in error and error.count("\n") == 1


def test_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED.read_text("utf-8").replace("sizes: [0.29 M], ", ""), "utf-8")
    with pytest.raises(ValueError, match=r"published\.yaml: etris-4.*1 from n/2 to n"):
        read_tables(path)


def test_the_page_is_written(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "tables.md"
    arguments = ["--results", str(tmp_path), "--table", "etris-6", "etris-4", "--write", str(path)]
    assert tables.main(arguments) == 0
    assert path.read_text("utf-8") == capsys.readouterr().out
    assert path.read_text("utf-8").index("## etris-6") < path.read_text("utf-8").index("## etris-4")


def test_each_protocol_has_a_row(write: Write, show: Callable[[str], str]) -> None:
    protocol = {"name": "released", "number": 1}
    other = {"val": {"oIoU": 60.0, "mIoU": 61.0}}
    both = [{"protocol": protocol, "splits": other}]
    write("barleria_vitb16", {"val": 70.0}, other_protocols=both)
    cells = rows(show("barleria-1"))
    native = cells["↳ `config/barleria_vitb16.yaml`"]
    released = cells["↳ `config/barleria_vitb16.yaml`, released protocol"]
    assert "69.00 / 70.00" in native and "60.00 / 61.00" in released
