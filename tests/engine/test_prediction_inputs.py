"""Which pictures and sentences a command line or a table names."""

from pathlib import Path

import pytest

from engine.prediction_inputs import from_pairs, from_pictures


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``some/``: two pictures, a text, a hidden file, one in a folder inside; and ``[1].png``."""
    inside = tmp_path / "some" / "inside"
    inside.mkdir(parents=True)
    for name in ("some/b.PNG", "some/a.jpg", "some/notes.txt", "some/.c.png", "some/inside/d.png"):
        (tmp_path / name).touch()
    (tmp_path / "[1].png").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "paths", "problems"),
    [
        (["some"], ["some/a.jpg", "some/b.PNG"], []),
        (["some/**/*.png"], ["some/inside/d.png"], []),
        (["some/b.PNG", "some"], ["some/b.PNG", "some/a.jpg"], []),
        (["[1].png"], ["[1].png"], []),
        (["some/notes.txt"], ["some/notes.txt"], []),
        (["no.png", "[1].png"], ["[1].png"], ["no.png: no such picture"]),
        (["empty", "*.gif"], [], ["empty: a folder without pictures", "*.gif: no such picture"]),
    ],
)
def test_words_name_pictures(
    pictures: Path, words: list[str], paths: list[str], problems: list[str]
) -> None:
    inputs = from_pictures(words, ["a star", "a ring"])
    assert [question.path.as_posix() for question in inputs.questions] == paths
    assert all(question.texts == ["a star", "a ring"] for question in inputs.questions)
    assert inputs.problems == problems
    assert inputs.is_single == (words in (["[1].png"], ["some/notes.txt"]))


ROWS = [("b.png", "a star"), ("a.png", 'the "big", red one'), ("b.png", "ein Stern, grün")]
CSV = '\ufeffimage, sentence,id\nb.png,a star,1\na.png,"the ""big"", red one",2\n'
CSV += 'b.png,"ein Stern, grün",3\n,nothing,4\nb.png, ,5\n'
JSONL = """{"image": "b.png", "sentence": "a star"}
{"image": "a.png", "sentence": "the \\"big\\", red one"}

{"image": "b.png", "sentence": "ein Stern, grün"}
{"image": 3, "sentence": "nothing"}
{"image": "b.png"
"""


@pytest.mark.parametrize(("name", "content"), [("pairs.csv", CSV), ("pairs.jsonl", JSONL)])
def test_tables_give_pairs_and_name_bad_lines(tmp_path: Path, name: str, content: str) -> None:
    table = tmp_path / name
    table.write_text(content, encoding="utf-8")
    inputs = from_pairs(table)
    assert [(question.path, question.texts) for question in inputs.questions] == [
        (tmp_path / "b.png", [ROWS[0][1], ROWS[2][1]]),
        (tmp_path / "a.png", [ROWS[1][1]]),
    ]
    assert not inputs.is_single
    first, second = inputs.problems
    assert first.startswith(f"{table}: line 5: no 'image'")
    assert second.startswith(f"{table}: line 6: no '")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.csv", b"picture,sentence\n", "no column image; its first line should be"),
        ("pairs.csv", b"", "no column image, sentence"),
        ("pairs.csv", b"image,sentence\n\xff,a\n", "no UTF-8 text"),
        ("pairs.xlsx", b"", "ends in .csv or .jsonl"),
        ("pairs.csv", None, "no such table of pairs"),
    ],
)
def test_wrong_tables_are_explained(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        from_pairs(tmp_path / name)
