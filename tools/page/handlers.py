"""What happens on the page, without the library that draws it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.prediction import Predictor

from . import markup
from .answers import Answer, ask
from .examples import Example
from .layers import data_uri, mask_files, overlay_files, picture_uri, shown_size
from .uploads import take_upload

KINDS = {".png": "image/png", ".zip": "application/zip"}
NOTHING = "nothing"  # to compare with


@dataclass(frozen=True, eq=False)
class Shown:
    """What a visitor has on the page: a picture, and the answer about it if there is one."""

    image: np.ndarray
    uri: str
    answer: Answer | None = None


# what a visitor has, the picture with its masks, and one sentence if something is wrong
View = tuple[Shown | None, str, str]
# what is downloaded: name and uri; and one sentence if something is wrong
Download = tuple[dict[str, str] | None, str]


class Handlers:
    """Answers to what a visitor does, for any number of visitors.

    A model runs when a visitor asks, and only then. Probabilities of the answer are kept in the
    visitor's ``Shown``; the threshold is compared with these, and opacity is the browser's.
    """

    def __init__(self, predictors: Mapping[str, Predictor], examples: Sequence[Example]) -> None:
        self.predictors, self.examples = predictors, examples

    def upload(self, path: str | None, shown: Shown | None, threshold: float) -> View:
        """Put the picture of a file on the page, and delete the file."""
        if path is None:
            return self.view(shown, threshold)
        try:
            return self.view(_show(take_upload(Path(path))), threshold)
        except ValueError as error:
            return self.view(shown, threshold, str(error))

    def take_example(self, index: int, threshold: float) -> tuple[Shown | None, str, str, str]:
        """Put an example on the page; the last value is its sentences."""
        example = self.examples[index]
        return *self.view(_show(example.image), threshold), "\n".join(example.texts)

    def find(self, shown: Shown | None, text: str, name: str, other: str, threshold: float) -> View:
        """Run the adapter ``name``, and ``other`` unless it is ``NOTHING``, on all sentences."""
        names = [name] if other == NOTHING else [name, other]
        try:
            answer = ask(self.predictors, names, None if shown is None else shown.image, text)
        except ValueError as error:
            return self.view(shown, threshold, str(error))
        assert shown is not None, "ask refuses to answer without a picture"
        return self.view(replace(shown, answer=answer), threshold)

    def find_again(
        self, shown: Shown | None, text: str, name: str, other: str, threshold: float
    ) -> View:
        """``find`` with another choice of adapters, if anything has been found before."""
        if shown is None or shown.answer is None:
            return self.view(shown, threshold)
        return self.find(shown, text, name, other, threshold)

    def redraw(self, shown: Shown | None, threshold: float) -> str:
        """The picture with its masks again, after the threshold has moved."""
        if shown is None:
            return markup.stage()
        return markup.stage(shown.uri, shown_size(shown.image), shown.answer, threshold)

    def view(self, shown: Shown | None, threshold: float, problem: str = "") -> View:
        """All of the page that changes."""
        return shown, self.redraw(shown, threshold), markup.problem(problem)

    def masks(self, shown: Shown | None, threshold: float) -> Download:
        """The masks as PNG, 0 or 255, at the size of the picture; several of them as ZIP."""
        return _download(shown, lambda answer: mask_files(answer, threshold))

    def overlays(self, shown: Shown | None, threshold: float, opacity: float) -> Download:
        """The picture as it is shown, at its own size, as PNG; two of them as ZIP."""
        return _download(shown, lambda answer: overlay_files(answer, threshold, opacity))


def _show(image: np.ndarray) -> Shown:
    return Shown(image, picture_uri(image))


def _download(shown: Shown | None, make: Callable[[Answer], tuple[str, bytes]]) -> Download:
    if shown is None or shown.answer is None:
        return None, markup.problem("nothing to download yet; find something first")
    name, content = make(shown.answer)
    return {"name": name, "uri": data_uri(content, KINDS[Path(name).suffix])}, markup.problem()
