"""What the page shows, as HTML; text of users is escaped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .answers import Answer, Panel
from .examples import Example
from .layers import COLOURS, data_uri, layer_uris, shown_size

TITLE = "Find what a sentence names"
THUMBNAIL = 160  # longer side, in pixels
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)


def stage(
    picture: str | None = None,
    size: tuple[int, int] = (1, 1),
    answer: Answer | None = None,
    threshold: float = 0.0,
) -> str:
    """The picture (a data URI) with the masks of every panel, or alone, or the place for one."""
    if picture is None:
        panels: list[dict[str, Any]] = []
    elif answer is None:
        panels = [{"name": "", "rows": []}]
    else:
        panels = [_panel(answer, panel, threshold) for panel in answer.panels]
    template = _TEMPLATES.get_template("stage.html")
    return template.render(panels=panels, picture=picture, size=size)


def problem(sentence: str = "") -> str:
    """One sentence that says what is wrong, or nothing."""
    if not sentence:
        return ""
    is_word = "." not in sentence.split(" ")[0]  # and no name of a file, which stays as it is
    shown = sentence[:1].upper() + sentence[1:] if is_word else sentence
    return Markup('<p class="problem" role="alert">{}.</p>').format(shown.rstrip("."))


def head(models: str) -> str:
    """The title, and what answers."""
    return Markup("<h1>{}</h1><p>{}</p>").format(TITLE, models)


def thumbnails(examples: Sequence[Example]) -> str:
    """A button with a small picture for each example."""
    button = Markup(
        '<button type="button" data-index="{}" title="{}"><img src="{}" alt="example {}"></button>'
    )
    buttons = (
        button.format(number, "; ".join(example.texts), _small(example.image), number + 1)
        for number, example in enumerate(examples)
    )
    page = Markup('<p class="or">or take an example</p><div class="examples">{}</div>')
    return page.format(Markup("").join(buttons))


def _panel(answer: Answer, panel: Panel, threshold: float) -> dict[str, Any]:
    rows = []
    for number, (text, mask) in enumerate(zip(answer.texts, panel.masks(threshold), strict=True)):
        fill, edge = layer_uris(mask, number)
        share = f"{100 * mask.mean():.1f} % of the picture" if mask.any() else "nothing found"
        colour = COLOURS[number]
        rows.append({"text": text, "fill": fill, "edge": edge, "share": share, "colour": colour})
    return {"name": panel.name, "time": f"{panel.seconds:.2f} s", "rows": rows}


def _small(image: np.ndarray) -> str:
    width, height = shown_size(image)
    scale = THUMBNAIL / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
    return data_uri(content, "image/jpeg")
