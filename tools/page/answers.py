"""What is asked of a page, and the answer that it keeps, so that sliders need no model."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.prediction import Predictor

MOST_SENTENCES = 6  # so many colours there are
MOST_CHARACTERS = 1000
MOST_KEPT = 100_000_000  # probabilities of one answer: 400 MB


@dataclass(frozen=True, eq=False)
class Panel:
    """What one adapter found: probabilities (N, H, W), float32, and the seconds that it took."""

    name: str
    probabilities: np.ndarray
    seconds: float

    def masks(self, threshold: float) -> np.ndarray:
        """Where the probability is above ``threshold``: bool (N, H, W), as ``Predictor`` has it."""
        return self.probabilities > threshold


@dataclass(frozen=True, eq=False)
class Answer:
    """A picture (H, W, 3), the sentences, and a panel for each adapter that was asked."""

    image: np.ndarray
    texts: list[str]
    panels: list[Panel]


def ask(
    predictors: Mapping[str, Predictor], names: Sequence[str], image: np.ndarray | None, text: str
) -> Answer:
    """Run each of the named predictors on the picture, once for all lines of ``text``.

    Raises:
        ValueError: no picture, no sentence, too many, or one that is longer than a model reads.
    """
    texts = read_sentences(text)
    if image is None:
        raise ValueError("no picture yet; upload one, paste one, or take an example")
    names = list(dict.fromkeys(names))
    if len(texts) * len(names) * image.shape[0] * image.shape[1] > MOST_KEPT:
        raise ValueError(
            f"{len(texts)} sentences for {len(names)} adapters are too much for a picture of "
            f"{image.shape[1]} x {image.shape[0]} pixels; ask fewer, or take a smaller picture"
        )
    for name in names:
        _check_length(predictors[name], name, texts)
    return Answer(image, texts, [_panel(predictors[name], name, image, texts) for name in names])


def read_sentences(text: str) -> list[str]:
    """The lines of ``text`` that say something; ``ValueError`` if there are none or too many."""
    texts = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not texts:
        raise ValueError("no sentence yet; type what to find in the picture")
    if len(texts) > MOST_SENTENCES:
        raise ValueError(
            f"{len(texts)} sentences are too many at once; there are colours for {MOST_SENTENCES}"
        )
    return texts


def _check_length(predictor: Predictor, name: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, 1):
        which = "the sentence" if len(texts) == 1 else f"sentence {number}"
        if len(text) > MOST_CHARACTERS:
            raise ValueError(
                f"{which} has {len(text)} characters; a sentence may have {MOST_CHARACTERS}"
            )
        num_tokens = predictor.num_tokens(text)
        if num_tokens > predictor.max_words:
            # start and end are tokens too
            raise ValueError(
                f"{which} is too long: it has {num_tokens - 2} words and parts of words, and "
                f"{name} reads {predictor.max_words - 2}; shorten it"
            )


def _panel(predictor: Predictor, name: str, image: np.ndarray, texts: list[str]) -> Panel:
    start = time.perf_counter()
    probabilities = predictor.probability(image, texts)
    return Panel(name, probabilities, time.perf_counter() - start)
