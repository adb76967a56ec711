"""Runtimes that can drive a bundle; `create` makes one by name, `for_bundle` the one that suits a bundle here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from engines.backends.base import Backend, Buffer, Call, Engine
from engines.errors import BackendError
from engines.spec.choices import BACKENDS, ONNXRUNTIME, OPENVINO, OPENVINO_DEVICES, PLAN_TARGETS, Device

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

log = logging.getLogger(__name__)


def create(name: str, *, provider: str = "cpu", threads: int | None = None, device: Device = 0) -> Backend:
    """A configured backend.

    Args:
        name: one of `engines.spec.choices.BACKENDS`.
        provider: of ONNX Runtime: what it computes on.
        threads: of the CPU, for ONNX Runtime and OpenVINO.
        device: which GPU, as CUDA counts them; of OpenVINO, a name such as `engines.spec.choices.OPENVINO_DEVICES`.

    Raises `BackendError` where it is unknown or not installed, or there is no such device.

    """
    if name == OPENVINO:
        from engines.backends.openvino import OpenVinoBackend

        if provider != "cpu":
            raise BackendError(f"provider {provider} is one of ONNX Runtime's: OpenVINO takes a device, such as GPU")
        if device and not isinstance(device, str):
            raise BackendError(f"devices of OpenVINO have names: {', '.join(OPENVINO_DEVICES)} or GPU.1, not {device}")
        return OpenVinoBackend(str(device or OPENVINO_DEVICES[0]), threads)
    if isinstance(device, str):
        raise BackendError(f"device {device} is a name of OpenVINO's, and {name} counts them from 0: take {OPENVINO}")
    if name == ONNXRUNTIME:
        from engines.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(provider, threads, device=device)
    if name in PLAN_TARGETS:
        from engines.backends.tensorrt.runner import TensorRTBackend

        return TensorRTBackend(name, device=device)
    raise BackendError(f"unknown backend {name!r}; this version has: {', '.join(BACKENDS)}")


def for_bundle(
    bundle: Bundle,
    backend: str | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    device: Device = 0,
    tell: Callable[[str], None] | None = None,
) -> Backend:
    """The backend to run `bundle` with: the named one, or that of its newest plans that fit here, or ONNX Runtime.

    Args: as `create`, but that a `backend` which is named is taken and never another, and a `provider` other than `cpu`
    chooses ONNX Runtime; tell: called with a line where there are plans and they cannot run here, which is
    logged by default.

    Raises `BackendError`, `BundleError`.
    """
    if backend is not None or provider != "cpu":
        return create(backend or ONNXRUNTIME, provider=provider, threads=threads, device=device)
    problems = []
    for target in dict.fromkeys(plans.built_on.target for plans in reversed(bundle.plans)):
        try:
            found = create(target, device=device)
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
        found = create(ONNXRUNTIME, provider=provider, threads=threads)
    except BackendError as error:
        if problems:
            raise BackendError(f"{unfit}, and {error}") from error
        raise BackendError(f"{error}; or, for a GPU: var-export build {bundle.path} --target tensorrt") from error
    if problems:
        (tell or log.warning)(f"{unfit}: running ONNX Runtime on the CPU")
    return found


__all__ = ["Backend", "Buffer", "Call", "Engine", "create", "for_bundle"]
