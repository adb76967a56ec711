"""ONNX Runtime's GPU providers on an emulated GPU: the CPU provider's images, and no wait before a read."""

import ctypes.util
import gc
import importlib.machinery
import sys
import types

import numpy as np
import onnxruntime
import pytest
from support import copy_bundle, graphs_for_gpus, reseal, tiny_config

from engines import backends
from engines.backends.cuda import Cuda
from engines.backends.device_buffer import DeviceBuffer
from engines.backends.onnxruntime import OnnxRuntimeBackend, library, providers, runner
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, OutOfMemoryError
from engines.packages import install_command
from tests.emulation import HostCuda, hollow_bundle
from tests.emulation.onnxruntime import RTX, HostOnnxRuntime

pytestmark = pytest.mark.slow

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """Caches of its own, and the environment variable of TF32 as it was before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(*providers.NO_TF32)
    monkeypatch.delenv(providers.NO_TF32[0])


class Emulation:
    """One GPU and an ONNX Runtime for it."""

    def __init__(self, devices=1, **options):
        self.host = HostCuda(devices=devices)
        self.ort = HostOnnxRuntime(self.host, **options)
        self.pipelines = []

    def backend(self, provider="cuda", device=0):
        return OnnxRuntimeBackend(provider, module=self.ort, cuda=Cuda(device, self.host))

    def load(self, path, provider="cuda", **options):
        pipeline = Pipeline(Bundle.open(path), self.backend(provider), **options)
        self.pipelines.append(pipeline)
        return pipeline

    def options(self, graph=-1):
        """What the providers of a session were given."""
        return dict(self.ort.sessions[graph].registered)


@pytest.fixture
def emulate():
    """Makes an `Emulation`; at the end nothing that was done was wrong, and nothing is left of it."""
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} cannot stand in for one with GPU providers: 1.27 or newer")
    made = []

    def make(**options):
        made.append(Emulation(**options))
        return made[-1]

    yield make
    for emulation in made:
        for pipeline in emulation.pipelines:
            pipeline.close()
        gc.collect()
        assert emulation.host.violations == []
        assert emulation.host.leaks() == {}
        assert emulation.host.freed == emulation.host.total_allocations


@pytest.fixture(scope="module")
def on_cpu(demo_both_bundle):
    """Pipelines of the CPU provider that run the graphs for GPUs, by form."""
    bundle, sessions = Bundle.open(demo_both_bundle), graphs_for_gpus(demo_both_bundle)
    pipelines = {
        form: Pipeline(bundle, OnnxRuntimeBackend(threads=1, sessions=sessions), form=form)
        for form in ("stepwise", "fused")
    }
    yield pipelines
    for pipeline in pipelines.values():
        pipeline.close()


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_images_and_tokens_are_those_of_the_cpu(form, emulate, demo_both_bundle, on_cpu):
    pipeline = emulate().load(demo_both_bundle, form=form)
    for count in (1, 3, 8):
        classes, seeds = list(range(3, 3 + count)), list(range(70, 70 + count))
        for cfg in (2.0, 0.0, [float(i % 2) for i in range(count)]):
            expected = on_cpu[form].generate(classes, seeds=seeds, cfg=cfg)
            drawn = pipeline.generate(classes, seeds=seeds, cfg=cfg)
            for name in ("images", "tokens", "drawn"):
                np.testing.assert_array_equal(getattr(drawn, name), getattr(expected, name), err_msg=f"{name} {cfg}")


def test_previews_and_pictures_are_those_of_the_cpu(emulate, demo_both_bundle, on_cpu):
    pipeline = emulate().load(demo_both_bundle, form="stepwise")
    expected = list(on_cpu["stepwise"].stream([5, 9], seeds=4))
    for mine, theirs in zip(pipeline.stream([5, 9], seeds=4), expected, strict=True):
        np.testing.assert_array_equal(mine.images, theirs.images)
        np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    images, tokens = expected[-1].images, expected[-1].tokens
    np.testing.assert_array_equal(pipeline.encode(images), on_cpu["stepwise"].encode(images))
    np.testing.assert_array_equal(pipeline.decode(tokens), on_cpu["stepwise"].decode(tokens))


def test_guidance_that_ends_early_is_that_of_the_cpu(emulate, demo_both_bundle, on_cpu, monkeypatch):
    """And what the other rows have cached never leaves the GPU for it."""
    pipeline = emulate().load(demo_both_bundle, form="stepwise")
    arguments = {"classes": [5, 9, 7], "seeds": 4, "cfg": [3.0, 2.0, 0.0], "cfg_scales": [4, 5, 2]}
    expected = on_cpu["stepwise"].generate(**arguments)
    for _ in range(2):
        drawn = pipeline.generate(**arguments)
        np.testing.assert_array_equal(drawn.tokens, expected.tokens)
        np.testing.assert_array_equal(drawn.images, expected.images)
    read, sizes = DeviceBuffer.read, []
    monkeypatch.setattr(DeviceBuffer, "read", lambda buffer: sizes.append(buffer.size) or read(buffer))
    pipeline.generate(**arguments)
    assert sorted(sizes)[-2:] == [pipeline.config.scale_lengths[-1] * 3 * 8, 3 * 64 * 64 * 3], "tokens, and images"


def test_memory_that_was_used_before_changes_nothing(emulate, demo_both_bundle):
    """What is left of one image in the buffers, and in the caches of keys and values, is not read by the next."""
    emulation = emulate()
    pipeline = emulation.load(demo_both_bundle, form="stepwise")
    first = pipeline.generate([3, 4], seeds=1)
    pipeline.generate([7, 8], seeds=9)
    np.testing.assert_array_equal(pipeline.generate([3, 4], seeds=1).images, first.images)


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_the_host_waits_only_where_it_reads(form, emulate, demo_both_bundle, monkeypatch):
    emulation = emulate()
    pipeline = emulation.load(demo_both_bundle, form=form)
    pipeline.generate(3, seeds=1)
    counts = {"reads": 0, "waits": 0}
    read, wait = DeviceBuffer.read, emulation.host.cudaStreamSynchronize

    def counted(what, function):
        def call(*args):
            counts[what] += 1
            return function(*args)

        return call

    monkeypatch.setattr(DeviceBuffer, "read", counted("reads", read))
    monkeypatch.setattr(emulation.host, "cudaStreamSynchronize", counted("waits", wait))
    result = pipeline.generate(3, seeds=1)
    assert counts["waits"] == counts["reads"] > 0
    assert emulation.ort.waits == 0
    assert sum(result.timings.scales) > 0


def test_a_call_returns_before_its_work_is_done(emulate, demo_both_bundle):
    emulation = emulate()
    pipeline = emulation.load(demo_both_bundle, form="stepwise")
    backend = pipeline.backend
    engine = backend.open(pipeline.bundle, "decode")
    f_hat, image = (backend.buffer((1, *info.shape[1:]), info.dtype) for info in (engine.inputs[0], engine.outputs[0]))
    call = engine.bind({"f_hat": f_hat}, {"image": image})
    image.read()
    call.run()
    assert len(emulation.host.streams[backend.cuda.stream]) == 1
    assert image.read().any()


def test_one_run_in_many_waits_so_that_its_memory_comes_back(emulate, demo_both_bundle):
    emulation = emulate()
    engine = emulation.load(demo_both_bundle, form="stepwise").backend.open(Bundle.open(demo_both_bundle), "decode")
    backend = engine._backend
    f_hat, image = (backend.buffer((1, *info.shape[1:]), info.dtype) for info in (engine.inputs[0], engine.outputs[0]))
    call = engine.bind({"f_hat": f_hat}, {"image": image})
    for _ in range(2 * runner.WAIT_EVERY):
        call.run()
    assert emulation.ort.waits == 2


# --- what the providers are given -----------------------------------------------------------------------------------


def test_options_of_the_cuda_provider(emulate, demo_both_bundle):
    emulation = emulate()
    stream = emulation.load(demo_both_bundle, form="fused").backend.cuda.stream
    assert emulation.options() == {
        CUDA: {
            "user_compute_stream": str(stream),
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
    }


def test_another_gpu_is_named_and_bound(emulate, demo_both_bundle):
    emulation = emulate(devices=3)
    with emulation.backend(device=2) as backend:
        engine = backend.open(Bundle.open(demo_both_bundle), "cond")
        assert emulation.options()[CUDA]["device_id"] == "2"
        buffers = [
            {info.name: backend.buffer((2, *info.shape[1:]), info.dtype) for info in infos}
            for infos in (engine.inputs, engine.outputs)
        ]
        engine.bind(*buffers).run()


def test_tensorrt_compiles_for_all_scales_and_leaves_the_rest_to_cuda(emulate, demo_both_bundle, tmp_path):
    emulation = emulate(left_by_tensorrt={"TopK"})
    pipeline = emulation.load(demo_both_bundle, "tensorrt", form="stepwise")
    step = next(s for s in emulation.ort.sessions if "past_k_0" in s.inputs)
    (first, options), (second, _) = step.registered
    assert (first, second) == (TENSORRT, CUDA)
    config = pipeline.config
    width, last = config.transformer.width, config.num_scales - 1
    head = f"{config.transformer.heads}x{config.transformer.head_dim}"
    longest, cached = config.scale_lengths[last], config.scale_offsets[last]
    ends = {end: dict(part.split(":") for part in options[f"trt_profile_{end}_shapes"].split(",")) for end in
            ("min", "opt", "max")}  # fmt: skip
    assert [ends[end]["x"] for end in ends] == [f"1x1x{width}", f"2x{longest}x{width}", f"16x{longest}x{width}"]
    assert [ends[end]["past_k_0"] for end in ends] == [f"0x1x{head}", f"{cached}x2x{head}", f"{cached}x16x{head}"]
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert options["trt_engine_cache_path"].startswith(str(tmp_path))
    assert "has_user_compute_stream" not in options  # tensorrt refuses it
    nodes = pipeline.describe_runtime()["nodes"]["step"]
    assert nodes[TENSORRT] > nodes[CPU] > nodes[CUDA] == 1


def test_a_compiled_graph_holds_some_batches_only(emulate, demo_both_bundle, on_cpu):
    emulation = emulate()
    pipeline = emulation.load(demo_both_bundle, "tensorrt", form="stepwise", max_batch=32)
    assert pipeline.max_batch == 8
    step = pipeline._engines.open("step")
    assert step.shape_for(3, 6) == (3, 6)
    with pytest.raises(BackendError, match="9 images are more than provider 'tensorrt' builds the step graph for"):
        step.shape_for(9, 9)
    with pytest.raises(BackendError, match="17 rows"):
        step.shape_for(8, 17)

    fused = emulation.load(demo_both_bundle, "tensorrt", form="fused")
    assert fused.max_batch == 1
    expected = on_cpu["fused"].generate([3, 4], seeds=1, cfg=0.0)
    np.testing.assert_array_equal(fused.generate([3, 4], seeds=1, cfg=0.0).tokens, expected.tokens)


def test_engines_of_other_weights_are_kept_elsewhere(emulate, demo_both_bundle, tmp_path):
    other = copy_bundle(demo_both_bundle, tmp_path / "other")
    with (other / "weights.bin").open("ab") as file:
        file.write(bytes(4096))
    reseal(other)

    def folder(path):
        emulation = emulate()
        emulation.load(path, "tensorrt", form="stepwise")
        return emulation.options(0)[TENSORRT]["trt_engine_cache_path"]

    assert folder(demo_both_bundle) == folder(demo_both_bundle) != folder(other)


def test_without_a_cache_folder_it_is_built_anew(emulate, demo_both_bundle, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    emulation = emulate()
    emulation.load(demo_both_bundle, "tensorrt", form="fused")
    assert "trt_profile_opt_shapes" in emulation.options()[TENSORRT]
    assert "trt_engine_cache_path" not in emulation.options()[TENSORRT]
    assert "built anew" in caplog.text


@pytest.mark.parametrize(("provider", "set_by_user", "value"), [("tensorrt", None, "0"), ("tensorrt", "1", "1")])
def test_fp32_is_not_rounded_by_a_compiler(provider, set_by_user, value, emulate, monkeypatch):
    if set_by_user:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", set_by_user)
    import os

    with emulate().backend(provider):
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == value


@pytest.fixture
def rtx_plugin(monkeypatch):
    module = library.PLUGINS["nv_tensorrt_rtx"].module
    plugin = types.ModuleType(module)
    plugin.__spec__ = importlib.machinery.ModuleSpec(module, None)
    plugin.get_ep_name, plugin.get_library_path = lambda: RTX, lambda: "/plugin.so"
    monkeypatch.setitem(sys.modules, module, plugin)


def test_tensorrt_rtx_is_a_plugin(emulate, rtx_plugin, demo_both_bundle, on_cpu):
    emulation = emulate(providers=(), devices=2)
    pipeline = emulation.load(demo_both_bundle, "nv_tensorrt_rtx", form="stepwise")
    assert emulation.ort.plugins == [(RTX, "/plugin.so")]  # once for all sessions
    options = emulation.options()[RTX]
    assert options["has_user_compute_stream"] == "1"
    assert {"nv_profile_min_shapes", "nv_profile_max_shapes", "nv_runtime_cache_path"} < set(options)
    expected = on_cpu["stepwise"].generate([3, 4], seeds=1)
    np.testing.assert_array_equal(pipeline.generate([3, 4], seeds=1).images, expected.images)


def test_tensorrt_rtx_without_a_card_of_its_own(emulate, rtx_plugin, demo_both_bundle, monkeypatch):
    emulation = emulate(providers=())
    monkeypatch.setattr(emulation.ort, "get_ep_devices", list)
    assert "has no GPU 0: it can use 0 here" in refused(emulation, demo_both_bundle, "nv_tensorrt_rtx")


# --- nothing runs elsewhere -----------------------------------------------------------------------------------------


def refused(emulation, path, provider="cuda", graph="decode"):
    with emulation.backend(provider) as backend, pytest.raises(BackendError) as caught:
        backend.open(Bundle.open(path), graph)
    return one_line(caught)


def test_computation_on_the_cpu_is_refused(emulate, demo_both_bundle):
    message = refused(emulate(on_cpu={"Conv", "Softmax"}), demo_both_bundle)
    assert f"{CUDA} was asked for, but ONNX Runtime 1.31.1 would run Conv, Softmax of decode.onnx on the CPU" in message
    assert 'pip install "onnxruntime-gpu>=1.27"' in message


def test_a_provider_that_takes_nothing_is_refused(emulate, demo_both_bundle):
    message = refused(emulate(left_by_tensorrt=None), demo_both_bundle, "tensorrt")
    assert message.startswith(f"{TENSORRT} was asked for, but took nothing of decode.onnx; {CUDA}")


def test_a_session_on_the_cpu_is_refused(emulate, demo_both_bundle, monkeypatch):
    emulation = emulate()
    monkeypatch.setattr(emulation.ort.InferenceSession, "get_providers", lambda self: [CPU])
    message = refused(emulation, demo_both_bundle)
    assert f"{CUDA} was asked for, but ONNX Runtime runs decode.onnx on {CPU}" in message


def test_an_input_that_would_be_copied_once_is_refused(emulate, demo_both_bundle):
    """ONNX Runtime copies it when it is bound; what is written to it later would not be seen."""
    message = refused(emulate(wanted_on_cpu={"top_k"}), demo_both_bundle, graph="step")
    assert "wants top_k of step.onnx in Cpu memory, not on GPU 0" in message


def test_bf16_is_refused_in_one_line(emulate, tmp_path):
    path = hollow_bundle(tmp_path / "bf16", tiny_config(), precision="bf16")
    assert "is in BF16" in refused(emulate(), path)
    with backends.create("onnxruntime") as backend, pytest.raises(BackendError, match="TensorRT plans") as caught:
        backend.open(Bundle.open(path), "step")
    one_line(caught)


# --- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_command('gpu')}"),
        ("nv_tensorrt_rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_missing_provider_says_what_to_install(provider, install, emulate):
    emulation = emulate(providers=())
    with pytest.raises(BackendError) as caught:
        OnnxRuntimeBackend(provider, module=emulation.ort)
    assert one_line(caught).endswith(install)
    assert CPU in one_line(caught)


def test_an_onnx_runtime_that_does_not_say_what_runs_where(emulate, monkeypatch):
    emulation = emulate()
    monkeypatch.setattr(emulation.ort, "InferenceSession", object)
    monkeypatch.setattr(emulation.ort, "__version__", "1.23.2", raising=False)
    with pytest.raises(BackendError, match=r"ONNX Runtime 1\.23\.2 does not say .*onnxruntime-gpu>=1\.27"):
        OnnxRuntimeBackend("cuda", module=emulation.ort)


@pytest.mark.parametrize(
    ("said", "cudnn", "named"),
    [
        ("Failed to load /x/libcublasLt.so.13: cannot open\nFailed to load libcudart.so.13: no\n", True, "libcublasLt"),
        ("", False, "libcudnn"),
        ("", True, None),
    ],
)
def test_missing_cuda_libraries(said, cudnn, named, emulate, monkeypatch):
    emulation = emulate()
    monkeypatch.setattr(emulation.ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(emulation.ort, "preload_dlls", lambda: print(said, end=""), raising=False)
    monkeypatch.setattr(library, "CUDNN", ctypes.util.find_library("c") if cudnn else "libcudnn.so.none")
    if named is None:
        emulation.backend().close()
        return
    with pytest.raises(BackendError) as caught:
        emulation.backend()
    message = one_line(caught)
    assert f"ONNX Runtime 1.31.1 is built for CUDA 13.0 and cannot load {named}" in message
    assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in message


def test_what_the_loader_says_of_a_provider_is_passed_on(emulate, monkeypatch, tmp_path, demo_both_bundle):
    emulation = emulate()
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").write_text("no library")
    monkeypatch.setattr(emulation.ort, "__file__", str(tmp_path / "__init__.py"), raising=False)
    monkeypatch.setattr(emulation.ort.InferenceSession, "get_providers", lambda self: [CPU])
    assert "libonnxruntime_providers_cuda.so: " in refused(emulation, demo_both_bundle)


# --- errors and the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "Exception during initialization: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* "
            "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory "
            "for requested buffer of size 589824",
            OutOfMemoryError,
        ),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", OutOfMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered", BackendError),
    ],
)
def test_what_a_run_throws_is_translated(text, kind, emulate, demo_both_bundle):
    emulation = emulate()
    pipeline = emulation.load(demo_both_bundle, form="stepwise")
    emulation.ort.failing = RuntimeError(text)
    with pytest.raises(BackendError) as caught:
        pipeline.generate(3)
    assert type(caught.value) is kind
    assert "bfc_arena.cc" not in one_line(caught)
    assert ("lower the batch size" in one_line(caught)) == (kind is OutOfMemoryError)


def test_a_closed_engine_says_so(emulate, demo_both_bundle):
    emulation = emulate()
    pipeline = emulation.load(demo_both_bundle, form="stepwise")
    with pipeline._engines._spaces.borrow(("any",), lambda: None):
        engine = pipeline._engines.open("decode")
        buffers = [
            {info.name: pipeline.backend.buffer((1, *info.shape[1:]), info.dtype) for info in infos}
            for infos in (engine.inputs, engine.outputs)
        ]
        call = engine.bind(*buffers)
        engine.close()
        for use in (call.run, lambda: engine.bind(*buffers)):
            with pytest.raises(BackendError, match="the decode engine is closed"):
                use()
    pipeline.close()
    pipeline.backend.close()


def test_the_gpu_is_described(emulate, demo_both_bundle):
    facts = emulate().load(demo_both_bundle, form="stepwise").describe_runtime()
    assert facts["provider"] == CUDA
    assert facts["onnxruntime"] == "1.31.1"
    assert {"gpu", "compute_capability", "gpu_memory", "cuda"} <= set(facts)
    assert facts["nodes"]["decode"] == {CUDA: facts["nodes"]["decode"][CUDA]}
    assert facts["nodes"]["step"][CPU] > 0
