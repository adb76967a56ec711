"""Runtimes that can drive a bundle; `create` makes one by name, `choose` finds the one for a bundle here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backends.base import Backend, Buffer, Call, Engine
from engines.errors import BackendError
from engines.plans import TARGETS

if TYPE_CHECKING:
    from engines.bundle import Bundle

BACKENDS = ("onnxruntime", *TARGETS)


def create(name: str, *, provider: str = "cpu", threads: int | None = None, device: int = 0) -> Backend:
    """A configured backend.

    Args:
        name: one of `BACKENDS`.
        provider: of ONNX Runtime: what it computes on.
        threads: of ONNX Runtime's CPU operators.
        device: which GPU.

    Raises `BackendError` where it is unknown or not installed, or there is no such device.

    """
    if name == "onnxruntime":
        from engines.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(provider, threads)
    if name in TARGETS:
        from engines.backends.tensorrt.runner import TensorRTBackend

        return TensorRTBackend(name, device=device)
    raise BackendError(f"unknown backend {name!r}; this version has: {', '.join(BACKENDS)}")


def choose(bundle: Bundle) -> str:
    """The backend for a bundle where the user named none: that of its newest plans, else ONNX Runtime."""
    return bundle.plans[-1].built_on.target if bundle.plans else "onnxruntime"


__all__ = ["BACKENDS", "Backend", "Buffer", "Call", "Engine", "choose", "create"]
