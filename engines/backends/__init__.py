"""Runtimes that can drive a bundle; `create` makes one by name, `for_bundle` the one that suits a bundle here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from engines.backends.base import Backend, Buffer, Call, Engine, check_threads
from engines.errors import BackendError
from engines.spec.choices import BACKENDS, ONNXRUNTIME, OPENVINO, OPENVINO_DEVICES, PLAN_TARGETS, Device

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from engines.bundle.bundle import Bundle

log = logging.getLogger(__name__)


class RuntimeOptions(TypedDict, total=False):
    """How a backend computes, as keywords of `create`, `for_bundle` and `Pipeline.load`."""

    provider: str
    """What ONNX Runtime computes on, and never anything else; the CPU by default."""
    threads: int | None
    """How many threads each operator has on the CPU, in ONNX Runtime and OpenVINO; all physical cores by default."""
    device: Device | None
    """Which GPU, as CUDA counts them from 0; for OpenVINO a name, such as those of `engines.spec.choices`."""
    precision_hint: str | None
    """What OpenVINO computes floating point in: one of `engines.spec.choices.PRECISION_HINTS`; f32 by default, and bf16
    for INT8 bundles on a CPU that has it."""


def check_options(name: str, **options: Unpack[RuntimeOptions]) -> None:
    """Raise `BackendError` where a backend, one of `engines.spec.choices.BACKENDS`, has not what options ask for."""
    _check_names(options)
    provider, device = options.get("provider", "cpu"), options.get("device")
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; this version has: {', '.join(BACKENDS)}")
    if name == OPENVINO:
        if provider != "cpu":
            raise BackendError(f"provider {provider} is one of ONNX Runtime's: OpenVINO takes a device, such as GPU")
        if device is not None and not isinstance(device, str):
            raise BackendError(f"devices of OpenVINO have names: {', '.join(OPENVINO_DEVICES)} or GPU.1, not {device}")
        return
    if (hint := options.get("precision_hint")) is not None:
        raise BackendError(
            f"precision hint {hint} is for OpenVINO, not for {name}, which computes in the bundle's precision"
        )
    if isinstance(device, str):
        raise BackendError(f"device {device} is a name of OpenVINO's, and {name} counts them from 0: take {OPENVINO}")


def create(name: str, **options: Unpack[RuntimeOptions]) -> Backend:
    """A configured backend; `name` is one of `engines.spec.choices.BACKENDS`.

    Raises `BackendError` where it is unknown or not installed, or there is no such device.
    """
    check_options(name, **options)
    threads, device = options.get("threads"), options.get("device")
    if name == OPENVINO:
        from engines.backends.openvino import OpenVinoBackend

        named = OPENVINO_DEVICES[0] if device is None else str(device).upper()
        return OpenVinoBackend(named, threads, hint=options.get("precision_hint"))
    number = int(device or 0)
    if name == ONNXRUNTIME:
        from engines.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(options.get("provider", "cpu"), threads, device=number)
    from engines.backends.tensorrt.runner import TensorRTBackend

    return TensorRTBackend(name, device=number)


def asked_for(**options: Unpack[RuntimeOptions]) -> str | None:
    """The backend that options ask for which no other has; None where they suit several."""
    _check_names(options)
    if isinstance(options.get("device"), str) or options.get("precision_hint") is not None:
        return OPENVINO
    return ONNXRUNTIME if options.get("provider", "cpu") != "cpu" else None


def _check_names(options: RuntimeOptions) -> None:
    """Raise `TypeError` on a keyword that is none, which Python does not see where they are taken as a mapping."""
    unknown = set(options) - set(RuntimeOptions.__annotations__)
    if unknown:
        raise TypeError(
            f"{min(unknown)} is no option of a backend: they are {', '.join(RuntimeOptions.__annotations__)}"
        )


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
    check_threads(options.get("threads"))  # before a runtime that is missing, which it would be taken for
    named = backend or asked_for(**options)
    if named is not None:
        return create(named, **options)
    problems = []
    for target in dict.fromkeys(plans.built_on.target for plans in reversed(bundle.plans)):
        try:
            found = create(target, device=options.get("device"))
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


__all__ = [
    "Backend",
    "Buffer",
    "Call",
    "Engine",
    "RuntimeOptions",
    "asked_for",
    "check_options",
    "create",
    "for_bundle",
]
