"""Handle what a visitor does on the page, without the library that draws it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from engine.prediction import Predictor

from .drawing import COLOURS, Panel, Shown, jpeg_uri, make_download, render_stage
from .inputs import Example, take_upload

MAX_CHARACTERS = 1000
MAX_PROBABILITIES = 100_000_000  # of one answer: 400 MB
NOTHING = "nothing"  # to compare with

# what a visitor sees, and as HTML the picture with its masks and the problem, if there is one
View = tuple[Shown | None, str, str]
# what is downloaded: name and uri; and as HTML the problem, if there is one
Download = tuple[dict[str, str] | None, str]


class Handlers:
    """Handle the events of any number of visitors.

    A model runs when a visitor asks, and only then. Probabilities of the answer stay in the
    visitor's ``Shown`` and are compared with the threshold; opacity is left to the browser.
    ``uploads`` is the folder of uploaded files.
    """

    def __init__(
        self, predictors: Mapping[str, Predictor], examples: Sequence[Example], uploads: Path
    ) -> None:
        self.predictors, self.examples, self.uploads = predictors, examples, uploads

    def upload(self, shown: Shown | None, threshold: float, path: str | None) -> View:
        """Show the picture of a file, and delete the file."""
        try:
            if path is not None:
                image = take_upload(Path(path), self.uploads)
                shown = Shown(image, jpeg_uri(image))
        except ValueError as error:
            return _view(shown, threshold, str(error))
        return _view(shown, threshold)

    def take_example(self, threshold: float, index: int) -> tuple[Shown | None, str, str, str]:
        """Show an example; the last value is its sentences."""
        image, texts = self.examples[index]
        return *_view(Shown(image, jpeg_uri(image)), threshold), "\n".join(texts)

    def find(self, shown: Shown | None, threshold: float, text: str, name: str, other: str) -> View:
        """Run the adapter ``name``, and ``other`` unless it is ``NOTHING``, on all sentences."""
        names = list(dict.fromkeys([name] if other == NOTHING else [name, other]))
        try:
            return _view(self._answer(shown, text, names), threshold)
        except ValueError as error:
            return _view(shown, threshold, str(error))

    def find_again(self, shown: Shown | None, threshold: float, *question: str) -> View:
        """Do ``find`` with another choice of adapters, if anything has been found before."""
        if shown is None or not shown.panels:
            return _view(shown, threshold)
        return self.find(shown, threshold, *question)

    def download(
        self, shown: Shown | None, threshold: float, opacity: float | None = None
    ) -> Download:
        """Make a download of the masks, or with ``opacity`` of the picture as it is shown."""
        if shown is None or not shown.panels:
            return None, render_problem("nothing to download yet; find something first")
        return make_download(shown, threshold, opacity), ""

    def _answer(self, shown: Shown | None, text: str, names: Sequence[str]) -> Shown:
        """Run each of the named predictors on the picture, once for all lines of ``text``.

        Raises:
            ValueError: no picture, no sentence, too many, or one that is longer than a model reads.
        """
        texts = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        if not texts:
            raise ValueError("no sentence yet; type what to find in the picture")
        if len(texts) > len(COLOURS):
            raise ValueError(
                f"{len(texts)} sentences are too many at once; there are colours for {len(COLOURS)}"
            )
        if shown is None:
            raise ValueError("no picture yet; upload one, paste one, or take an example")
        height, width = shown.image.shape[:2]
        if len(texts) * len(names) * height * width > MAX_PROBABILITIES:
            raise ValueError(
                f"{len(texts)} sentences for {len(names)} adapters are too much for a picture of "
                f"{width} x {height} pixels; ask fewer, or take a smaller picture"
            )
        self._check_lengths(texts, names)
        panels = []
        for name in names:
            start = time.perf_counter()
            probabilities = self.predictors[name].probability(shown.image, texts)
            panels.append(Panel(name, probabilities, time.perf_counter() - start))
        return replace(shown, texts=texts, panels=panels)

    def _check_lengths(self, texts: Sequence[str], names: Sequence[str]) -> None:
        for number, text in enumerate(texts, 1):
            which = "the sentence" if len(texts) == 1 else f"sentence {number}"
            if len(text) > MAX_CHARACTERS:
                raise ValueError(
                    f"{which} has {len(text)} characters; a sentence may have {MAX_CHARACTERS}"
                )
            for name in names:
                predictor = self.predictors[name]
                # start and end are tokens too
                most, given = predictor.max_words - 2, predictor.num_tokens(text) - 2
                if given > most:
                    raise ValueError(
                        f"{which} is too long: it has {given} words and parts of words, and "
                        f"{name} reads {most}; shorten it"
                    )


def render_problem(sentence: str) -> str:
    """Render one sentence that says what is wrong, or nothing."""
    if not sentence:
        return ""
    is_word = "." not in sentence.split(" ")[0]  # a file's name stays as it is
    shown = sentence[:1].upper() + sentence[1:] if is_word else sentence
    return Markup('<p class="problem" role="alert">{}.</p>').format(shown.rstrip("."))


def _view(shown: Shown | None, threshold: float, problem: str = "") -> View:
    return shown, render_stage(shown, threshold), render_problem(problem)
