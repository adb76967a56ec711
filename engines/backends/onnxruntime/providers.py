"""What a session computes on: options, compiled shapes, and proof that it does.

`tensorrt` and `nv_tensorrt_rtx` compile a graph before they run it, for one range of shapes: all scales and a few
batch sizes in one profile, where our own TensorRT backend has a profile per scale. Without a range they
would start over at each new shape. `--target tensorrt` is the faster way; these are for who has ONNX Runtime already.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.backends.cuda import Cuda
from engines.backends.onnxruntime import library
from engines.backends.onnxruntime.library import PLUGINS
from engines.backends.tensorrt.options import DEFAULT_BATCH
from engines.backends.tensorrt.profiles import Range, profiles_of
from engines.bundle.manifest import WEIGHTS
from engines.errors import BackendError
from engines.storage import kernel_folder

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.bundle.held import HeldFiles

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
ON_CUDA = ("cuda", "tensorrt", "nv_tensorrt_rtx")
"""Providers whose buffers lie on a GPU that CUDA knows; those of the others lie on the host."""
COMPILING = ("tensorrt", "nv_tensorrt_rtx")
OPTION_PREFIX = {"tensorrt": "trt", "nv_tensorrt_rtx": "nv"}
VULKAN = "on Linux it needs a GPU driver with Vulkan and its loader (Debian: libvulkan1)"
NO_TF32 = ("NVIDIA_TF32_OVERRIDE", "0")

# ONNX Runtime reads the arena more than once while it makes a session, and no lock of its own keeps another from taking
# its place meanwhile: memory then went back to an arena that it was not of, and the process ended.
ARENA = threading.Lock()

# The CUDA provider leaves shape arithmetic to the CPU, where the shapes are: a few numbers, no copy from the GPU. All
# of these have CUDA kernels for every type of our graphs, so they are on the CPU for that reason alone.
SHAPE_OPERATORS = {"Shape", "Size", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Cast"}
# WebGPU has no 64-bit integers: it leaves what computes with indices of tokens to the CPU too, a few kilobytes a step.
INDEX_OPERATORS = {"Equal", "GatherElements", "Less", "Or", "Reshape", "Round", "Transpose", "Where"}
LEFT_TO_CPU = dict.fromkeys(ON_CUDA, SHAPE_OPERATORS) | {"webgpu": SHAPE_OPERATORS | INDEX_OPERATORS}


def installed(provider: str, available: Sequence[str]) -> bool:
    """Whether there is a provider: among those of ONNX Runtime's build, or as a plugin for it."""
    if PROVIDERS[provider] in available:
        return True
    return provider in PLUGINS and importlib.util.find_spec(PLUGINS[provider].module) is not None


def check_provider(ort: Any, provider: str) -> None:
    """Raise `BackendError` unless the installed ONNX Runtime has a provider and can prove that it is used."""
    available = ort.get_available_providers()
    if not installed(provider, available):
        plugins = {name: f"install it with: {plugin.install}" for name, plugin in PLUGINS.items()}
        install = {"cpu": library.INSTALL} | plugins
        raise BackendError(
            f"provider {provider!r} is not part of the installed ONNX Runtime {ort.__version__}, which has "
            f"{', '.join(available)}; {install.get(provider, library.INSTALL_GPU)}"
        )
    if provider != "cpu" and not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        newer = PLUGINS["webgpu"].install if provider == "webgpu" else library.INSTALL_NEWER
        raise BackendError(f"ONNX Runtime {ort.__version__} does not say what runs where; {newer} for {provider!r}")


def prepare(ort: Any, provider: str) -> dict[str, str]:
    """Have everything loaded that a GPU provider needs; versions of what it compiles with.

    Raises `BackendError` where a library is missing.
    """
    library.load_cuda_libraries(ort)
    if provider in COMPILING:
        # Neither provider has an option for it, and TF32 rounds what the sampler sums to 10 bits.
        os.environ.setdefault(*NO_TF32)
    version = library.load_tensorrt() if provider == "tensorrt" else None
    return {"tensorrt": version} if version else {}


def share_arena(ort: Any) -> None:
    """From now on, sessions with `save_memory` take what they compute in from one new arena.

    ONNX Runtime keeps it for the whole process until another takes its place; sessions that have the old one keep it.
    It waits for a session that another thread is making.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with ARENA:
        ort.create_and_register_allocator(memory, None)


def save_memory(options: Any) -> None:
    """Session options of the CPU: the same results and time in a third less memory (d16 INT8: 942 MiB, not 1415).

    The decoder works where the transformer worked a moment ago: 74 MiB less than with an arena for each. A memory
    pattern would, from the second run of a shape on, be one block for all tensors beside the arena of the first: 400.
    """
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False


def shape_ranges(provider: str, bundle: Bundle, graph: str) -> dict[str, Range]:
    """What a compiling provider builds a graph for, by input; empty for the others, which run any shape.

    Least and most over all scales; tuned for the last one, which has most tokens.
    """
    if provider not in COMPILING:
        return {}
    profiles = profiles_of(graph, bundle.config, bundle.tensors(graph)[0], DEFAULT_BATCH)
    return {
        name: (
            tuple(map(min, zip(*(profile[name][0] for profile in profiles), strict=True))),
            usual,
            tuple(map(max, zip(*(profile[name][2] for profile in profiles), strict=True))),
        )
        for name, (_, usual, _) in profiles[-1].items()
    }


def engine_options(
    provider: str, bundle: Bundle, graph: str, shapes: Mapping[str, Range], key: Mapping[str, Any]
) -> dict[str, str]:
    """Provider options that follow from the graph: the range of shapes, and where its engine is kept."""
    if provider not in COMPILING:
        return {}
    prefix = OPTION_PREFIX[provider]
    options = {
        f"{prefix}_profile_{end}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, ends[index]))}" for name, ends in shapes.items()
        )
        for index, end in enumerate(("min", "opt", "max"))
    }
    # ONNX Runtime finds an engine by the names in its graph: another model of the same shape would be taken for it.
    files = {name: bundle.files[name].sha256 for name in (f"{graph}.onnx", "weights.bin")}
    folder = kernel_folder(f"onnxruntime/{provider}", [files, options, dict(key), os.environ.get(NO_TF32[0])])
    if folder is None:
        return options
    if provider == "nv_tensorrt_rtx":
        return options | {"nv_runtime_cache_path": str(folder)}
    caches = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder)}  # "1" is refused
    return options | caches | {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(folder)}


def session_providers(provider: str, cuda: Cuda | None, engine: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """What to register, in order of preference.

    TensorRT leaves what it cannot take to CUDA kernels on the same GPU; nothing is left to the CPU.
    """
    if cuda is None:
        return [(PROVIDERS[provider], {})]
    shared = {
        # ONNX Runtime 1.31 warns of any device_id that it is given, "No registered plugin EP device", and goes on.
        **({"device_id": str(cuda.ordinal)} if cuda.ordinal else {}),
        "user_compute_stream": str(cuda.stream),  # one stream orders copies and kernels: nothing waits in between
    }
    if provider == "nv_tensorrt_rtx":  # the others take the address for it, and tensorrt knows no such option
        shared["has_user_compute_stream"] = "1"
    kernels = {
        **shared,
        "use_tf32": "0",  # on by default: FP32 would be rounded to 10 bits
        # The default, EXHAUSTIVE, takes what was fastest in a race: other kernels, and other rounding, in each process.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles: up to half of it is never used
    }
    if provider == "cuda":
        return [(PROVIDERS["cuda"], kernels)]
    compiled = (PROVIDERS[provider], {**shared, **engine})
    return [compiled, (PROVIDERS["cuda"], kernels)] if provider == "tensorrt" else [compiled]


def open_verified(
    ort: Any,
    path: Path,
    held: HeldFiles | None,
    options: Any,
    registered: Sequence[tuple[str, dict[str, str]]],
    provider: str,
) -> Any:
    """A session of a graph; of one of a bundle's `held` files, of the very content that was verified.

    ONNX Runtime opens the file by its name, and the weights beside it. Where something else has their names by now, and
    for links, which few versions of it follow, it is given the held content instead.

    Raises `BackendError`, `OutOfMemoryError`.
    """
    if held is None:
        return open_session(ort, path, path.name, options, registered, provider)
    names, in_memory = (path.name, WEIGHTS), hasattr(options, "add_external_initializers_from_files_in_memory")
    if held.in_place(*names) and not (in_memory and held.linked(*names)):
        session, problem = None, None
        try:
            session = open_session(ort, path, path.name, options, registered, provider)
        except BackendError as error:
            problem = error
        if held.in_place(*names):  # still: so it was what was opened
            if problem is not None:
                raise problem
            return session
    if not in_memory:
        raise BackendError(
            f"{path.parent} was replaced since it was opened, and ONNX Runtime {ort.__version__} cannot read what was "
            "there; open it again, or install onnxruntime>=1.24"
        )
    weights = held.view(WEIGHTS)
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    return open_session(ort, held.read(path.name), path.name, options, registered, provider)


def open_session(
    ort: Any,
    model: Path | bytes,
    name: str,
    options: Any,
    registered: Sequence[tuple[str, dict[str, str]]],
    provider: str,
) -> Any:
    """A session on a provider; ONNX Runtime's own way of going on with another is switched off.

    Args: model: a file, or the content of one; name: of the file, for messages; the others: see `open_verified`.

    Raises `BackendError`, `OutOfMemoryError`.
    """
    registry, settings = registered[0]
    arguments = {"providers": registered}
    try:
        if registry not in ort.get_available_providers():
            options.add_provider_for_devices([_plugin_device(ort, provider, settings)], settings)
            arguments = {}
        content = model if isinstance(model, bytes) else str(model)
        with ARENA if provider == "cpu" else contextlib.nullcontext():
            return ort.InferenceSession(content, options, enable_fallback=0, **arguments)
    except BackendError:
        raise
    except Exception as error:  # the module's exceptions share no base class but Exception
        if provider == "webgpu":
            raise webgpu_error(error, f"loading {name}") from error
        why = "" if provider == "cpu" else library.what_is_missing(ort, provider)
        raise library.translated(error, f"loading {name}", why) from error


def check_session(ort: Any, session: Any, path: Path, provider: str, cuda: Cuda | None) -> dict[str, int]:
    """Prove that a session computes on what was asked for; how many nodes each provider runs, where it is not the CPU.

    `session.disable_cpu_ep_fallback` would be the plain way, but takes shape arithmetic on the CPU for computation.
    Raises `BackendError`.
    """
    asked, active = PROVIDERS[provider], session.get_providers()
    if active[0] != asked:
        why = "" if cuda is None else library.what_is_missing(ort, provider)
        raise BackendError(f"{asked} was asked for, but ONNX Runtime runs {path.name} on {', '.join(active)}{why}")
    if provider == "cpu":
        return {}
    operators: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    if asked not in operators:
        raise BackendError(
            f"{asked} was asked for, but took nothing of {path.name}; {', '.join(operators)} would run it"
        )
    stray = set(operators.get(PROVIDERS["cpu"], ())) - LEFT_TO_CPU[provider]
    if stray:
        newer = f"{library.INSTALL_NEWER}, which has CUDA kernels for all of it"
        raise BackendError(
            f"{asked} was asked for, but ONNX Runtime {ort.__version__} would run {', '.join(sorted(stray))} of "
            f"{path.name} on the CPU; {'take a bundle in fp32 or fp16' if cuda is None else newer}"
        )
    counts = {name: sum(nodes.values()) for name, nodes in operators.items()}
    if cuda is None:
        return counts
    # An input that is wanted elsewhere would be copied once, when it is bound, and be old in every later run.
    here = ort.OrtDevice.make("cuda", cuda.ordinal)
    wanted = (here.device_vendor_id(), cuda.ordinal)
    for info, memory in zip(session.get_inputs(), session.get_input_memory_infos(), strict=True):
        if (memory.device_vendor_id, memory.device_id) != wanted:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} wants {info.name} of {path.name} in {memory.name} memory, not on GPU "
                f"{cuda.ordinal}"
            )
    return counts


def webgpu_error(error: Exception, doing: str) -> BackendError:
    """What WebGPU lacks here, with the remedy, as one line of ours."""
    text = str(error)
    if "WebGPU adapter" in text:
        return BackendError(f"WebGPU finds no GPU that it can use; {VULKAN}")
    if "requires f16" in text:
        return BackendError("this GPU has no half precision in WebGPU (shader-f16): take a bundle in fp32")
    return library.translated(error, doing)


def devices_of(ort: Any, provider: str) -> list[Any]:
    """What a provider that is a plugin can use here. Raises `BackendError`."""
    return library.plugin_devices(ort, provider, PROVIDERS[provider])


def describe_plugin(ort: Any, provider: str) -> dict[str, str]:
    """The version of a plugin, and the device that it computes on, for reports and verdicts."""
    device = devices_of(ort, provider)[0]
    facts = (device.device.vendor, *map(str, dict(device.device.metadata).values()))
    return {provider: str(dict(device.ep_metadata).get("version", "")), "gpu": " ".join(filter(None, facts))}


def _plugin_device(ort: Any, provider: str, settings: dict[str, str]) -> Any:
    """The device of a plugin with the wanted number, which is then no option any more. Raises `BackendError`."""
    wanted = settings.pop("device_id", "0")
    devices = devices_of(ort, provider)
    for device in devices:
        if device.ep_options.get("device_id", "0") == wanted:
            return device
    if provider == "webgpu":
        raise BackendError(f"WebGPU finds no GPU here; {VULKAN}")
    raise BackendError(
        f"TensorRT-RTX has no GPU {wanted}: it can use {len(devices)} here, of compute capability 8.0 or more"
    )
