"""What a user may decide about a build, what is refused, and what arrives at the builder."""

import functools
import gc
import weakref
from pathlib import Path

import pytest
import support

from engines.backends.tensorrt.library import load
from engines.backends.tensorrt.options import PlanOptions, apply_extra, read_options
from engines.backends.tensorrt.profiles import BatchRange
from engines.errors import UsageError
from tests.emulation import HostCuda, HostTensorRT

refused = functools.partial(support.refused, kind=UsageError)


# --- single values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workspace": 0}, ["--workspace is in MiB and at least 1, got 0"]),
        ({"workspace": -5}, ["--workspace", "-5"]),
        ({"optimization_level": -1}, ["--optimization-level lies in 0 to 5, got -1"]),
        ({"optimization_level": 6}, ["--optimization-level", "6"]),
        ({"hardware_compatibility": "ampere"}, ["--hardware-compatibility", "none, ampere+, same-sm", "'ampere'"]),
        ({"compute_capabilities": ("86",)}, ["--compute-capability is written as 8.6, got '86'"]),
        ({"compute_capabilities": ("8.6", "sm_89")}, ["'sm_89'"]),
        ({"compute_capabilities": ("8.6 ",)}, ["'8.6 '"]),
        ({"compute_capabilities": ("",)}, ["--compute-capability"]),
    ],
)
def test_a_value_that_cannot_be(options, words):
    refused(lambda: PlanOptions(**options), *words)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("tensorrt", {"compute_capabilities": ("8.6",)}, ["--compute-capability is for tensorrt-rtx"]),
        ("tensorrt-rtx", {"timing_cache": Path("t")}, ["--timing-cache is for tensorrt"]),
        ("tensorrt-rtx", {"hardware_compatibility": "ampere+"}, ["--hardware-compatibility is for tensorrt"]),
        ("tensorrt-rtx", {"compute_capabilities": ("8.7",)}, ["no compute capability 8.7", "7.5, 8.0, 8.6"]),
        ("tensorrt-rtx", {"compute_capabilities": ("8.6", "9.0", "11.0")}, ["11.0, 9.0"]),
    ],
)
def test_an_option_of_the_other_product(target, options, words):
    refused(lambda: PlanOptions(**options).check_for(target), *words)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_defaults_fit_both(target):
    PlanOptions().check_for(target)


def test_every_compute_capability_that_we_name_is_one_of_tensorrt_rtx():
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu12 is not installed")
    from engines.backends.tensorrt.options import RTX_CAPABILITIES

    theirs = {name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert {f"SM{name.replace('.', '')}" for name in RTX_CAPABILITIES} == theirs


# --- batch ranges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "images", "rows", "written"),
    [
        ("4", (4, 4, 4), (4, 8, 8), "4"),
        ("1:1:8", (1, 1, 8), (1, 2, 16), "1:1:8"),
        ("2:3:4", (2, 3, 4), (2, 6, 8), "2:3:4"),
        (" 1 : 2 : 3 ", (1, 2, 3), (1, 4, 6), "1:2:3"),
    ],
)
def test_batches(text, images, rows, written):
    batch = BatchRange.parse(text)
    assert (*batch.of("step"), str(batch)) == (images, rows, written)
    assert batch.of("fused") == ((images[1],) * 3, (2 * images[1],) * 3)


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:3:4", "-1", "1.5", "1:x:3", ":::", "1::3"])
def test_what_is_no_batch(text):
    refused(lambda: BatchRange.parse(text), "--batch", repr(text), "1:1:8")


@pytest.mark.parametrize("text", ["0", "0:1:2", "2:1:3", "1:4:3", "3:2:1"])
def test_a_batch_that_does_not_grow(text):
    refused(lambda: BatchRange.parse(text), "--batch", "must grow from 1")


# --- the TOML file ------------------------------------------------------------------------------------------------


def written(folder, text):
    file = folder / "builder.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_file_of_settings(tmp_path):
    file = written(
        tmp_path,
        """
        [tensorrt]
        max_aux_streams = 2
        flags = ["SPARSE_WEIGHTS"]
        memory_pools = {TACTIC_DRAM = 1024}
        """,
    )
    assert read_options(file) == {
        "max_aux_streams": 2,
        "flags": ["SPARSE_WEIGHTS"],
        "memory_pools": {"TACTIC_DRAM": 1024},
    }
    assert read_options(written(tmp_path, "[tensorrt]")) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_aux_streams = 2", ["must hold one table, [tensorrt]", "such as: [tensorrt] / max_aux_streams"]),
        ("", ["must hold one table, [tensorrt]"]),
        ("tensorrt = 1", ["must hold one table, [tensorrt]"]),
        ("[tensorrt]\n[other]", ["must hold one table, [tensorrt]"]),
        ("[tensorrt", ["is no TOML file"]),
        ("max = ", ["is no TOML file"]),
        (b"\xff\xfe", ["is no TOML file"]),
    ],
)
def test_what_is_no_file_of_settings(text, words, tmp_path):
    refused(lambda: read_options(written(tmp_path, text)), "builder.toml", *words)


def test_a_file_that_is_not_there(tmp_path):
    refused(lambda: read_options(tmp_path / "none.toml"), "none.toml", "No such file")
    refused(lambda: read_options(tmp_path), str(tmp_path))


# --- at the builder -----------------------------------------------------------------------------------------------


def nvidias_builder():
    """TensorRT-RTX's module and a builder of it."""
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu12 is not installed")
    return module, module.Builder(load("tensorrt-rtx").logger)


class Product:
    """A module and a new builder configuration of it, and how to look inside."""

    def __init__(self, module, config):
        self.module, self.config = module, config

    def apply(self, **settings):
        apply_extra(self.module, self.config, settings)
        return self.config


@pytest.fixture(params=["emulation", "tensorrt_rtx"])
def product(request):
    if request.param == "emulation":
        module = HostTensorRT(HostCuda())
        yield Product(module, module.config())
        return
    module, builder = nvidias_builder()
    yield Product(module, builder.create_builder_config())


def flag_is_set(product, name):
    flag = product.module.BuilderFlag.__members__[name]
    config = product.config
    return config.get_flag(flag) if hasattr(config, "get_flag") else flag in config.flags


def test_settings_arrive(product):
    config = product.apply(
        max_aux_streams=2,
        builder_optimization_level=1,
        flags=["SPARSE_WEIGHTS"],
        memory_pools={"WORKSPACE": 64, "TACTIC_DRAM": 32},
        preview_features=["RUNTIME_ACTIVATION_RESIZE_10_10"],
    )
    assert config.max_aux_streams == 2
    assert config.builder_optimization_level == 1
    assert flag_is_set(product, "SPARSE_WEIGHTS")
    pool = product.module.MemoryPoolType.__members__["WORKSPACE"]
    size = config.get_memory_pool_limit(pool) if hasattr(config, "get_memory_pool_limit") else config.pools[pool]
    assert size == 64 << 20
    feature = product.module.PreviewFeature.__members__["RUNTIME_ACTIVATION_RESIZE_10_10"]
    assert config.get_preview_feature(feature) if hasattr(config, "get_preview_feature") else config.features[feature]


def test_an_enum_is_given_by_the_name_of_its_member():
    module = HostTensorRT(HostCuda())
    config = Product(module, module.config()).apply(hardware_compatibility_level="AMPERE_PLUS")
    assert config.hardware_compatibility_level == module.HardwareCompatibilityLevel.AMPERE_PLUS

    module, builder = nvidias_builder()
    config = Product(module, builder.create_builder_config()).apply(profiling_verbosity="DETAILED")
    assert config.profiling_verbosity == module.ProfilingVerbosity.DETAILED


def test_no_settings_change_nothing(product):
    before = product.config.max_aux_streams, product.config.builder_optimization_level
    config = product.apply()
    assert (config.max_aux_streams, config.builder_optimization_level) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_aux_stream": 2}, ["no builder setting 'max_aux_stream'", "max_aux_streams"]),
        ({"_private": 1}, ["no builder setting '_private'"]),
        ({"__class__": 1}, ["no builder setting '__class__'"]),
        ({"set_flag": 1}, ["no builder setting 'set_flag'"]),
        ({"flags": ["FAST"]}, ["no BuilderFlag 'FAST'", "SPARSE_WEIGHTS"]),
        ({"flags": "TF32"}, ["flags is a list of names", "'TF32'"]),
        ({"flags": [1]}, ["flags is a list of names"]),
        ({"preview_features": ["NONE"]}, ["no PreviewFeature 'NONE'"]),
        ({"preview_features": True}, ["preview_features is a list of names"]),
        ({"memory_pools": {"RAM": 5}}, ["no MemoryPoolType 'RAM'", "WORKSPACE"]),
        ({"memory_pools": {"WORKSPACE": "1G"}}, ["memory_pools.WORKSPACE is a whole number of MiB, got '1G'"]),
        ({"memory_pools": {"WORKSPACE": 0}}, ["memory_pools.WORKSPACE"]),
        ({"memory_pools": {"WORKSPACE": True}}, ["memory_pools.WORKSPACE"]),
        ({"memory_pools": [1]}, ["memory_pools is a table"]),
        ({"hardware_compatibility_level": "HOPPER"}, ["hardware_compatibility_level has no value 'HOPPER'"]),
    ],
)
def test_a_setting_that_cannot_be(settings, words, product):
    refused(lambda: product.apply(**settings), *words)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_aux_streams": "many"},
        {"max_aux_streams": [1]},
        {"builder_optimization_level": 1.5},
        {"hardware_compatibility_level": 1},
        {"hardware_compatibility_level": "__doc__"},
        {"hardware_compatibility_level": "name"},
        {"profiling_verbosity": {"a": 1}},
        {"avg_timing_iterations": 2**40},
        {"builder_optimization_level": 2**70},
        {"progress_monitor": 5},
        {"progress_monitor": "x"},
        {"num_optimization_profiles": 3},
        {"hardware_compatibility_level": "AMPERE_PLUS"},  # which TensorRT-RTX ignores without a word
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_one_line_of_nvidias_builder_too(settings):
    module, builder = nvidias_builder()
    refused(lambda: apply_extra(module, builder.create_builder_config(), settings), next(iter(settings)))


def test_a_logger_outlives_all_that_used_it():
    """TensorRT keeps the first logger of a process for what has no other, and crashes where that is gone."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu12 is not installed")
    library = load("tensorrt-rtx")
    logger = weakref.ref(library.logger)
    del library
    gc.collect()
    assert logger() is not None
