"""Serving the page to this machine alone, from a folder that is gone afterwards."""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The browser refuses whatever is not of this page, should a library ever ask for it.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
GRACE_SECONDS = 1  # for open connections, when the server ends


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only its owner can read, for gradio's files; deleted at the end.

    To be entered before gradio is imported, which reads its place and its switches then. SIGTERM
    ends the process as Ctrl-C does, so that the folder goes in both cases.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as folder:
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        try:
            yield Path(folder)
        finally:
            signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """A socket at ``host`` and ``port`` (0: any that is free); ``ValueError`` if it is taken."""
    if not 0 <= port < 2**16:  # getaddrinfo takes it modulo that
        raise ValueError(f"--port {port} should be from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # whoever comes before the server is up waits
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--host {host} --port {port}: {reason}; choose another") from None
    return listener


def application(page: Any, appearance: dict[str, Any], host: str, most_bytes: int) -> Any:
    """The page as an ASGI application: no analytics, no sharing, no upload above ``most_bytes``.

    For the loopback address it answers to that name alone, so that no page of another site can
    reach it under a name of its own.
    """
    import gradio as gr
    from fastapi import FastAPI, Request, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def add_policy(request: Request, answer: Callable) -> Response:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        max_file_size=most_bytes,
        **appearance,
    )
    return app


def serve(app: Any, listener: socket.socket) -> None:
    """Answer until the process is told to end."""
    server(app).run(sockets=[listener])


def server(app: Any) -> Any:
    """A server of ``app`` that says nothing but warnings."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS, server_header=False
    )
    return uvicorn.Server(config)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
