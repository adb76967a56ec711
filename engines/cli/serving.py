"""A server in this process, for `var-export serve` and `var-run --ui`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from engines.cli.common import needs_packages, tell
from engines.errors import BackendError
from engines.words import one_line

LOCAL = ("127.0.0.1", "localhost", "::1")
"""What this machine is called by itself."""
_PACKAGES = ("fastapi", "uvicorn", "starlette", "pydantic", "python_multipart", "prometheus_client", "gradio")
_LAST = 5
"""Seconds that a stop waits beyond what a request may take."""


def start(
    bundles: Sequence[str],
    *,
    host: str = LOCAL[0],
    port: int = 0,
    page: bool = True,
    browser: bool = False,
    verbose: bool = False,
    models: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        bundles: as of `engines.serve.models.Models`.
        host: where to listen.
        port: 0 is any that is free.
        page: whether there is a page beside the API.
        browser: whether to show the page in this machine's browser.
        verbose: whether each request has a line in the log.
        models: keywords of `engines.serve.models.Models`.
        settings: keywords of `engines.serve.app.ServerSettings`.

    Raises `BackendError` where a package is missing, `BundleError`, and `UsageError` where it cannot listen there.

    """
    with needs_packages("serving", "serve", _PACKAGES):
        import python_multipart  # noqa: F401 (which Starlette asks for when a form comes)

        from engines.serve.app import ServerSettings, create_app
        from engines.serve.metrics import Metrics
        from engines.serve.models import Models
        from engines.serve.page import WithPage
        from engines.serve.server import address_of, listen, run
    if page:
        _check_page()
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s")
    for name in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    metrics, allowed = Metrics(), ServerSettings(**settings)
    served = Models(bundles, count=metrics.counting, **models)
    names = ", ".join(model.name for model in served)

    failed: list[BaseException] = []
    with contextlib.ExitStack() as opened:
        sock = opened.enter_context(listen(host, port))
        address = address_of(sock)

        def ready(error: BaseException | None) -> None:
            tell(f"the page is on {address}" if error is None else f"the page cannot be shown: {one_line(error)}")
            if browser and error is None:
                threading.Thread(target=_open, args=(address,), daemon=True).start()  # some return when they end
            elif browser and error is not None:
                failed.append(error)
                os.kill(os.getpid(), signal.SIGTERM)

        beside = None
        if page:
            folder = os.path.realpath(opened.enter_context(tempfile.TemporaryDirectory(prefix="var-export-page-")))

            def make() -> Any:
                from engines.page.app import make_page  # which takes seconds to import: the API answers meanwhile

                return make_page(served, folder=folder, seconds=allowed.seconds, body_bytes=allowed.body_bytes)

            beside = WithPage(make, folder, ready)
        app = create_app(served, metrics, allowed, beside)
        stopping = beside.stop if beside else lambda: None
        run(
            app,
            sock,
            lambda where: tell(f"serving {names} on {where}/v1"),
            seconds=allowed.seconds + _LAST,
            stopping=stopping,
        )
    if failed:
        raise BackendError("there is no page to show; var-export serve --no-page has the API alone") from failed[0]


def _open(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        tell(f"no browser could be started: open {address} in one")


def _check_page() -> None:
    """Raise `BackendError` where the page's package is missing: it is imported later, in a thread."""
    import importlib.util

    with needs_packages("the page (or --no-page)", "serve", _PACKAGES):
        if importlib.util.find_spec("gradio") is None:
            raise ImportError("No module named 'gradio'", name="gradio")
