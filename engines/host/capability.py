"""What an environment can do or lacks: the type, and the runtimes that need no CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.errors import BackendError
from engines.packages import install_command

RUN_ON_GPU = "run on a GPU through {}"


@dataclass(frozen=True)
class Capability:
    """Something that this environment can do, or why it cannot."""

    what: str
    usable: bool
    reason: str
    """What the capability rests on, or what is missing."""
    fix: str | None = None
    """The command that brings the capability; None where it is there, or where no command helps."""


def through_openvino(versions: Mapping[str, str | None]) -> Capability:
    """Whether bundles can run through OpenVINO, and on which devices."""
    from engines.backends.openvino.library import import_openvino, translated

    what, fix = "run bundles through OpenVINO", install_command("openvino")
    if not versions.get("openvino"):
        return Capability(what, False, "openvino is not installed", fix)
    try:
        openvino = import_openvino()
    except BackendError as error:
        return Capability(what, False, str(error), fix)
    try:
        devices = openvino.Core().available_devices
    except Exception as error:
        return Capability(what, False, str(translated(error, "starting")))
    return Capability(what, True, f"openvino {versions['openvino']} on {', '.join(devices)}")


def through_webgpu(available: Sequence[str]) -> Capability:
    """Whether ONNX Runtime's WebGPU plugin is here and finds a GPU of any maker."""
    from engines.backends.onnxruntime import import_onnxruntime
    from engines.backends.onnxruntime.library import PLUGINS
    from engines.backends.onnxruntime.providers import VULKAN, check_provider, devices_of, installed

    what = RUN_ON_GPU.format("WebGPU")
    if not available or not installed("webgpu", available):
        missing = "no ONNX Runtime and no plugin for it" if not available else "its plugin is not installed"
        return Capability(what, False, missing, PLUGINS["webgpu"].install)
    try:
        ort = import_onnxruntime()
        check_provider(ort, "webgpu")
        found = devices_of(ort, "webgpu")
    except BackendError as error:
        return Capability(what, False, str(error))
    return Capability(what, bool(found), f"{len(found)} found" if found else f"no GPU was found; {VULKAN}")
