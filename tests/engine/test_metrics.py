"""Scores from intersections and unions, against numbers worked out by hand."""

import random

import pytest

from engine.metrics import Record, metrics_from_records


def record(intersection: int, union: int) -> Record:
    return Record(0, 1, 2, "a box", intersection, union)


def test_scores_by_hand() -> None:
    scores = metrics_from_records([record(1, 4), record(9, 10), record(6, 10)]).to_dict()
    assert scores["oIoU"] == pytest.approx(100 * 16 / 24)
    assert scores["mIoU"] == pytest.approx(100 * (0.25 + 0.9 + 0.6) / 3)
    hits = {"Pr@0.5": 2, "Pr@0.6": 1, "Pr@0.7": 1, "Pr@0.8": 1, "Pr@0.9": 0}  # 0.6 is not above 0.6
    assert {name: scores[name] for name in hits} == pytest.approx(
        {name: 100 * count / 3 for name, count in hits.items()}
    )
    assert (scores["intersection"], scores["union"], scores["count"]) == (16, 24, 3)


def test_an_empty_union_counts_as_a_miss() -> None:
    scores = metrics_from_records([record(0, 0), record(5, 5)]).to_dict()
    assert (scores["oIoU"], scores["mIoU"], scores["Pr@0.9"]) == (100, 50, 50)
    assert metrics_from_records([record(0, 0)]).to_dict()["oIoU"] == 0


def test_an_empty_truth_is_missed_whatever_is_found() -> None:
    scores = metrics_from_records([record(0, 0), record(0, 6), record(4, 4)]).to_dict()
    assert (scores["mIoU"], scores["Pr@0.5"]) == (pytest.approx(100 / 3), pytest.approx(100 / 3))
    assert (scores["oIoU"], scores["count"]) == (40, 3)


def test_no_sentence_scores_nothing() -> None:
    assert set(metrics_from_records([]).to_dict().values()) == {0}


def test_the_order_of_records_changes_no_bit() -> None:
    rng = random.Random(0)
    records = [record(rng.randrange(1000), 1000 + rng.randrange(1000)) for _ in range(500)]
    reference = metrics_from_records(records)
    for _ in range(5):
        rng.shuffle(records)
        assert metrics_from_records(records) == reference
