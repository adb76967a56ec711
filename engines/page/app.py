"""The page as an application of its own, which a server puts beside its API.

It asks no other host for anything: gradio brings its scripts and fonts, and its statistics are off.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI

from engines.page.without_stubs import import_quickly
from engines.serve.models import Models


def make_page(models: Models, *, seconds: float, body_bytes: int) -> FastAPI:
    """The page of these models; the first call imports gradio, which takes seconds.

    Args:
        models: of the server.
        seconds: what drawing may take, waiting counted.
        body_bytes: the largest file that may be uploaded.

    What browsers upload and are shown lies in a temporary folder, which goes when the application ends.
    """
    folder = tempfile.TemporaryDirectory(prefix="var-export-page-")
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder.name}  # read when it is imported
    import_quickly()
    import gradio as gr

    from engines.page.artist import Artist
    from engines.page.layout import CSS, KEPT, blocks_of, theme
    from engines.page.shelf import Shelf

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            folder.cleanup()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks_of(Artist(models, seconds, Shelf(Path(folder.name), KEPT))),
        path="",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=body_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )
    return mounted
