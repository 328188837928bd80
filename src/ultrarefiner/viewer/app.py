"""The viewer's page: nothing of it comes from, or goes to, another machine.

The one module that needs Gradio when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ultrarefiner.errors import UltraRefinerError
from ultrarefiner.viewer.drawing import COLOURS, drawing, facts, image_address
from ultrarefiner.viewer.session import Looked, Viewer

ADDRESS = "127.0.0.1"
_HERE = Path(__file__).parent
_LESION, _BACKGROUND = "lesion", "background"
_KEPT_SECONDS = 3600
"""How long uploaded files are kept; an open image needs its file only for another frame."""
# Where scripts, styles and answers may come from: this very server.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'"
)
_TEMPLATE = """
{{#if image}}
<svg viewBox="-0.5 -0.5 {{width}} {{height}}" data-width="{{width}}" data-height="{{height}}"
     {{#if open}}data-open{{/if}} role="img" aria-label="Image with the outlines of its masks">
  <image href="{{image}}" x="-0.5" y="-0.5" width="{{width}}" height="{{height}}"></image>
  <g>${value}</g>
</svg>
{{else}}
<p class="empty">Drop an image here</p>
{{/if}}
"""


def build_page(viewer: Viewer) -> gr.Blocks:
    """Return the page; ``serve_page`` shows it."""
    bundle = viewer.predictor.bundle
    # One thing at a time, in the order of the clicks, none of them dropped.
    alone = {
        "concurrency_limit": 1,
        "concurrency_id": "models",
        "trigger_mode": "multiple",
        "api_visibility": "private",
    }
    with gr.Blocks(
        title="UltraRefiner viewer",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS),
    ) as page:
        looked = gr.State(None)
        with gr.Row(elem_id="work"):
            canvas = gr.HTML(
                "",
                html_template=_TEMPLATE,
                js_on_load=(_HERE / "canvas.js").read_text(encoding="utf-8"),
                elem_id="canvas",
                apply_default_css=False,
                **_nothing(),
            )
            with gr.Column(elem_id="side"):
                gr.HTML(
                    f"<h1>{escape(bundle.method)}</h1><p>trained on {escape(bundle.trainset)}</p>",
                    elem_id="head",
                )
                file = gr.UploadButton("Open an image …", variant="primary", elem_id="file")
                frame = gr.Slider(
                    1, 2, 1, step=1, label="Image of the file", visible=False, elem_id="frame"
                )
                with gr.Column(visible=not viewer.closed, elem_id="tools"):
                    marks = gr.Radio(
                        [_LESION, _BACKGROUND],
                        value=_LESION,
                        label="A click marks",
                        info="Drag a box around the lesion, or click. Shift + click marks the other.",
                        elem_id="marks",
                    )
                    with gr.Row():
                        undo = gr.Button("Undo", size="sm", elem_id="undo", min_width=60)
                        clear = gr.Button("Start over", size="sm", elem_id="clear", min_width=60)
                said = gr.HTML(
                    facts(None, closed=viewer.closed), elem_id="facts", apply_default_css=False
                )
                gr.HTML("For research. Not a medical device.", elem_id="foot")
        shown = [looked, canvas, said]

        def opened(path: str | None, number: int = 1) -> list[Any]:
            if path is None:
                return [None, gr.HTML("", **_nothing()), facts(None, closed=viewer.closed)]
            try:
                one = viewer.open(path, number - 1)
            except UltraRefinerError as error:
                return [None, gr.HTML("", **_nothing()), facts(None, str(error), viewer.closed)]
            return [
                one,
                gr.HTML(drawing(one), **_image(one, viewer)),
                facts(one, closed=viewer.closed),
            ]

        def opened_first(path: str | None) -> list[Any]:
            answer = opened(path)
            count = answer[0].frames if answer[0] else 1
            return [*answer, gr.Slider(1, max(count, 2), 1, visible=count > 1)]

        def drawn(one: Looked | None, mark: str, event: gr.EventData) -> list[Any]:
            data = event._data
            if "box" in data:
                return _asked(viewer, one, partial(viewer.draw_box, box=tuple(data["box"])))
            lesion = (mark == _LESION) != bool(data["other"])
            x, y = data["point"]
            return _asked(viewer, one, partial(viewer.click, x=x, y=y, lesion=lesion))

        file.upload(opened_first, file, [*shown, frame], show_progress_on=canvas, **alone)
        # While the slider moves, only where it is last counts.
        frame.input(
            opened,
            [file, frame],
            shown,
            show_progress_on=canvas,
            **{**alone, "trigger_mode": "always_last"},
        )
        canvas.draw(drawn, [looked, marks], shown, show_progress="hidden", **alone)
        for button, action in ((undo, viewer.undo), (clear, viewer.clear)):
            button.click(
                lambda one, action=action: _asked(viewer, one, action),
                looked,
                shown,
                show_progress="hidden",
                **alone,
            )
    return page


def _nothing() -> dict[str, Any]:
    """Return the canvas's properties where there is no image."""
    return {"image": "", "width": 0, "height": 0, "open": False}


def _image(one: Looked, viewer: Viewer) -> dict[str, Any]:
    """Return the canvas's properties of an image."""
    height, width = one.mask.shape
    address = image_address(one.pixels.image)
    return {"image": address, "width": width, "height": height, "open": not viewer.closed}


def _asked(viewer: Viewer, one: Looked | None, ask: Callable[[Looked], Looked]) -> list[Any]:
    """Return image, drawing and facts after a prompt; after a bad one they stay, with the reason."""
    if one is None:
        return [None, "", facts(None, closed=viewer.closed)]
    try:
        one = ask(one)
    except UltraRefinerError as error:
        return [one, drawing(one), facts(one, str(error), viewer.closed)]
    return [one, drawing(one), facts(one, closed=viewer.closed)]


def serve_page(page: gr.Blocks, port: int | None = None, browser: bool = False) -> str:
    """Serve a page to this machine alone, in the background.

    Args:
        page: What ``build_page`` made; its ``close`` ends the server.
        port: Port; None: the first free one from 7860 on.
        browser: Open it in the browser.

    Returns:
        Its address.

    Raises:
        OSError: The port is taken.
    """
    colours = "".join(f"--{name}: {value};" for name, value in COLOURS.items())
    _, address, _ = page.launch(
        server_name=ADDRESS,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
        css=f":root {{{colours}}}\n{(_HERE / 'page.css').read_text(encoding='utf-8')}",
        app_kwargs={"middleware": [Middleware(_StayHere)]},
    )
    return address


class _StayHere:
    """Tells the browser, with every answer, to talk to no other machine."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)
