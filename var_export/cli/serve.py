"""`var-export serve`: bundles behind an HTTP API that OpenAI's clients speak."""

from __future__ import annotations

import re
from pathlib import Path

import click

from engines.cli.common import POSITIVE, Runtime, check_option, runtime_options
from engines.cli.serving import LOCAL, start
from engines.errors import UsageError
from engines.foreign import read_bytes, reading
from var_export.cli.common import CHECKPOINT, FILE

_ORIGIN = re.compile(r"https?://[^/\s]+")
_KEY_BYTES, _LEAST_KEY = 4096, 8


@click.command()
@click.argument("bundles", nargs=-1, type=CHECKPOINT, metavar="[BUNDLE]...")
@click.option("--host", default="127.0.0.1", help="Address to listen on; others than this machine's need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 is any that is free.")
@click.option("--api-key-file", type=FILE, metavar="FILE", help="Holds the key that clients must send.")
@click.option("--insecure", is_flag=True, help="Listen on other addresses without a key.")
@click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="Web pages that may call it; repeatable.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Names to be called by, beside this machine's.")
@click.option("--page/--no-page", default=True, help="A page for a browser beside the API.")
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
    page: bool,
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
    the model: a label, an index or none. At / is a page for a browser. Ctrl-C finishes what runs.
    """
    key = None if api_key_file is None else _key(api_key_file)
    if host not in LOCAL and key is None and not insecure:
        raise UsageError(
            f"anybody who reaches {host} could draw: give --api-key-file FILE, or --insecure where that is meant"
        )
    for origin in allow_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--allow-origin is https://NAME, http://NAME:PORT or *, not {origin!r:.80}")
    start(
        bundles,
        host=host,
        port=port,
        page=page,
        verbose=verbose,
        models={
            "max_batch": max_batch,
            "queue": queue_size,
            "keep": keep,
            "budget": None if memory is None else round(memory * 2**30),
            "check": check,
            "runtime": vars(runtime),
        },
        settings={
            "seconds": timeout,
            "body_bytes": round(max_body * 2**20),
            "key": key,
            "origins": allow_origin,
            "hosts": (*LOCAL, *allow_host) if host in LOCAL or allow_host else (),
        },
    )


def _key(file: Path) -> str:
    """Raises `UsageError` where the file holds no key."""
    with reading(file, "file with a key"):
        key = read_bytes(file, _KEY_BYTES).decode("ascii").strip()
    if len(key) < _LEAST_KEY or not key.isprintable() or " " in key:
        raise UsageError(f"{file} holds no key: one line of {_LEAST_KEY} letters or more")
    return key
