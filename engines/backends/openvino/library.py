"""The module openvino: found, without its telemetry, and its errors as ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from engines.errors import BackendError, OutOfMemoryError
from engines.packages import install_command

TELEMETRY = "openvino_telemetry"
"""The package that openvino asks, when it is imported, to send an event to Google Analytics and to keep an identity of
the user below HOME; its own tool to opt out comes with it. Where it cannot be imported, openvino goes without."""
_NO_MEMORY = ("bad_alloc", "out of memory", "failed to allocate")


def import_openvino() -> Any:
    """The module openvino, without its telemetry unless the application imported either before.

    The one place that imports it. Raises `BackendError` where none is installed.
    """
    try:
        with _without(TELEMETRY):
            import openvino
            import openvino.opset13
    except ImportError as error:
        raise BackendError(f"no OpenVINO is installed ({error}); {install_command('openvino')}") from error
    return openvino


def version_of(openvino: Any) -> str:
    """The version of an installed openvino, without what it says of its build: `2026.4.1`."""
    return str(openvino.__version__).partition("-")[0]


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """While it lasts, a package that was not imported yet cannot be."""
    known = package in sys.modules
    if not known:
        sys.modules[package] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        if not known:
            del sys.modules[package]


def translated(error: Exception, doing: str) -> BackendError:
    """What OpenVINO throws, as one line of ours."""
    text = " ".join(line for line in str(error).split("\n") if line and not line.startswith("Exception from"))
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in _NO_MEMORY):
        return OutOfMemoryError(f"out of memory while {doing}; lower the batch size ({text[:200]})")
    return BackendError(f"OpenVINO failed while {doing}: {text[:400]}")
