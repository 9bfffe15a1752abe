"""Tokens are CLIP's own; long sentences are cut before their end token."""

import pytest
import torch

from utils.data.tokenizer import encode, split_words, tokenize

START, END = 49406, 49407


def test_tokens_equal_open_clips() -> None:
    import open_clip

    texts = ["The small RED star!", "man's hat  on left", "café — a 3rd bowl"]
    ids, lengths = tokenize(texts, 77)
    torch.testing.assert_close(ids, open_clip.tokenize(texts, context_length=77).long())
    assert lengths == [(row != 0).sum().item() for row in ids]


def test_short_sentences_are_padded_with_zero() -> None:
    ids, lengths = tokenize("red star", 6)
    assert ids.dtype == torch.int64 and ids.shape == (1, 6)
    assert ids[0, 0] == START and ids[0, 3] == END and ids[0, 4:].tolist() == [0, 0]
    assert lengths == [4]


def test_a_cut_sentence_keeps_its_beginning_and_its_end_token() -> None:
    text = "the man in the red shirt standing next to the small dog"
    ids, lengths = tokenize([text, "dog"], 5)
    assert ids[0].tolist() == [*encode(text)[:4], END]
    assert lengths == [len(encode(text)), 3]
    ids, lengths = tokenize("red star", 4)
    assert ids[0].tolist() == encode("red star") and lengths == [4], "it just fits"
    ids, lengths = tokenize([], 17)
    assert ids.shape == (0, 17) and lengths == []


def test_too_few_words_are_refused() -> None:
    with pytest.raises(ValueError, match="max_words is 2"):
        tokenize("red star", 2)


def test_words_that_are_read_and_their_tokens() -> None:
    whole = [("start token", 1), ("the", 1), ("xylophonist", 4), ("sits", 1), ("end token", 1)]
    assert split_words("the xylophonist sits", 17) == whole
    cut = [("start token", 1), ("the", 1), ("xylophonist", 2), ("end token", 1)]
    assert split_words("the xylophonist sits", 5) == cut
