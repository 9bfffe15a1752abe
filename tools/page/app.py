"""Lay out the page with gradio, connect its parts to their handlers, and serve it."""

from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import uvicorn
from fastapi import FastAPI
from markupsafe import Markup
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .drawing import render_examples, render_stage
from .handlers import NOTHING, Handlers
from .inputs import LIMITS, MAX_BYTES

TITLE = "Find what a sentence names"
STORED_SECONDS = 3600  # how long a visitor's picture and masks stay after the last use
MAX_SESSIONS = 8  # the latest pages opened; pictures and masks of older ones are deleted
# Every 30 s, delete uploads older than 60 s that nobody read; others go as soon as they are read.
DELETE_CACHE = (30, 60)
OPACITY = 0.45  # as in page.css
FOOT = """<p>Everything happens on the machine that runs this page. Pictures, sentences and masks
stay in its memory for an hour after you last used them, at most; an upload is deleted from its disk
as soon as it is read.</p>"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# With it the browser refuses any request to another site, should a library ever make one.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
PICK = "element.onclick = (event) => actions.pick(event, trigger);"  # see page.js


def build(handlers: Handlers, threshold: float) -> gr.Blocks:
    """Build the page as gradio's blocks; nothing is served yet."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as blocks:
        _connect(handlers, _lay_out(handlers, threshold))
    blocks.state_session_capacity = MAX_SESSIONS

    async def keep_path(path: str) -> str:
        return path

    for block in blocks.blocks.values():
        # gradio would copy a file that a visitor names, and fetch one from an address
        block.async_move_resource_to_block_cache = keep_path
    return blocks


def make_server(page: gr.Blocks, host: str, max_bytes: int = MAX_BYTES) -> uvicorn.Server:
    """Make a server of the page: no analytics, no sharing, uploads up to ``max_bytes``.

    At a loopback address it answers to that name alone, so that no page of another site can reach
    it under a name of its own. Nothing of the page is fetched from elsewhere.
    """
    app = FastAPI(openapi_url=None)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    folder = Path(__file__).parent
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        max_file_size=max_bytes,
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css_paths=folder / "page.css",
        js=(folder / "page.js").read_text(encoding="utf-8"),
    )
    return uvicorn.Server(
        uvicorn.Config(
            app,
            headers=[("Content-Security-Policy", POLICY), ("Referrer-Policy", "no-referrer")],
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=1,  # seconds, for open connections when the server ends
        )
    )


def _lay_out(handlers: Handlers, threshold: float) -> SimpleNamespace:
    """Lay out the page; return its parts by name."""
    names = list(handlers.predictors)
    page = SimpleNamespace(file=gr.JSON(visible=False))
    page.shown = gr.State(None, time_to_live=STORED_SECONDS)
    gr.HTML(_head(handlers), elem_id="head")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            page.upload = gr.Image(
                sources=["upload"],
                type="filepath",
                height=140,
                label=f"Picture, up to {LIMITS}",
                placeholder="Drop, paste or choose a picture",
                elem_id="upload",
            )
            # the file as it came: gradio would decode it, without our limits and in its own way
            page.upload.preprocess = lambda file: None if file is None else file.path
            page.examples = gr.HTML(
                render_examples(handlers.examples), js_on_load=PICK, elem_id="examples"
            )
            page.text = gr.Textbox(
                label="What to find, one sentence per line",
                placeholder="the big red star\nthe circle on the left",
                lines=3,
                max_lines=6,
                elem_id="text",
            )
            with gr.Row(visible=len(names) > 1):
                page.name = gr.Dropdown(names, label="Adapter", min_width=200, elem_id="adapter")
                page.other = gr.Dropdown(
                    [NOTHING, *names], label="Compare with", min_width=200, elem_id="other"
                )
            page.find = gr.Button("Find", variant="primary", elem_id="find")
            page.problem = gr.HTML(elem_id="problem")
        with gr.Column(scale=3, min_width=320):
            page.stage = gr.HTML(render_stage(None, threshold), elem_id="stage")
            with gr.Row():
                slider = {"minimum": 0, "maximum": 1, "min_width": 240}
                page.threshold = gr.Slider(
                    value=threshold, step=0.01, label="Threshold", elem_id="threshold", **slider
                )
                page.opacity = gr.Slider(
                    value=OPACITY, step=0.05, label="Opacity", elem_id="opacity", **slider
                )
            with gr.Row():
                button = {"size": "md", "min_width": 140}
                page.masks = gr.Button("Download mask", elem_id="masks", **button)
                page.overlays = gr.Button("Download overlay", elem_id="overlays", **button)
    gr.HTML(FOOT, elem_id="foot")
    return page


def _connect(handlers: Handlers, page: SimpleNamespace) -> None:
    """Say which handler each event calls; ``js`` runs in the browser (page.js)."""
    # one after the other, so that no handler reads what another is about to replace
    private = {"api_visibility": "private", "concurrency_id": "page"}
    quiet = {"show_progress": "hidden", **private}
    view = [page.shown, page.stage, page.problem]
    asks = {
        "inputs": [page.shown, page.threshold, page.text, page.name, page.other],
        "outputs": view,
        "show_progress": "minimal",
        "show_progress_on": page.stage,
        **private,
    }

    def take_example(threshold: float, event: gr.EventData) -> tuple:
        return handlers.take_example(threshold, event.index)

    page.upload.upload(
        lambda *inputs: (*handlers.upload(*inputs), None),
        [page.shown, page.threshold, page.upload],
        [*view, page.upload],
        **quiet,
    )
    picked = page.examples.click(take_example, page.threshold, [*view, page.text], **quiet)
    found = picked.then(handlers.find, **asks)
    # not "once": a choice made while a model runs would be dropped
    asks["trigger_mode"] = "always_last"
    asked = gr.on([page.find.click, page.text.submit], handlers.find, **asks)
    for done in (found, asked):
        done.then(None, js="actions.showStage")
    gr.on([page.name.input, page.other.input], handlers.find_again, **asks)
    # release: the button that resets a slider is no input; change comes when the page opens too
    gr.on(
        [page.threshold.input, page.threshold.release],
        render_stage,
        [page.shown, page.threshold],
        page.stage,
        trigger_mode="always_last",
        **quiet,
    )
    gr.on([page.opacity.input, page.opacity.release], None, page.opacity, js="actions.setOpacity")
    threshold = [page.shown, page.threshold]
    for button, inputs in (page.masks, threshold), (page.overlays, [*threshold, page.opacity]):
        made = button.click(handlers.download, inputs, [page.file, page.problem], **quiet)
        made.then(None, page.file, js="actions.save")


def _head(handlers: Handlers) -> str:
    predictors = list(handlers.predictors.values())
    backbones = sorted({one.segmenter.backbone["name"] or "CLIP" for one in predictors})
    what = "1 adapter" if len(predictors) == 1 else f"{len(predictors)} adapters"
    models = f"{what} on a frozen {' and a frozen '.join(backbones)}, on {predictors[0].device}"
    return Markup("<h1>{}</h1><p>{}</p>").format(TITLE, models)
