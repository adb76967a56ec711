"""Runtimes that can drive a bundle; `create` makes one by name, `for_bundle` the one that suits a bundle here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from engines.backends.base import Backend, Buffer, Call, Engine
from engines.errors import BackendError
from engines.spec.choices import BACKENDS, ONNXRUNTIME, OPENVINO, OPENVINO_DEVICES, PLAN_TARGETS, Device

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from engines.bundle.bundle import Bundle

log = logging.getLogger(__name__)


class RuntimeOptions(TypedDict, total=False):
    """How a backend computes, as keywords of `create`, `for_bundle` and `Pipeline.load`."""

    provider: str
    """Of ONNX Runtime: what it computes on, and never anything else; the CPU by default."""
    threads: int | None
    """Of each operator on the CPU, for ONNX Runtime and OpenVINO; all physical cores by default."""
    device: Device
    """Which GPU, as CUDA counts them; of OpenVINO, a name such as `engines.spec.choices.OPENVINO_DEVICES`."""
    precision_hint: str | None
    """Of OpenVINO: one of `engines.spec.choices.PRECISION_HINTS`, and never another; f32 by default."""


def create(name: str, **options: Unpack[RuntimeOptions]) -> Backend:
    """A configured backend; `name` is one of `engines.spec.choices.BACKENDS`.

    Raises `BackendError` where it is unknown or not installed, or there is no such device.
    """
    provider, threads = options.get("provider", "cpu"), options.get("threads")
    device, hint = options.get("device", 0), options.get("precision_hint")
    if name == OPENVINO:
        from engines.backends.openvino import OpenVinoBackend

        if provider != "cpu":
            raise BackendError(f"provider {provider} is one of ONNX Runtime's: OpenVINO takes a device, such as GPU")
        if device and not isinstance(device, str):
            raise BackendError(f"devices of OpenVINO have names: {', '.join(OPENVINO_DEVICES)} or GPU.1, not {device}")
        return OpenVinoBackend(str(device or OPENVINO_DEVICES[0]), threads, hint=hint)
    if hint is not None:
        raise BackendError(
            f"a precision hint is for OpenVINO, not for {name}, which computes in the bundle's precision"
        )
    if isinstance(device, str):
        raise BackendError(f"device {device} is a name of OpenVINO's, and {name} counts them from 0: take {OPENVINO}")
    if name == ONNXRUNTIME:
        from engines.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(provider, threads, device=device)
    if name in PLAN_TARGETS:
        from engines.backends.tensorrt.runner import TensorRTBackend

        return TensorRTBackend(name, device=device)
    raise BackendError(f"unknown backend {name!r}; this version has: {', '.join(BACKENDS)}")


def asked_for(**options: Unpack[RuntimeOptions]) -> str | None:
    """The backend that options ask for which no other has; None where they suit several."""
    if isinstance(options.get("device"), str) or options.get("precision_hint") is not None:
        return OPENVINO
    return ONNXRUNTIME if options.get("provider", "cpu") != "cpu" else None


def for_bundle(
    bundle: Bundle,
    backend: str | None = None,
    *,
    tell: Callable[[str], None] | None = None,
    **options: Unpack[RuntimeOptions],
) -> Backend:
    """The backend to run `bundle` with: the named one, or that of its newest plans that fit here, or one for the CPU.

    That is ONNX Runtime, or OpenVINO where only this is installed.

    Args: as `create`, but that a `backend` which is named is taken and never another, and options that only one has
    choose it; tell: called with a line where there are plans and they cannot run here, which is logged by default.

    Raises `BackendError`, `BundleError`.
    """
    named = backend or asked_for(**options)
    if named is not None:
        return create(named, **options)
    problems = []
    for target in dict.fromkeys(plans.built_on.target for plans in reversed(bundle.plans)):
        try:
            found = create(target, device=options.get("device", 0))
        except BackendError as error:
            problems.append(str(error))
            continue
        problem = found.lacks(bundle)
        if problem is None:
            return found
        found.close()
        problems.append(problem)
    unfit = f"not using the plans of {bundle.path} ({'; '.join(problems)})"
    try:
        found = _on_cpu(options.get("threads"))
    except BackendError as error:
        if problems:
            raise BackendError(f"{unfit}, and {error}") from error
        raise BackendError(f"{error}; or, for a GPU: var-export build {bundle.path} --target tensorrt") from error
    if problems:
        (tell or log.warning)(f"{unfit}: running {'OpenVINO' if found.name == OPENVINO else 'ONNX Runtime'} on the CPU")
    return found


def _on_cpu(threads: int | None) -> Backend:
    """ONNX Runtime; where there is none, OpenVINO. Raises `BackendError` that tells how to get the first."""
    try:
        return create(ONNXRUNTIME, threads=threads)
    except BackendError as error:
        try:
            return create(OPENVINO, threads=threads)
        except BackendError:
            raise error from None


__all__ = ["Backend", "Buffer", "Call", "Engine", "RuntimeOptions", "asked_for", "create", "for_bundle"]
