"""Where two trees of values differ, and what of that may be."""

from engine.checkpoint import describe_differences, find_differences


def test_differences_name_dotted_keys() -> None:
    ours = {"a": {"b": 1, "c": [{"d": 2}]}, "e": []}
    theirs = {"a": {"b": 1, "c": [{"d": 3}, {"d": 4}]}, "e": [5]}
    assert find_differences(ours, ours) == {}
    found = find_differences(ours, theirs)
    assert found["a.c.0.d"] == (2, 3) and found["a.c.1.d"][1] == 4 and found["e"] == ([], [5])


def test_some_keys_may_differ() -> None:
    ours = {"run": {"folder": "a"}, "train": {"lr": 0.1, "seed": 1}}
    theirs = {"run": {"folder": "b"}, "train": {"lr": 0.2, "seed": 0}}
    unequal = find_differences(ours, theirs, ignored=("run.",))
    assert describe_differences(unequal) == "train.lr is 0.1, was 0.2; train.seed is 1, was 0"
    assert find_differences(ours, theirs, ignored=("run.", "train.")) == {}
