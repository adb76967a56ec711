"""Runtimes that can drive a bundle; `create` picks one by name."""

from __future__ import annotations

from engines.backends.base import Backend, Buffer, Call, Engine
from engines.errors import BackendError

BACKENDS = ("onnxruntime",)


def create(name: str, *, provider: str = "cpu", threads: int | None = None) -> Backend:
    """A configured backend. Raises `BackendError` where it is unknown or not installed."""
    if name == "onnxruntime":
        from engines.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(provider, threads)
    raise BackendError(f"unknown backend {name!r}; this version has: {', '.join(BACKENDS)}")


__all__ = ["BACKENDS", "Backend", "Buffer", "Call", "Engine", "create"]
