"""What `build_plans` tells TensorRT, on an emulated one, and what it says meanwhile."""

import functools
import logging
from pathlib import Path

import pytest
import support
from support import tiny_config

from engines.backends.tensorrt.build import build_plans
from engines.backends.tensorrt.library import FLAVOURS, Library, load
from engines.backends.tensorrt.options import PlanOptions
from engines.backends.tensorrt.profiles import BatchRange, profiles_of
from engines.errors import BackendError, BundleError, OutOfMemoryError, UsageError
from engines.spec import contract
from engines.spec.config import ModelConfig
from tests.emulation import HostCuda, HostTensorRT, hollow_bundle
from tests.emulation.tensorrt import Severity

CONFIG = tiny_config()


@pytest.fixture
def path(tmp_path):
    return hollow_bundle(tmp_path / "bundles" / "model", CONFIG)


@pytest.fixture
def machine(emulate):
    return lambda **options: emulate(model=(CONFIG, "fp16"), empty=True, **options)


refused = functools.partial(support.refused, kind=UsageError)


# --- the configuration of the builder -----------------------------------------------------------------------------


def test_the_builder_gets_what_was_asked_for(path, machine):
    emulation = machine()
    emulation.build(
        path,
        workspace=256,
        optimization_level=5,
        weight_streaming=True,
        hardware_compatibility="ampere+",
        extra={"max_aux_streams": 3, "flags": ["SPARSE_WEIGHTS"]},
    )
    trt = emulation.trt
    assert [Path(file).stem for file, _ in trt.builds] == ["cond", "step", "fused", "decode", "encode", "accumulate"]
    for _, config in trt.builds:
        assert config.flags == {trt.BuilderFlag.WEIGHT_STREAMING, trt.BuilderFlag.SPARSE_WEIGHTS}
        assert config.pools == {trt.MemoryPoolType.WORKSPACE: 256 << 20}
        assert config.builder_optimization_level == 5
        assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
        assert config.max_aux_streams == 3


def test_by_default_tensorrt_decides_all_but_tf32(path, machine):
    """TF32 is on by default: FP32 would have 10 bits of mantissa."""
    emulation = machine()
    emulation.build(path)
    for _, config in emulation.trt.builds:
        assert config.flags == set()
        assert config.pools == {}
        assert config.builder_optimization_level == 3
        assert config.hardware_compatibility_level == emulation.trt.HardwareCompatibilityLevel.NONE


def test_tensorrt_rtx_is_told_the_compute_capabilities(path, machine):
    emulation = machine(rtx=True, devices=0)
    built = emulation.build(path, compute_capabilities=("8.6", "12.0"))
    trt = emulation.trt
    for _, config in trt.builds:
        assert trt.BuilderFlag.REQUIRE_USER_ALLOCATION in config.flags, "without it, no CUDA graph can hold the engine"
        assert config.capabilities == {0: trt.ComputeCapability.SM86, 1: trt.ComputeCapability.SM120}
    assert built.plans.name.startswith("tensorrt-rtx-1.7.1.116-sm86-120-")


def test_tensorrt_rtx_builds_for_the_card_that_is_here(path, machine):
    emulation = machine(rtx=True, capability=(8, 9))
    built = emulation.build(path)
    assert built.plans.compute_capabilities == ("8.9",)
    assert all(config.capabilities == {0: emulation.trt.ComputeCapability.SM89} for _, config in emulation.trt.builds)
    emulation.load(path).generate([0])


def test_a_card_that_tensorrt_rtx_does_not_know(path, machine):
    """An H100, say: TensorRT serves it, TensorRT-RTX does not."""
    emulation = machine(rtx=True, capability=(9, 0))
    refused(lambda: emulation.build(path), "TensorRT-RTX has no compute capability 9.0", "12.0")
    assert emulation.trt.builds == []


def test_without_a_gpu_tensorrt_rtx_wants_a_compute_capability(path, machine):
    emulation = machine(rtx=True, devices=0)
    refused(lambda: emulation.build(path), "name it with --compute-capability, such as 8.9", "nvidia-smi")


def test_without_a_gpu_tensorrt_builds_nothing(path, machine):
    emulation = machine(devices=0)
    refused(lambda: emulation.build(path), "nvidia-smi", kind=BackendError)


def test_a_level_that_this_tensorrt_does_not_have(path, machine):
    """10.3 of JetPack 6 knows no SAME_COMPUTE_CAPABILITY."""
    emulation = machine()
    refused(
        lambda: emulation.build(path, hardware_compatibility="same-sm"),
        "TensorRT 10.3.0 has no --hardware-compatibility same-sm",
    )


def test_options_are_checked_before_anything_is_loaded(path):
    for target, options in (
        ("tensorrt", PlanOptions(compute_capabilities=("8.6",))),
        ("tensorrt-rtx", PlanOptions(timing_cache=Path("t"))),
    ):
        refused(lambda target=target, options=options: build_plans(path, target, options), "is for")


def test_a_folder_that_is_no_bundle(tmp_path, machine):
    emulation = machine()
    refused(lambda: emulation.build(tmp_path / "none"), "there is no bundle", kind=BundleError)


# --- profiles -----------------------------------------------------------------------------------------------------


def test_the_step_graph_has_one_profile_per_scale():
    """All but the batch is fixed in it: tokens of this scale and the next, and those that are cached."""
    config = ModelConfig(name="d16")
    inputs, _ = contract.resolve(contract.STEP, config, "fp16")
    profiles = profiles_of("step", config, inputs, BatchRange(1, 2, 8))
    assert len(profiles) == 10
    for scale, profile in enumerate(profiles):
        L, P = config.scale_lengths[scale], config.scale_offsets[scale]
        M = config.scale_lengths[scale + 1] if scale < 9 else 1
        assert profile["x"] == ((1, L, 1024), (4, L, 1024), (16, L, 1024))
        assert profile["past_k_15"] == ((P, 1, 16, 64), (P, 4, 16, 64), (P, 16, 16, 64))
        assert profile["uniforms"] == ((1, L), (2, L), (8, L))
        assert profile["up"] == ((256, L),) * 3
        assert profile["down"] == ((M, 256),) * 3
        assert profile["pos_next"] == ((1, M, 1024),) * 3
        assert "phi_index" not in profile, "its shape never varies"
        assert set(profile) == {info.name for info in inputs if any(isinstance(dim, str) for dim in info.shape)}


@pytest.mark.parametrize("graph", ["cond", "decode", "encode", "accumulate", "fused"])
def test_other_graphs_have_one(graph):
    config = ModelConfig(name="d16")
    inputs, _ = contract.resolve(contract.GRAPHS[graph], config, "fp16")
    (profile,) = profiles_of(graph, config, inputs, BatchRange(1, 2, 8))
    images, rows = ((2, 2, 2), (4, 4, 4)) if graph == "fused" else ((1, 2, 8), (1, 4, 16))
    for info in inputs:
        sizes = rows if info.shape[0] == "N" else images
        assert [shape[0] for shape in profile[info.name]] == list(sizes), info.name


# --- the timing cache ---------------------------------------------------------------------------------------------


def test_a_timing_cache_grows_from_build_to_build(path, machine, tmp_path):
    cache = tmp_path / "kernels.cache"
    machine().build(path, "1", timing_cache=cache)
    assert cache.read_bytes() == b"timed;" * 6, "each graph adds to what those before it left"
    machine().build(path, "2", timing_cache=cache)
    assert cache.read_bytes() == b"timed;" * 12
    assert [file.name for file in tmp_path.iterdir() if "cache" in file.name] == ["kernels.cache"]


def test_a_timing_cache_of_another_gpu(path, machine, tmp_path):
    cache = tmp_path / "kernels.cache"
    cache.write_bytes(b"other GPU")
    emulation = machine()
    refused(lambda: emulation.build(path, timing_cache=cache), str(cache), "of another GPU or TensorRT")
    assert cache.read_bytes() == b"other GPU"


def test_a_timing_cache_in_a_new_folder(path, machine, tmp_path):
    cache = tmp_path / "new" / "kernels.cache"
    machine().build(path, timing_cache=cache)
    assert cache.read_bytes() == b"timed;" * 6


@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_a_timing_cache_that_cannot_be_a_file(place, path, machine, tmp_path):
    before = sorted(path.rglob("*"))
    file = tmp_path / "file"
    file.touch()
    cache = tmp_path if place == "a folder" else file / "kernels.cache"
    emulation = machine()
    refused(lambda: emulation.build(path, timing_cache=cache), "cannot", str(cache))
    assert sorted(path.rglob("*")) == before


# --- what is said -------------------------------------------------------------------------------------------------


def test_progress_grows_from_nothing_to_all_of_each_graph(path, machine):
    told = []
    machine().build(path, progress=lambda line, done: told.append((line, done)))
    lines = list(dict.fromkeys(line for line, _ in told))
    assert lines == [
        f"engine {count + 1} of 6: {graph}"
        for count, graph in enumerate(("cond", "step", "fused", "decode", "encode", "accumulate"))
    ]
    for line in lines:
        shares = [done for other, done in told if other == line]
        assert shares[0] is None, "the line alone, before the first step"
        assert shares[1] == 0
        assert shares[-1] == 1
        assert shares[1:] == sorted(shares[1:])


def test_a_graph_that_the_parser_refuses(path, machine):
    emulation = machine()
    emulation.trt.parse_errors = [("no importer for\n Attention", "node_17"), ("and more", ""), ("and more", "")]
    refused(
        lambda: emulation.build(path),
        "TensorRT 10.3.0 failed while parsing cond.onnx: no importer for Attention (node node_17); and more (node ?)",
        kind=BackendError,
    )


def test_plans_say_how_long_they_took(path, machine):
    emulation = machine()
    plans = emulation.build(path).plans
    assert all(plan.seconds >= 0 for plan in plans.graphs.values())


# --- the vendor's module ------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    return Library(FLAVOURS["tensorrt"], HostTensorRT(HostCuda()))


def test_what_tensorrt_logs_becomes_part_of_the_error(library, caplog):
    def build():
        with library.translated("building step.onnx"):
            library.logger.log(Severity.WARNING, "a warning")
            library.logger.log(Severity.ERROR, "[a.cpp::b::12] Error Code 4:\n  shapes do not fit")
            library.check(None, "building step.onnx")

    with caplog.at_level(logging.INFO), pytest.raises(BackendError) as caught:
        build()
    message = str(caught.value)
    assert message == (
        "TensorRT 10.3.0 failed while building step.onnx: [a.cpp::b::12] Error Code 4: shapes do not fit"
    )
    assert [record.getMessage() for record in caplog.records] == ["a warning"]


def test_complaints_of_before_are_forgotten(library):
    library.logger.log(Severity.ERROR, "old")
    refused(
        lambda: library_fails(library, RuntimeError("new")), "failed while loading step.plan: new", kind=BackendError
    )
    with library.translated("loading"):
        pass
    assert str(library.error("loading")) == "TensorRT 10.3.0 failed while loading: it did not say why"


def library_fails(library, error):
    with library.translated("loading step.plan"):
        raise error


@pytest.mark.parametrize("text", ["CUDA: out of memory", "OutOfMemory (no allocation)", "cudaErrorMemoryAllocation"])
def test_too_little_memory_is_told_apart(text, library):
    refused(lambda: library_fails(library, RuntimeError(text)), "lower --batch", kind=OutOfMemoryError)


def test_our_own_errors_and_ctrl_c_pass_through(library):
    for error in (UsageError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            library_fails(library, error)
        assert caught.value is error


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_product_that_is_not_installed(name, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    refused(lambda: load(name), "is not installed", "pip install", kind=BackendError)


def test_a_folder_that_has_the_name_of_the_module_is_not_it(tmp_path, monkeypatch):
    """Python imports any folder on its path; somebody may well keep plans in one called tensorrt."""
    import sys

    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *[p for p in sys.path if "site-packages" not in p]])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    refused(lambda: load("tensorrt"), "TensorRT is not installed", str(tmp_path / "tensorrt"), kind=BackendError)
    sys.modules.pop("tensorrt", None)
