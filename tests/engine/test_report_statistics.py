"""Intervals by hand-made cases, and which group a sentence falls into."""

import pytest

from engine.metrics import Record
from tools.reporting.drawing import line_chart
from tools.reporting.statistics import (
    bootstrap,
    bootstrap_difference,
    by_length,
    by_place,
    by_size,
    has_place_word,
    histogram,
)


def record(index: int, iou: float, *, ref_id: int | None = None, sentence: str = "it") -> Record:
    return Record(
        index, index if ref_id is None else ref_id, index, sentence, round(100 * iou), 100
    )


def test_the_interval_is_that_of_a_mean():
    # half 0, half 100: the mean of n draws has the standard deviation 50 / sqrt(n)
    records = [record(i, i % 2) for i in range(400)]
    for score in bootstrap(records).values():
        assert score.value == 50
        assert score.high - score.low == pytest.approx(2 * 1.96 * 50 / 20, rel=0.12)
    assert bootstrap(records) == bootstrap(records)


def test_references_are_drawn_with_all_their_sentences():
    alone = [record(i, i % 2) for i in range(400)]
    together = [record(i, i // 4 % 2, ref_id=i // 4) for i in range(400)]
    one, other = bootstrap(alone)["mIoU"], bootstrap(together)["mIoU"]
    # a quarter as many draws, twice the width
    assert other.high - other.low == pytest.approx(2 * (one.high - one.low), rel=0.12)


def test_a_difference_is_paired():
    first = [record(i, (i % 10) / 20) for i in range(300)]
    second = [record(i, (i % 10) / 20 + 0.1) for i in range(300)]
    for score in bootstrap_difference(first, second).values():
        assert (score.value, score.low, score.high) == pytest.approx((10, 10, 10))


def test_no_union_is_no_division_by_zero():
    records = [Record(i, i, i, "nothing", 0, 0) for i in range(3)]
    assert bootstrap(records)["oIoU"] == bootstrap(records)["mIoU"] == (0, 0, 0)


@pytest.mark.parametrize(
    ("sentence", "says"),
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
def test_place_words(sentence: str, says: bool):
    assert has_place_word(sentence) is says


def test_groups_leave_no_sentence_out():
    sentences = ["", "one", "one two", "a b c d e", "left " * 9, "left " * 30]
    records = [record(i, 0.6, sentence=text) for i, text in enumerate(sentences)]
    lengths = {group.name: group.num_sentences for group in by_length(records)}
    assert lengths == {"1 word": 2, "2 words": 1, "4 to 5 words": 1, "9 words and more": 2}
    assert [group.num_sentences for group in by_place(records)] == [4, 2]
    shares = dict(enumerate((0.0, 0.005, 0.01, 0.05, 0.3, 1.0)))
    sizes = by_size(records, shares)
    assert [group.num_sentences for group in sizes] == [2, 1, 1, 2]
    assert sizes[0].name == "0 to 1 % of the picture" and sizes[0].precision == 100


def test_histogram_counts_both_ends():
    assert histogram([record(0, 0), record(1, 0.5), record(2, 1)], num_bins=4) == [1, 0, 1, 1]


def test_a_line_skips_what_is_not_finite_and_stays_small():
    line = [(float(step), 1.0) for step in range(20_000)] + [(20_000.0, float("nan"))]
    drawing = line_chart({"<run>": line}, "loss")
    assert "nan" not in drawing and "<run>" not in drawing and len(drawing) < 20_000
    assert line_chart({"run": [(1.0, float("inf"))]}, "loss") == ""
