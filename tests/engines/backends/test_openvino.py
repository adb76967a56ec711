"""OpenVINO beside ONNX Runtime: the same tokens from the same bundles, alone and in any batch."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support import copy_bundle

from engines.backends import asked_for, create, for_bundle
from engines.backends.openvino import OpenVinoBackend
from engines.backends.openvino.arithmetic import saturates
from engines.backends.openvino.library import import_openvino
from engines.backends.openvino.rewrite import rewrite
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, BundleError, CheckFailedError
from engines.packages import install_command
from engines.spec.choices import INT8, PRECISION_HINTS

openvino = import_openvino()


@pytest.fixture(scope="module")
def pipeline():
    with Pipeline.load(DEMO_BUNDLE, backend="openvino", threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def other():
    with Pipeline.load(DEMO_BUNDLE, backend="onnxruntime", threads=1) as pipeline:
        yield pipeline


def alike(ours, theirs):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert np.abs(ours.images.astype(int) - theirs.images).max() <= 1


def test_it_draws_what_onnx_runtime_draws(pipeline, other):
    asked = {"classes": [88, 3, 171, 5, 9], "seeds": [1, 2, 3, 4, 5], "cfg": [1.0, 0.0, 4.0, 2.0, 1.5]}
    alike(pipeline.generate(**asked), other.generate(**asked))
    for k in range(2):  # of another shape, and of the first one again
        for images in (1, 5):
            few = {name: values[k : k + images] for name, values in asked.items()}
            alike(pipeline.generate(**few), other.generate(**few))


def test_guidance_that_ends_early_ends_alike(pipeline, other):
    asked = {"classes": [88, 3, 5], "seeds": [1, 2, 3], "cfg": [3.0, 0.0, 2.0], "cfg_scales": [5, 1, 3]}
    for _ in range(2):
        alike(pipeline.generate(**asked), other.generate(**asked))
        alike(pipeline.generate(88, seeds=1, cfg=3.0, cfg_scales=5), other.generate(88, seeds=1, cfg=3.0, cfg_scales=5))


def test_it_previews_edits_encodes_and_decodes_alike(pipeline, other):
    for ours, theirs in zip(pipeline.stream([88, 3], seeds=7), other.stream([88, 3], seeds=7), strict=True):
        alike(ours, theirs)
    picture = other.generate(88).images
    np.testing.assert_array_equal(pipeline.encode(picture), other.encode(picture))
    lower = np.arange(8)[:, None].repeat(8, 1) >= 4
    alike(pipeline.edit(picture, lower, [3, 4], seeds=1), other.edit(picture, lower, [3, 4], seeds=1))
    assert np.abs(pipeline.reconstruct(picture).astype(int) - other.reconstruct(picture)).max() <= 1


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_bundles_of_other_kinds(demo_both_bundle, form):
    with (
        Pipeline.load(demo_both_bundle, backend="openvino", threads=1, form=form) as ours,
        Pipeline.load(demo_both_bundle, threads=1, form=form) as theirs,
    ):
        alike(ours.generate([88, 3], seeds=1), theirs.generate([88, 3], seeds=1))


def test_an_int8_bundle_keeps_its_thresholds_on_any_processor(demo_int8_bundle, monkeypatch):
    with Pipeline.load(demo_int8_bundle, backend="openvino", threads=1, check="always") as pipeline:
        pipeline.encode(pipeline.generate(88).images)
        assert pipeline.backend.arithmetic() == {"saturates": saturates(openvino)}
        assert ("int8" in pipeline.describe_runtime()) == saturates(openvino)
    monkeypatch.setattr("engines.backends.openvino.runner.saturates", lambda _: False)
    if not saturates(openvino):
        pytest.skip("8-bit products are exact here")
    with pytest.raises(CheckFailedError, match="OpenVINO computes something else here: take --backend onnxruntime"):
        Pipeline.load(demo_int8_bundle, backend="openvino", threads=1, check="always")


def test_auto_takes_what_is_there(other):
    with Pipeline.load(DEMO_BUNDLE, backend="openvino", device="AUTO", threads=1) as pipeline:
        alike(pipeline.generate([88, 3], seeds=1), other.generate([88, 3], seeds=1))


def test_threads_share_a_pipeline(pipeline, other):
    wanted = [other.generate([k, k + 1], seeds=k) for k in range(4)]
    drawn = {}
    threads = [
        threading.Thread(target=lambda k=k: drawn.__setitem__(k, pipeline.generate([k, k + 1], seeds=k)))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        alike(drawn[k], wanted[k])


def test_it_says_what_it_is(pipeline):
    described = pipeline.describe_runtime()
    assert (described["backend"], described["provider"], described["threads"]) == ("openvino", "CPU", 1)
    assert described["openvino"] == openvino.__version__.split("-")[0]


def test_what_is_missing_is_one_line(monkeypatch, demo_bf16_bundle):
    with pytest.raises(BackendError, match="finds no XPU here; it has CPU"):
        OpenVinoBackend("XPU")
    with pytest.raises(BackendError, match=r"devices of OpenVINO have names: CPU, GPU, AUTO or GPU\.1, not 0"):
        create("openvino", device=0)
    with pytest.raises(BackendError, match="an NPU takes graphs of fixed shapes alone"):
        create("openvino", device="NPU")
    with pytest.raises(TypeError, match="thraeds is no option of a backend: they are provider, threads, device, "):
        create("openvino", thraeds=1)
    with pytest.raises(TypeError, match="providr is no option of a backend"):
        for_bundle(Bundle.open(DEMO_BUNDLE), providr="cuda")
    with create("openvino", device="cpu", threads=1) as backend:
        assert backend.provider == "CPU"
    with pytest.raises(BackendError, match="provider cuda is one of ONNX Runtime's"):
        create("openvino", provider="cuda")
    with pytest.raises(BackendError, match="openvino is a backend of its own: --backend openvino"):
        create("onnxruntime", provider="openvino")
    with pytest.raises(BackendError, match="device GPU is a name of OpenVINO's, and onnxruntime counts them from 0"):
        create("onnxruntime", device="GPU")
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(BackendError, match="threads must be 1 or more"):
            create(backend, threads=0)
        with pytest.raises(BackendError, match="threads must be at most 1024, got 99999999999"):
            create(backend, threads=99999999999)
    with pytest.raises(BackendError, match="a precision hint is one of f32, bf16, f16, got 'fp16'"):
        create("openvino", precision_hint="fp16")
    with pytest.raises(BackendError, match="AUTO does not say what it computes in: name the device"):
        create("openvino", device="AUTO", precision_hint="f16")
    with pytest.raises(BackendError, match="precision hint f32 is for OpenVINO, not for onnxruntime"):
        create("onnxruntime", precision_hint="f32")
    with create("openvino") as backend, pytest.raises(BackendError, match="is for TensorRT: build one"):
        backend.open(Bundle.open(demo_bf16_bundle), "step")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError) as caught:
        create("openvino")
    assert str(caught.value).endswith(install_command("openvino"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="threads must be 1 or more"):  # and not: no runtime is installed
        for_bundle(Bundle.open(DEMO_BUNDLE), threads=0)


class Compiled:
    """A model as a device compiles it that has half precision."""

    def __init__(self, taken):
        self._taken = taken

    def get_property(self, name):
        return {"INFERENCE_PRECISION_HINT": self._taken}[name]


def with_device(backend, monkeypatch, taken):
    """The backend on a device that takes another hint than was asked; what it was asked for."""
    asked = []

    class Core:
        def read_model(self, path):
            return openvino.Core().read_model(path)

        def compile_model(self, model, device, options):
            asked.append(options)
            return Compiled(taken)

    monkeypatch.setattr(backend, "_core", Core())
    return asked


@pytest.mark.parametrize("hint", [None, *PRECISION_HINTS])
def test_a_precision_is_computed_or_refused(hint, monkeypatch):
    bundle = Bundle.open(DEMO_BUNDLE)
    wanted = hint or "f32"
    for taken in PRECISION_HINTS:
        with create("openvino", precision_hint=hint) as backend:
            asked = with_device(backend, monkeypatch, getattr(openvino.Type, taken))
            if taken == wanted:
                backend.open(bundle, "step")
            else:
                with pytest.raises(
                    BackendError, match=f"{wanted} was asked for, but OpenVINO's CPU computes in {taken}"
                ):
                    backend.open(bundle, "step")
            assert [options["INFERENCE_PRECISION_HINT"] for options in asked] == [wanted]


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16", "wanted"),
    [
        ("int8", "CPU", True, "bf16"),
        ("int8", "CPU", False, "f32"),
        ("int8", "AUTO", True, "f32"),
        ("fp32", "CPU", True, "f32"),
    ],
)
def test_int8_takes_bfloat16_beside_it_where_there_is_one(precision, device, has_bf16, wanted, monkeypatch, request):
    bundle = Bundle.open(request.getfixturevalue(f"demo_{precision}_bundle"))
    with create("openvino", device=device) as backend:
        monkeypatch.setattr(backend, "_has_bf16", has_bf16)
        monkeypatch.setattr("engines.backends.openvino.runner.saturates", lambda _: False)
        asked = with_device(backend, monkeypatch, getattr(openvino.Type, wanted))
        assert backend.describe()["hint"] == "f32"
        backend.open(bundle, "step")
        assert [options["INFERENCE_PRECISION_HINT"] for options in asked] == [wanted]
        assert backend.describe()["hint"] == wanted
        assert backend.judged_as(bundle) == precision
        assert ("take --precision-hint f32" in backend.remedy(bundle)) == (wanted == "bf16")


def test_half_precision_is_judged_as_such(demo_int8_bundle, demo_fp32_bundle):
    demo, whole, int8 = map(Bundle.open, (DEMO_BUNDLE, demo_fp32_bundle, demo_int8_bundle))
    assert (demo.precision, whole.precision, int8.precision) == ("fp16", "fp32", INT8)
    for hint, judged in ((None, "fp16 fp32 int8"), ("f16", "fp16 fp16 int8"), ("bf16", "bf16 bf16 int8")):
        with create("openvino", precision_hint=hint) as backend:
            assert [backend.judged_as(bundle) for bundle in (demo, whole, int8)] == judged.split()
            assert backend.describe()["hint"] == (hint or "f32")
    with create("onnxruntime") as backend:
        assert backend.judged_as(int8) == INT8


def test_compiled_models_are_kept_for_devices_that_compile_long(tmp_path, monkeypatch, other):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "var-export" / "kernels" / "openvino"
    options = {"backend": "openvino", "threads": 1, "check": "never"}
    for device in ("CPU", "AUTO", "AUTO"):
        with Pipeline.load(DEMO_BUNDLE, device=device, **options) as pipeline:
            alike(pipeline.generate(3, seeds=1), other.generate(3, seeds=1))
            assert kept.exists() == (device == "AUTO")
    blobs = sorted(kept.rglob("*.blob"))
    assert len({blob.parent for blob in blobs}) == 3  # graphs: cond, step and decode
    for blob in blobs:  # as of a process that was killed
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    with Pipeline.load(DEMO_BUNDLE, device="AUTO", **options) as pipeline:
        alike(pipeline.generate(3, seeds=1), other.generate(3, seeds=1))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with Pipeline.load(DEMO_BUNDLE, device="AUTO", **options):
        pass


def test_options_that_only_one_backend_has_choose_it(monkeypatch):
    assert asked_for() is asked_for(threads=2, device=1) is None
    assert asked_for(device="AUTO") == asked_for(precision_hint="f32") == "openvino"
    assert asked_for(provider="cuda") == "onnxruntime"
    bundle = Bundle.open(DEMO_BUNDLE)
    with for_bundle(bundle, device="AUTO", threads=1) as backend:
        assert (backend.name, backend.provider) == ("openvino", "AUTO")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with for_bundle(bundle, threads=1) as backend:
        assert (backend.name, backend.provider) == ("openvino", "CPU")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="no ONNX Runtime is installed"):
        for_bundle(bundle)


def test_what_it_throws_when_it_starts_is_one_line_too():
    class Module:
        __version__ = "1"

        def Core(self):
            raise RuntimeError("Exception from src/x.cpp:1:\nno plugins.xml\n")

    with pytest.raises(BackendError, match=r"^OpenVINO failed while starting: no plugins\.xml$"):
        OpenVinoBackend(module=Module())


@pytest.mark.parametrize("writable", [True, False])
def test_a_bundle_of_links_runs(tmp_path, other, writable, monkeypatch):
    home = tmp_path / "home" if writable else Path("/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    linked = copy_bundle(DEMO_BUNDLE, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for number, file in enumerate(sorted(linked.iterdir())):
        blob = file.rename(linked / str(number))
        (tmp_path / "snapshot" / file.name).symlink_to(blob)
    with Pipeline.load(tmp_path / "snapshot", backend="openvino", threads=1) as pipeline:
        alike(pipeline.generate(3, seeds=1), other.generate(3, seeds=1))
        assert len(list(home.rglob("weights.bin"))) == writable
    assert list(home.rglob("weights.bin")) == []


def test_a_bundle_that_was_replaced_is_not_mixed(tmp_path):
    bundle = Bundle.open(copy_bundle(DEMO_BUNDLE, tmp_path / "a"))
    copy_bundle(DEMO_BUNDLE, tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "b").rename(tmp_path / "a")
    with create("openvino") as backend, pytest.raises(BundleError, match="was replaced since it was opened"):
        backend.open(bundle, "step")


def test_what_it_throws_is_one_line_of_ours():
    from engines.backends.openvino.library import translated

    raised = RuntimeError("Exception from src/x.cpp:224:\nException from src/y.cpp:1:\n[CPU] MatMul: shapes\n\n")
    assert str(translated(raised, "running step")) == "OpenVINO failed while running step: [CPU] MatMul: shapes"
    assert "lower the batch size" in str(translated(RuntimeError("std::bad_alloc"), "running step"))


def rewritten(bundle, graph):
    """A graph as it is read, and as it is compiled."""
    models = [openvino.Core().read_model(Bundle.open(bundle).graph_path(graph, cpu=True)) for _ in range(2)]
    rewrite(openvino, models[1], graph)
    return models


def of_kind(model, kind):
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def names_before(nodes):
    """What makes the first input of each."""
    return [node.input_value(0).get_node().get_type_name() for node in nodes]


def turns(model):
    return [list(node.input_value(1).get_node().get_vector()) for node in of_kind(model, "Transpose")]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_keys_are_read_by_rows_and_computed_in_the_hint(precision, request):
    plain, made = rewritten(request.getfixturevalue(f"demo_{precision}_bundle"), "step")
    depth = Bundle.open(DEMO_BUNDLE).config.transformer.depth
    assert turns(plain).count([1, 2, 3, 0]) == depth
    assert turns(made).count([1, 2, 3, 0]) == 0
    assert turns(made).count([1, 2, 0, 3]) == turns(plain).count([1, 2, 0, 3]) + depth
    marked = [node for node in made.get_ordered_ops() if "enforceBF16evenForGraphTail" in node.get_rt_info()]
    assert sum(node.get_type_name() == "ReduceL2" for node in marked) == depth  # those of the keys
    assert not {"MatMul", "TopK", "Softmax"} & {node.get_type_name() for node in marked}


def test_layers_are_quantised_where_something_computes_their_input(demo_int8_bundle):
    plain, made = (names_before(of_kind(model, "FakeQuantize")) for model in rewritten(demo_int8_bundle, "step"))
    depth = Bundle.open(DEMO_BUNDLE).config.transformer.depth
    assert (plain.count("Reshape"), made.count("Reshape")) == (2 * depth, depth)  # proj's input is transposed before
    assert len(plain) == len(made)


def test_convolutions_are_not_rounded(demo_int8_bundle, demo_fp32_bundle):
    plain, made = rewritten(demo_int8_bundle, "decode")
    counts = [names_before(of_kind(model, "FakeQuantize")).count("Add") for model in (plain, made)]
    assert counts[0] > 3 * counts[1]
    assert len(of_kind(plain, "Convolution")) == len(of_kind(made, "Convolution"))
    whole, _ = rewritten(demo_fp32_bundle, "decode")
    features = Bundle.open(demo_fp32_bundle).golden["f_hat"][:1]
    options = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "OFF"}
    images = [
        openvino.Core().compile_model(model, "CPU", options)({0: features})[0].astype(float)
        for model in (whole, plain, made)
    ]
    errors = [np.square(image - images[0]).mean() for image in images]
    assert 0 < errors[2] < 0.75 * errors[1]
