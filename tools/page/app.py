"""The page itself, drawn by gradio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import markup
from .handlers import NOTHING, Handlers, Shown
from .uploads import MOST_BYTES, MOST_PIXELS

KEPT_SECONDS = 3600  # of what a visitor has, since the last use
MOST_SESSIONS = 8  # the latest pages opened; what older ones held is forgotten
SWEEP = (30, 60)  # every 30 s uploads that nobody read for 60 s; others go as soon as they are read
OPACITY = 0.45  # as page.css has it
LIMITS = f"up to {MOST_BYTES / 2**20:.0f} MB and {MOST_PIXELS / 1e6:.0f} million pixels"
FOOT = """Everything happens on the machine that runs this page. Pictures, sentences and masks stay
in its memory for an hour after you last used them, at most; an upload is deleted from its disk as
soon as it is read."""

SET_OPACITY = "(value) => { document.documentElement.style.setProperty('--opacity', value); }"
SAVE = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.uri;
  link.download = file.name;
  link.click();
}"""
SHOW_STAGE = """() => {
  if (innerWidth < 768) document.querySelector("#stage").scrollIntoView({ behavior: "smooth" });
}"""
PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", { index: Number(button.dataset.index) });
});"""


def build(handlers: Handlers, threshold: float) -> gr.Blocks:
    """The page as gradio's blocks; nothing is served yet."""
    with gr.Blocks(title=markup.TITLE, analytics_enabled=False, delete_cache=SWEEP) as blocks:
        _Page(handlers, threshold)
    blocks.state_session_capacity = MOST_SESSIONS
    for block in blocks.blocks.values():
        # gradio would copy a file that a visitor names, and fetch one from an address
        block.async_move_resource_to_block_cache = _leave
    return blocks


async def _leave(path: str) -> str:
    return path


def appearance() -> dict[str, Any]:
    """Theme, style and script of the page, none of them from elsewhere."""
    theme = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8")
    return {"theme": theme, "css_paths": folder / "page.css", "js": script}


class _Page:
    """The parts of the page, and what happens when one is used."""

    def __init__(self, handlers: Handlers, threshold: float) -> None:
        self.handlers = handlers
        self.shown = gr.State(None, time_to_live=KEPT_SECONDS)
        self.file = gr.JSON(visible=False)
        gr.HTML(_head(handlers), elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                self._draw_question(list(handlers.predictors))
            with gr.Column(scale=3, min_width=320):
                self._draw_answer(threshold)
        gr.HTML(f"<p>{FOOT}</p>", elem_id="foot")
        self._connect()

    def _draw_question(self, names: Sequence[str]) -> None:
        self.upload = gr.Image(
            sources=["upload"],
            type="filepath",
            height=140,
            label=f"Picture, {LIMITS}",
            placeholder="Drop, paste or choose a picture",
            elem_id="upload",
        )
        # the file as it came: gradio would decode it, without our limits and in its own way
        self.upload.preprocess = lambda file: None if file is None else file.path
        self.examples = gr.HTML(
            markup.thumbnails(self.handlers.examples), js_on_load=PICK, elem_id="examples"
        )
        self.text = gr.Textbox(
            label="What to find, one sentence per line",
            placeholder="the big red star\nthe circle on the left",
            lines=3,
            max_lines=6,
            elem_id="text",
        )
        others = [NOTHING, *names]
        with gr.Row(visible=len(names) > 1):
            self.name = gr.Dropdown(
                names, value=names[0], label="Adapter", min_width=200, elem_id="adapter"
            )
            self.other = gr.Dropdown(
                others, value=NOTHING, label="Compare with", min_width=200, elem_id="other"
            )
        self.find = gr.Button("Find", variant="primary", elem_id="find")
        self.problem = gr.HTML(elem_id="problem")

    def _draw_answer(self, threshold: float) -> None:
        self.stage = gr.HTML(markup.stage(), elem_id="stage")
        with gr.Row():
            self.threshold = gr.Slider(
                0, 1, threshold, step=0.01, label="Threshold", min_width=240, elem_id="threshold"
            )
            self.opacity = gr.Slider(
                0, 1, OPACITY, step=0.05, label="Opacity", min_width=240, elem_id="opacity"
            )
        with gr.Row():
            self.masks = gr.Button("Download mask", size="md", min_width=140, elem_id="masks")
            self.overlays = gr.Button(
                "Download overlay", size="md", min_width=140, elem_id="overlays"
            )

    def _connect(self) -> None:
        view = [self.shown, self.stage, self.problem]
        # one after the other, so that none sees what another is about to replace
        hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "page"}
        quiet = {"show_progress": "hidden", **hidden}
        ask = {
            "inputs": [self.shown, self.text, self.name, self.other, self.threshold],
            "outputs": view,
            "show_progress": "minimal",
            "show_progress_on": self.stage,
            **hidden,
        }
        handlers, threshold = self.handlers, self.threshold
        self.upload.upload(
            self._take_upload, [self.upload, self.shown, threshold], [*view, self.upload], **quiet
        )
        picked = self.examples.click(
            self._take_example, [threshold], [*view, self.text], **quiet
        ).then(handlers.find, **ask)
        # not "once": a choice made while a model runs would be dropped
        ask["trigger_mode"] = "always_last"
        asked = gr.on([self.find.click, self.text.submit], handlers.find, **ask)
        for done in (picked, asked):
            done.then(None, js=SHOW_STAGE)
        gr.on([self.name.input, self.other.input], handlers.find_again, **ask)
        # release: the button that resets a slider is no input; change comes when the page opens too
        gr.on(
            [threshold.input, threshold.release],
            handlers.redraw,
            [self.shown, threshold],
            self.stage,
            trigger_mode="always_last",
            **quiet,
        )
        opacity = self.opacity
        gr.on([opacity.input, opacity.release], None, [opacity], js=SET_OPACITY)
        for button, handler, inputs in (
            (self.masks, handlers.masks, [self.shown, threshold]),
            (self.overlays, handlers.overlays, [self.shown, threshold, opacity]),
        ):
            made = button.click(handler, inputs, [self.file, self.problem], **quiet)
            made.then(None, [self.file], js=SAVE)

    def _take_upload(self, path: str | None, shown: Shown | None, threshold: float) -> tuple:
        return *self.handlers.upload(path, shown, threshold), None

    def _take_example(self, threshold: float, event: gr.EventData) -> tuple:
        return self.handlers.take_example(event.index, threshold)


def _head(handlers: Handlers) -> str:
    predictors = list(handlers.predictors.values())
    backbones = sorted({one.segmenter.backbone["name"] or "CLIP" for one in predictors})
    what = "1 adapter" if len(predictors) == 1 else f"{len(predictors)} adapters"
    device = predictors[0].device
    return markup.head(f"{what} on a frozen {' and a frozen '.join(backbones)}, on {device}")
