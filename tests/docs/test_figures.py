"""Figures on the pages follow from the configurations, the published tables and the results."""

import json
import re
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import ROOT, read, table

from engine.parameters import count
from tools.study.comparison import compare_methods, group_runs, list_caveats
from tools.study.job import plan_jobs
from tools.study.sweep_config import load_sweep
from tools.study.tables import read_tables
from utils.config import load_config
from utils.data.datasets import DATASETS

PARTS = {
    "positions": "inside the towers",
    "SNF": "inside the towers",
    "Bridger": "bridger",
    "intertwining": "intertwine",
    "global shortcut": "gst",
    "connect": "connect",
    "neck": "neck",
    "decoder": "decoder",
    "projector": "projector",
}
TOTALS = {
    "attached": "attached",
    "CLIP": "backbone",
    "head": "head",
    "trains": "trainable",
    "frozen": "frozen",
}


def sizes() -> dict[str, dict[str, str]]:
    """The rows of docs/sizes.md by their configuration: each cell by its column."""
    rows, header = {}, None
    for line in read("docs/sizes.md").splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name == "configuration":
            header = cells
        elif not line.startswith("|"):
            header = None
        elif header is not None and name.startswith("`"):
            rows[name.strip("`")] = dict(zip(header, cells, strict=True))
    return rows


@pytest.mark.parametrize(("name", "row"), sizes().items(), ids=sizes())
def test_parameters_are_counted(name: str, row: dict[str, str]) -> None:
    counts = count(load_config(ROOT / f"config/{name}.yaml"))
    wanted = {column: f"{counts['parts'].get(part, 0):,}" for column, part in PARTS.items()}
    wanted |= {column: f"{counts[total]:,}" for column, total in TOTALS.items()}
    for tower in ("the image tower", "both towers"):
        share = counts[f"attached_share_of_{tower.removeprefix('the ').replace(' ', '_')}"]
        wanted[f"of {tower}"] = f"{100 * share:.2f} %" if share is not None else "–"
    if row.get("published") != "–":
        wanted["published"] = f"{counts['attached'] / 1e6:.2f} M"
    assert row == {column: wanted.get(column, "–") for column in row}


def test_every_full_size_configuration_is_counted() -> None:
    files = {path.stem for path in (ROOT / "config").glob("*.yaml")} - {"base"}
    tables = set(re.findall(r"`config/(\w+)\.yaml`", read("docs/tables.md")))
    assert sizes().keys() <= files
    assert {name for name in files if name.removesuffix("_mixed") not in sizes()} <= tables


RESULTS = table("README.md", "| configuration | attached |")


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row[0])
def test_results_of_the_readme_follow_from_their_files(row: list[str]) -> None:
    path = Path(row[0].strip("`"))
    files = sorted((ROOT / "docs/demo-study").glob(f"{path.stem}-seed*.json"))
    runs = [json.loads(file.read_text())["splits"] for file in files]
    cells = [f"{count(load_config(ROOT / path))['attached']:,}", str(len(runs))]
    for split in ("val", "testA", "testB"):
        scores = [run[split]["oIoU"] for run in runs]
        cells.append(f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}")
    assert row[1:] == cells


def test_the_comparison_is_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tools/sweep.py writes it, every job of the sweep among them, and all that is not alike."""
    monkeypatch.chdir(ROOT)
    path = Path("sweeps/demo.yaml")
    sweep = load_sweep(path)
    runs = [job.finished_run() for job in plan_jobs(sweep, path)]
    assert None not in runs
    methods = group_runs(run for run in runs if run)
    page = read("docs/comparison.md")
    assert compare_methods(methods, sweep.splits) in page
    caveats = {f"- {note}" for note in list_caveats(methods)}
    assert caveats <= set(page.splitlines())


PUBLISHED = table("docs/reproducing.md", "| configuration | RefCOCO |")


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_published_figures_are_those_of_the_papers(row: list[str]) -> None:
    name, *figures, number = row
    one = read_tables()[number]
    (found,) = (r for r in one.rows if r.config == Path(name.strip("`")).stem)
    scores = dict(zip(one.scores, found.scores, strict=True))
    columns = ("RefCOCO val", "RefCOCO+ val", "G-Ref val(u)")
    assert figures == [f"{scores[column]:.{one.digits}f}" for column in columns]


def test_hours_follow_from_the_numbers_of_references() -> None:
    for name, *cells in table("docs/reproducing.md", "| | references of an epoch |"):
        references = DATASETS[name.strip("`")].splits["train"].refs
        steps = [50 * (references // batch) for batch in (32, 64)]
        assert cells == [f"{number:,}" for number in (references, *steps)]
    for speed, hours in table("docs/reproducing.md", "| samples a second |"):
        assert hours == f"{66_250 * 32 / float(speed) / 3600:.1f}"
