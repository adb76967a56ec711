"""From a bundle to plans: parse each graph, set its profiles, build, and store the set in the bundle.

Needs the bundle and TensorRT, nothing of PyTorch or ONNX. TensorRT builds on the GPU that will run; TensorRT-RTX
builds on any machine when it is told the compute capabilities.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.backends.cuda import Cuda
from engines.backends.tensorrt import library as libraries
from engines.backends.tensorrt.library import Library
from engines.backends.tensorrt.monitor import in_a_thread, monitor_of
from engines.backends.tensorrt.options import COMPATIBILITY_LEVELS, PlanOptions, apply_extra
from engines.backends.tensorrt.profiles import Range, profiles_of
from engines.bundle.bundle import Bundle
from engines.bundle.plans import PlanFile, PlanSet, Platform, plan_key
from engines.bundle.writer import PlanWriter
from engines.errors import BackendError, BundleError, UsageError
from engines.progress import Progress, silent
from engines.spec.choices import QUANTISED
from engines.storage import atomic_write


@dataclass(frozen=True)
class BuiltPlans:
    """The outcome of `build_plans`."""

    plans: PlanSet
    reused: bool
    superseded: tuple[str, ...]
    """Names of older sets for the same GPU that these took the place of."""


def build_plans(
    path: Path,
    target: str,
    options: PlanOptions,
    *,
    device: int = 0,
    progress: Progress = silent,
) -> BuiltPlans:
    """Build the plans of every graph of the bundle at `path`, or find them there already.

    The bundle stays as it is until all are built. `target` is `tensorrt` or `tensorrt-rtx`, which needs no GPU, and so
    no `device`, where `options` name compute capabilities.

    Raises `BundleError`, `UsageError`, `BackendError`; KeyboardInterrupt on Ctrl-C, leaving the bundle as it was.
    """
    options.check_for(target)
    library = libraries.load(target)
    bundle = Bundle.open(path)
    if bundle.precision in QUANTISED and not bundle.for_gpus:
        raise BundleError(
            f"{path} is in {bundle.precision.upper()} for the CPU, which TensorRT cannot build; make one for it with: "
            f"var-export build CHECKPOINT --precision {bundle.precision} --target {target}"
        )
    here = platform_of(library, device, needs_gpu=not options.compute_capabilities)
    key = plan_key(bundle.files, bundle.graphs, here, options.to_dict())
    known = next((plans for plans in bundle.plans if plans.key == key), None)
    if known is not None and all(
        known.built_from(bundle.files, graph) and bundle.plan_problem(known.graphs[graph]) is None
        for graph in bundle.graphs
    ):
        return BuiltPlans(known, True, ())

    capabilities = options.compute_capabilities or (str(here.compute_capability),)
    if target == "tensorrt-rtx":  # which does not know every GPU that may be here
        replace(options, compute_capabilities=capabilities).check_for(target)
    name = f"{target}-{library.version}-sm{'-'.join(c.replace('.', '') for c in capabilities)}-{key[:8]}"
    with PlanWriter(bundle, name) as writer:
        graphs = {}
        for count, graph in enumerate(bundle.graphs):
            line = f"engine {count + 1} of {len(bundle.graphs)}: {graph}"
            progress(line, None)
            told = partial(progress, line)
            graphs[graph] = _build_graph(library, bundle, graph, options, capabilities, writer, told)
        plans = PlanSet(
            name=name,
            key=key,
            built_on=here,
            precision=bundle.precision,
            compute_capabilities=tuple(capabilities),
            hardware_compatibility=options.hardware_compatibility,
            weight_streaming=options.weight_streaming,
            weights_sha256=bundle.files["weights.bin"].sha256,
            options=options.to_dict(),
            graphs=graphs,
        )
        superseded = writer.publish(plans)
    return BuiltPlans(plans, False, superseded)


def platform_of(library: Library, device: int = 0, *, needs_gpu: bool = True) -> Platform:
    """What plans that are built here must fit. Raises `BackendError` where a GPU is needed and there is none."""
    if not needs_gpu:
        return library.platform(None)
    try:
        cuda = Cuda(device)
    except BackendError as error:
        if library.flavour.name != "tensorrt-rtx":
            raise
        raise UsageError(
            f"{error}; to build for a GPU that is not here, name it with --compute-capability, such as 8.9"
        ) from error
    with contextlib.closing(cuda):
        return library.platform(cuda)


def _build_graph(
    library: Library,
    bundle: Bundle,
    graph: str,
    options: PlanOptions,
    capabilities: tuple[str, ...],
    writer: PlanWriter,
    progress: Callable[[float], None],
) -> PlanFile:
    start = time.perf_counter()
    inputs, _ = bundle.tensors(graph)
    images, rows = options.batch.of(graph)
    profiles = profiles_of(graph, bundle.config, inputs, options.batch)
    plan = build_plan(library, bundle.graph_path(graph), profiles, options, capabilities, progress)
    seconds = time.perf_counter() - start
    entry = writer.add(f"{graph}.plan", plan)
    return PlanFile(
        file=f"plans/{writer.name}/{graph}.plan",
        size=entry.size,
        sha256=entry.sha256,
        onnx_sha256=bundle.files[f"{graph}.onnx"].sha256,
        batch=images,
        rows=rows,
        profiles=len(profiles),
        seconds=round(seconds, 1),
    )


def build_plan(
    library: Library,
    file: Path,
    profiles: list[Mapping[str, Range]] | list[dict[str, Range]],
    options: PlanOptions,
    capabilities: tuple[str, ...],
    progress: Callable[[float], None] = lambda done: None,
) -> Any:
    """One ONNX file to a serialized engine (IHostMemory, a buffer).

    The network is strongly typed: every type is the one that the graph states. Raises `BackendError`.
    """
    trt = library.trt
    with library.translated(f"building {file.name}"):
        builder = library.check(trt.Builder(library.logger), "starting the builder")
        network = parse(library, builder, file)
        config = library.check(builder.create_builder_config(), "making a configuration")
        _configure(library, builder, config, options, capabilities)
        for ranges in profiles:
            profile = builder.create_optimization_profile()
            for name, (least, usual, most) in ranges.items():
                profile.set_shape(name, least, usual, most)
            if config.add_optimization_profile(profile) < 0:
                raise library.error(f"adding a profile to {file.name}")
        cache = _load_timing_cache(library, config, options.timing_cache)
        monitor = monitor_of(trt, progress)
        config.progress_monitor = monitor
        plan = in_a_thread(lambda: builder.build_serialized_network(network, config), monitor)
        if monitor.failure is None:
            library.check(plan, f"building {file.name}")
            if cache is not None and options.timing_cache is not None:
                with atomic_write(options.timing_cache) as opened:
                    opened.write(memoryview(config.get_timing_cache().serialize()))
    if monitor.failure is not None:
        raise monitor.failure
    progress(1.0)
    return plan


def parse(library: Library, builder: Any, file: Path) -> Any:
    """An ONNX file as a strongly typed network. Raises `BackendError` that names the node."""
    trt = library.trt
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = library.check(builder.create_network(flags), "making a network")
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(file)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        details = "; ".join(f"{error.desc()} (node {error.node_name() or '?'})" for error in errors[:2])
        raise library.error(f"parsing {file.name}", details)
    return network


def _configure(
    library: Library, builder: Any, config: Any, options: PlanOptions, capabilities: tuple[str, ...]
) -> None:
    trt = library.trt
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; FP32 islands would not be FP32
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.hardware_compatibility != "none":
        level = COMPATIBILITY_LEVELS[options.hardware_compatibility]
        if not hasattr(trt.HardwareCompatibilityLevel, level):
            raise UsageError(
                f"{library.flavour.title} {library.version} has no "
                f"--hardware-compatibility {options.hardware_compatibility}"
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if library.flavour.name == "tensorrt-rtx":
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # otherwise CUDA graphs cannot capture it
        if hasattr(config, "num_compute_capabilities"):
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
                library.check(config.set_compute_capability(member, index), f"choosing compute capability {capability}")
    apply_extra(trt, config, options.extra)


def _load_timing_cache(library: Library, config: Any, file: Path | None) -> Any:
    if file is None:
        return None
    try:
        data = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise UsageError(f"cannot read the timing cache {file}: {error.strerror}") from error
    cache = library.check(config.create_timing_cache(data), f"reading the timing cache {file}")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise UsageError(f"the timing cache {file} is of another GPU or TensorRT; name another file")
    return cache
