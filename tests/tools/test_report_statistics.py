"""Intervals by hand-made cases, and the group of a sentence."""

import pytest

from engine.metrics import Record
from tools.reporting.charts import MAX_POINTS, TOP, line_chart
from tools.reporting.statistics import bootstrap, compare, group_records, histogram


def record(index: int, iou: float, *, ref_id: int | None = None, sentence: str = "it") -> Record:
    ref_id = index if ref_id is None else ref_id
    return Record(index, ref_id, index, sentence, round(100 * iou), 100)


def test_the_interval_is_that_of_a_mean() -> None:
    # half 0, half 100: the mean of n draws has the standard deviation 50 / sqrt(n)
    records = [record(i, i % 2) for i in range(400)]
    for score in bootstrap(records).values():
        assert score.value == 50
        assert score.high - score.low == pytest.approx(2 * 1.96 * 50 / 20, rel=0.12)
    assert bootstrap(records) == bootstrap(records)


def test_references_are_drawn_with_all_their_sentences() -> None:
    alone = [record(i, i % 2) for i in range(400)]
    together = [record(i, i // 4 % 2, ref_id=i // 4) for i in range(400)]
    one, other = bootstrap(alone)["mIoU"], bootstrap(together)["mIoU"]
    # a quarter as many draws, twice the width
    assert other.high - other.low == pytest.approx(2 * (one.high - one.low), rel=0.12)


def test_a_difference_is_paired() -> None:
    pairs = [(record(i, (i % 10) / 20), record(i, (i % 10) / 20 + 0.1)) for i in range(300)]
    found = compare(pairs)
    for score in found.difference.values():
        assert (score.value, score.low, score.high) == pytest.approx((10, 10, 10))
    assert (len(found.better), found.worse, found.num_same) == (300, [], 0)


def test_no_union_is_no_division_by_zero() -> None:
    records = [Record(i, i, i, "nothing", 0, 0) for i in range(3)]
    assert bootstrap(records)["oIoU"] == bootstrap(records)["mIoU"] == (0, 0, 0)


@pytest.mark.parametrize(
    ("sentence", "has_place"),
    [
        ("The LEFT one", True),
        ("topmost star", True),
        ("guy closest to us", True),
        ("red,behind", True),
        ("a bright thing", False),
        ("leftover sandwich", False),
        ("man with hat on", False),
    ],
)
def test_place_words(sentence: str, has_place: bool) -> None:
    (group,) = group_records([record(0, 0.6, sentence=sentence)])["place"]
    assert group.name == ("with place words" if has_place else "without place words")


def test_groups_hold_every_sentence() -> None:
    sentences = ["", "one", "one two", "a b c d e", "left " * 9, "left " * 30]
    records = [record(i, 0.6, sentence=text) for i, text in enumerate(sentences)]
    groups = group_records(records, dict(enumerate((0.0, 0.005, 0.01, 0.05, 0.3, 1.0))))
    lengths = {group.name: group.num_sentences for group in groups["length of the sentence"]}
    assert lengths == {"1 word": 2, "2 words": 1, "4 to 5 words": 1, "9 words and more": 2}
    sizes = groups["size of the object"]
    assert [group.num_sentences for group in sizes] == [2, 1, 1, 2]
    assert sizes[0].name == "0 to 1 % of the picture" and sizes[0].precision == 100


def test_histogram_counts_both_ends() -> None:
    counts = histogram([record(0, 0), record(1, 0.5), record(2, 1), record(3, 1)])
    assert counts == [25.0, *[0] * 9, 25.0, *[0] * 8, 50.0]


def test_a_line_skips_what_is_not_finite_and_stays_small() -> None:
    line = [(float(step), 1.0) for step in range(20_000)] + [(20_000.0, float("nan"))]
    chart = line_chart("loss", {"run": line})
    assert chart is not None and len(chart.lines[0]) <= MAX_POINTS
    assert all(y > TOP for _, y in chart.lines[0])
    assert line_chart("loss", {"run": [(1.0, float("inf"))]}) is None
