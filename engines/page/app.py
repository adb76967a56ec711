"""The page as an application of its own, which a server puts beside its API.

It asks no other host for anything: gradio brings its scripts and fonts, and its statistics are off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from engines.errors import UsageError
from engines.page.without_stubs import import_quickly
from engines.serve.models import Models

KEPT = 3600.0
"""Seconds for which what browsers upload and are shown is kept."""


async def _refuse(url: str, *_: Any) -> str:
    """In place of what fetches an address that a browser names instead of a file."""
    raise UsageError(f"this server fetches nothing: upload the file itself, not {url!r:.60}")


def make_page(models: Models, *, folder: str, seconds: float, body_bytes: int) -> FastAPI:
    """The page of these models; the first call imports gradio, which takes seconds.

    Args:
        models: of the server.
        folder: where what browsers upload and are shown lies; whoever made it removes it.
        seconds: what drawing may take, waiting counted.
        body_bytes: the largest file that may be uploaded.

    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when it is imported
    import_quickly()
    import gradio as gr

    from engines.page.artist import Artist
    from engines.page.layout import CSS, blocks_of, theme
    from engines.page.shelf import Shelf

    gr.processing_utils.async_ssrf_protected_download = _refuse
    shelf = Shelf(Path(folder), KEPT)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(shelf.sweep())
        try:
            yield
        finally:
            sweeper.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks_of(Artist(models, seconds, shelf)),
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
