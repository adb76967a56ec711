"""`var-export serve`: bundles behind an HTTP API that OpenAI's clients speak."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import click

from engines.cli.common import POSITIVE, Runtime, check_option, runtime_options, tell
from engines.errors import UsageError
from engines.foreign import read_bytes, reading
from var_export.cli.common import CHECKPOINT, FILE, SERVE_PACKAGES, needs_export_packages

_ORIGIN = re.compile(r"https?://[^/\s]+")
_KEY_BYTES, _LEAST_KEY = 4096, 8
_LAST = 5
"""Seconds that a stop waits beyond what a request may take."""
_LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("bundles", nargs=-1, type=CHECKPOINT, metavar="[BUNDLE]...")
@click.option("--host", default="127.0.0.1", help="Address to listen on; others than this machine's need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 is any that is free.")
@click.option("--api-key-file", type=FILE, metavar="FILE", help="Holds the key that clients must send.")
@click.option("--insecure", is_flag=True, help="Listen on other addresses without a key.")
@click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="Web pages that may call it; repeatable.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Names to be called by, beside this machine's.")
@click.option("--max-batch", type=POSITIVE, default=8, help="Images at once, at most.")
@click.option("--queue-size", type=POSITIVE, default=64, help="Images that wait for one model, at most.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=120, metavar="SECONDS", help="For waiting and drawing."
)
@click.option(
    "--keep", type=click.FloatRange(min=0.1), default=600, metavar="SECONDS", help="Unload a model unused for so long."
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0.1),
    metavar="GIB",
    help="Of all loaded models, estimated. [default: no limit]",
)
@click.option("--max-body", type=click.FloatRange(min=0.001), default=32, metavar="MIB", help="Largest request.")
@runtime_options
@check_option
@click.option("--verbose", "-v", is_flag=True, help="A line for each request.")
def serve(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    insecure: bool,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
    max_batch: int,
    queue_size: int,
    timeout: float,
    keep: float,
    memory: float | None,
    max_body: float,
    runtime: Runtime,
    check: str,
    verbose: bool,
) -> None:
    """Serve BUNDLEs over HTTP: the newest in bundles/, else the embedded demo, where none is named.

    The API is OpenAI's for images, under /v1: any of its clients generates, edits and streams. A prompt is a class of
    the model: a label, an index or none. Ctrl-C finishes what runs.
    """
    with needs_export_packages("serving", "serve", SERVE_PACKAGES):
        import python_multipart  # noqa: F401 (which Starlette asks for when a form comes)

        from engines.serve.app import ServerSettings, create_app
        from engines.serve.metrics import Metrics
        from engines.serve.models import Models
        from engines.serve.server import listen, run
    key = None if api_key_file is None else _key(api_key_file)
    if host not in _LOCAL and key is None and not insecure:
        raise UsageError(
            f"anybody who reaches {host} could draw: give --api-key-file FILE, or --insecure where that is meant"
        )
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    metrics = Metrics()
    models = Models(
        bundles,
        count=metrics.counting,
        max_batch=max_batch,
        queue=queue_size,
        keep=keep,
        budget=None if memory is None else round(memory * 2**30),
        check=check,
        runtime=vars(runtime),
    )
    hosts = (*_LOCAL, *allow_host) if host in _LOCAL or allow_host else ()
    for origin in allow_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--allow-origin is https://NAME, http://NAME:PORT or *, not {origin!r:.80}")
    settings = ServerSettings(
        seconds=timeout, body_bytes=round(max_body * 2**20), key=key, origins=allow_origin, hosts=hosts
    )
    names = ", ".join(model.name for model in models)
    with listen(host, port) as sock:
        run(
            create_app(models, metrics, settings),
            sock,
            lambda address: tell(f"serving {names} on {address}/v1"),
            seconds=timeout + _LAST,
        )


def _key(file: Path) -> str:
    """Raises `UsageError` where the file holds no key."""
    with reading(file, "file with a key"):
        key = read_bytes(file, _KEY_BYTES).decode("ascii").strip()
    if len(key) < _LEAST_KEY or not key.isprintable() or " " in key:
        raise UsageError(f"{file} holds no key: one line of {_LEAST_KEY} letters or more")
    return key
