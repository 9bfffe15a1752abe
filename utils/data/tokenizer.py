"""Sentences as CLIP's byte-pair tokens."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor


@cache
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer  # here, since this import takes seconds

    return SimpleTokenizer()


def tokenizer_name() -> str:
    """The library that makes the tokens, and its version."""
    return f"open_clip_torch {version('open_clip_torch')}"


def encode(sentence: str) -> list[int]:
    """All tokens of a sentence, lower-cased, between start and end: ``[SOS, ..., EOS]``."""
    tokenizer = _tokenizer()
    return [tokenizer.sot_token_id, *tokenizer.encode(sentence), tokenizer.eot_token_id]


def tokenize(sentences: str | list[str], max_words: int) -> tuple[Tensor, list[int]]:
    """Turn sentences into rows of ``max_words`` tokens, padded with 0; see ``pad_tokens``.

    Returns:
        ids: int64 (N, max_words).
        lengths: tokens of each sentence before it was cut, start and end included.

    Raises:
        ValueError: ``max_words`` leaves no room for a word between start and end.
    """
    rows = [encode(text) for text in ([sentences] if isinstance(sentences, str) else sentences)]
    return pad_tokens(rows, max_words), [len(tokens) for tokens in rows]


def pad_tokens(rows: Sequence[Sequence[int]], max_words: int) -> Tensor:
    """Rows of tokens, start and end included, cut and padded with 0: int64 (N, max_words).

    A longer row is cut and still ends with the end token, where CLIP reads its meaning.
    """
    check_max_words(max_words)
    ids = torch.zeros(len(rows), max_words, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        kept = tokens if len(tokens) <= max_words else [*tokens[: max_words - 1], tokens[-1]]
        ids[row, : len(kept)] = torch.tensor(kept)
    return ids


def check_max_words(max_words: int) -> None:
    """``ValueError`` if there is no room for a word between start and end."""
    if max_words < 3:
        raise ValueError(f"max_words is {max_words}; start, one word and end need at least 3")
