"""A server in this process, for `var-export serve` and `var-run --ui`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from engines.cli.common import needs_packages, tell

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
        from engines.serve.server import listen, run
    if page:
        _check_page()
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s")
    for name in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    metrics, allowed = Metrics(), ServerSettings(**settings)
    served = Models(bundles, count=metrics.counting, **models)
    names = ", ".join(model.name for model in served)

    def make() -> Any:
        from engines.page.app import make_page  # which takes seconds to import: the API answers meanwhile

        return make_page(served, seconds=allowed.seconds, body_bytes=allowed.body_bytes)

    def started(address: str) -> None:
        tell(f"serving {names} on {address}/v1" + (f", and a page on {address}" if page else ""))
        if browser:
            import webbrowser

            if not webbrowser.open(address):
                tell(f"no browser could be started: open {address} in one")

    beside = WithPage(make) if page else None
    stopping = beside.stop if beside else lambda: None
    app = create_app(served, metrics, allowed, beside)
    with listen(host, port) as sock:
        run(app, sock, started, seconds=allowed.seconds + _LAST, stopping=stopping)


def _check_page() -> None:
    """Raise `BackendError` where the page's package is missing: it is imported later, in a thread."""
    import importlib.util

    with needs_packages("the page (or --no-page)", "serve", _PACKAGES):
        if importlib.util.find_spec("gradio") is None:
            raise ImportError("No module named 'gradio'", name="gradio")
