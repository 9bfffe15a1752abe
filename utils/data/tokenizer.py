"""Turn sentences into CLIP's byte-pair tokens."""

from functools import cache
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

START, END = "start token", "end token"


@cache
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer  # here, since this import takes seconds

    return SimpleTokenizer()


def tokenizer_name() -> str:
    """Return the library that makes the tokens, and its version."""
    return f"open_clip_torch {version('open_clip_torch')}"


def encode(sentence: str) -> list[int]:
    """Encode a lower-cased sentence, none of it cut: ``[SOS, ..., EOS]``."""
    tokenizer = _tokenizer()
    return [tokenizer.sot_token_id, *tokenizer.encode(sentence), tokenizer.eot_token_id]


def tokenize(
    sentences: str | list[str], max_tokens: int, length: int | None = None
) -> tuple[Tensor, list[int]]:
    """Turn sentences into rows of tokens; see ``pad_tokens``.

    Returns:
        ids: int64 (N, length), cut at ``max_tokens``.
        lengths: tokens of each sentence before it was cut, start and end included.
    """
    rows = [encode(text) for text in ([sentences] if isinstance(sentences, str) else sentences)]
    lengths = [len(tokens) for tokens in rows]
    tokens = np.array(list(chain.from_iterable(rows)), np.int64)
    ids = pad_tokens(tokens, np.array(lengths, int), max_tokens, length)
    return torch.from_numpy(ids), lengths


def pad_tokens(
    tokens: np.ndarray, lengths: np.ndarray, max_tokens: int, length: int | None = None
) -> np.ndarray:
    """Cut every sentence at ``max_tokens`` and pad it with 0 to ``length``: (N, length).

    ``tokens`` are those of all sentences one after the other, start and end included. A longer
    sentence is cut and still ends with the end token, where CLIP reads its meaning. ``length`` is
    ``max_tokens`` by default, and not shorter.

    Raises:
        ValueError: ``max_tokens`` leaves no room for a word between start and end.
    """
    if max_tokens < 3:
        raise ValueError(f"max_words is {max_tokens}; start, one word and end need at least 3")
    ends = np.cumsum(lengths)[:, None]  # (N, 1)
    column = np.arange(max_tokens)
    place = np.minimum(ends - lengths[:, None] + column, ends - 1)  # (N, max_tokens)
    place[:, -1:] = ends - 1
    rows = np.where(column < lengths[:, None], tokens[place], tokens.dtype.type(0))
    return np.pad(rows, ((0, 0), (0, (length or max_tokens) - max_tokens)))


def split_words(text: str, max_tokens: int) -> list[tuple[str, int]]:
    """List the words that a model of ``max_tokens`` reads, each with the number of its tokens."""
    whole = encode(text)[1:-1]
    pieces = [(word, encode(word)[1:-1]) for word in text.split()]
    if [token for _, tokens in pieces for token in tokens] != whole:
        # cleaned in a way that needs the whole sentence
        pieces = [(f"token {place}", [token]) for place, token in enumerate(whole, 1)]
    words: list[tuple[str, int]] = []
    room = max_tokens - 2
    for word, tokens in pieces:
        count = min(len(tokens), room)
        words += [(word, count)] if count else []
        room -= count
    return [(START, 1), *words, (END, 1)]
