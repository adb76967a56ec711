"""What lies in a repository: configurations that Triton's own schema takes, and files that are whole and ours."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.bundle.plans import PlanFile, PlanSet, Platform
from engines.draw.batch import fused_inputs
from engines.draw.pipeline import Pipeline
from engines.draw.request import make_request
from engines.errors import BackendError, UsageError
from engines.triton.wire import INPUTS, OUTPUTS, STREAM_OUTPUTS, unpack_facts
from engines.triton.writing.pbtxt import Serving, pbtxt
from engines.triton.writing.repository import MARK, plan_python, write
from engines.triton.writing.stock import plan_stock
from tests.support import as_links

demo = Bundle.open(DEMO_BUNDLE)


def parse(text):
    """By NVIDIA's schema: unknown fields and wrong types are errors."""
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_configurations_of_both_models():
    serving = Serving(name="emoji", max_batch=4, queue_size=9, queue_seconds=2.5, instances=3, cache=True)
    unary, stream = (parse(model.texts["config.pbtxt"]) for model in plan_python(demo, serving))
    assert (unary.name, stream.name) == ("emoji", "emoji_stream")
    for config, outputs in ((unary, OUTPUTS), (stream, STREAM_OUTPUTS)):
        assert config.backend == "python"
        assert config.max_batch_size == 4
        assert [(entry.name, entry.optional, list(entry.dims)) for entry in config.input] == [
            (tensor.name, True, {"picture": [64, 64, 3], "redrawn": [8, 8]}.get(tensor.name, [1])) for tensor in INPUTS
        ]
        assert [entry.name for entry in config.output] == [tensor.name for tensor in outputs]
        assert list(config.output[0].dims) == [64, 64, 3]
    assert list(unary.output[1].dims) == [155]
    assert unary.response_cache.enable
    assert not stream.response_cache.enable, "Triton has no cache for models with several responses"
    assert stream.model_transaction_policy.decoupled
    assert not unary.model_transaction_policy.decoupled
    assert [group.count for group in stream.instance_group] == [3]
    policy = stream.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds, policy.timeout_action) == (9, 2_500_000, 0)
    assert policy.allow_timeout_override
    assert sorted(warm.batch_size for warm in stream.model_warmup) == [1, 4]
    assert int(unary.parameters["workers"].string_value) > 9 + 3 * 4


def test_a_configuration_carries_the_facts_of_the_bundle():
    config = parse(plan_python(demo, Serving())[0].texts["config.pbtxt"])
    facts = unpack_facts(config.parameters["manifest"].string_value, "here")
    assert (facts.labels, facts.config, facts.sampling) == (demo.labels, demo.config, demo.sampling)
    assert facts.build_key == demo.build_key
    assert not facts.provenance, "of the machine that built it"


def test_text_is_quoted():
    text = pbtxt({"parameters": {"key": "k", "value": {"string_value": 'a "b"\\\n\tü'}}})
    assert parse(text).parameters["k"].string_value == 'a "b"\\\n\tü'


def test_documentation_has_the_table_of_tensors():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs/triton-protocol.md").read_text(encoding="utf-8")
    rows = [
        f"| {kind} | `{tensor.name}` | {tensor.dtype} | ({', '.join(('n', *tensor.dims))}) | {tensor.meaning} |"
        for kind, tensors in (("in", INPUTS), ("out", OUTPUTS), ("out, stream", STREAM_OUTPUTS))
        for tensor in tensors
    ]
    assert re.findall(r"^\| (?:in|out).*\|$", page, re.MULTILINE) == rows


def files(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_repository_is_whole_and_may_be_written_again(tmp_path):
    models = plan_python(demo, Serving())
    (tmp_path / "models/another").mkdir(parents=True)
    assert write(models, tmp_path / "models") == [tmp_path / "models/var", tmp_path / "models/var_stream"]
    first = files(tmp_path / "models")
    assert Bundle.open(tmp_path / "models/var_stream/bundle").build_key == demo.build_key
    (tmp_path / "models/var_stream/1/engines/__pycache__").mkdir()  # a server ran
    (tmp_path / "models/var_stream/1/engines/__pycache__/x.pyc").write_bytes(b"x")
    write(models, tmp_path / "models")
    assert files(tmp_path / "models") == first
    assert sorted(entry.name for entry in (tmp_path / "models").iterdir()) == ["another", "var", "var_stream"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"], "nothing is left beside it"


@pytest.mark.slow
def test_the_code_in_it_runs_without_this_checkout(tmp_path):
    """As in a server's Python: no var_export, no click; the copied package is enough to draw."""
    write(plan_python(demo, Serving()), tmp_path)
    script = """
import sys
sys.path.insert(0, "var_stream/1")
from pathlib import Path
import engines
assert Path(engines.__file__).is_relative_to(Path.cwd()), engines.__file__
from engines.triton.serving.service import Service
service = Service.load(Path("var_stream/bundle"), lambda *_: None, max_batch=2)
service.close()
import engines.triton.serving.adapter
assert not {"click", "PIL", "var_export", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)


def test_what_is_not_ours_is_never_replaced(tmp_path):
    models = plan_python(demo, Serving())
    (tmp_path / "var_stream").mkdir()
    (tmp_path / "var_stream/config.pbtxt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"var_stream exists and was not written by this command"):
            write(models, tmp_path, overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["var_stream"]
    assert (tmp_path / "var_stream/config.pbtxt").read_text() == "mine"


def test_edits_and_added_files_are_kept(tmp_path):
    models = plan_python(demo, Serving())
    write(models, tmp_path)
    config = tmp_path / "var/config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    with pytest.raises(UsageError, match=r"config.pbtxt was edited since.*--overwrite"):
        write(models, tmp_path)
    assert "# mine" in config.read_text()
    write(models, tmp_path, overwrite=True)
    assert "# mine" not in config.read_text()
    (tmp_path / "var/1/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"notes.txt was not written by this command: move it"):
            write(models, tmp_path, overwrite=overwrite)


def test_a_failure_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    models = plan_python(demo, Serving())
    write(models, tmp_path / "models")
    before = files(tmp_path / "models")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engines.triton.writing.repository.link_or_copy", full)
    with pytest.raises(UsageError, match="No space left on device; choose another --repository"):
        write(models, tmp_path / "models")
    assert files(tmp_path / "models") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "x" * 101, "ü"])
def test_names_that_cannot_be(name):
    with pytest.raises(UsageError, match="no name for a model"):
        plan_python(demo, Serving(name=name))


# --- the fused graph on stock backends --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(demo_both_bundle):
    return Bundle.open(demo_both_bundle)


@pytest.mark.slow
def test_onnxruntime_gets_the_fused_graph(both, tmp_path):
    config = parse(plan_stock(both, "onnxruntime", name="var_fused").texts["config.pbtxt"])
    assert (config.backend, config.platform, config.max_batch_size) == ("onnxruntime", "onnxruntime_onnx", 0)
    write([plan_stock(both, "onnxruntime", name="var_fused")], tmp_path)
    assert {f"1/{config.default_model_filename}", "1/weights.bin", "config.pbtxt", MARK} == set(
        files(tmp_path / "var_fused")
    )
    # What Triton's backend would do with it: ONNX Runtime by these names, types and shapes.
    import onnxruntime

    session = onnxruntime.InferenceSession(
        tmp_path / "var_fused/1" / config.default_model_filename, providers=["CPUExecutionProvider"]
    )
    types = {1: "bool", 2: "uint8", 9: "int64", 11: "float"}  # of model_config.proto
    for entries, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert {entry.name: f"tensor({types[entry.data_type]})" for entry in entries} == {
            node.name: node.type for node in nodes
        }
        for entry, node in zip(entries, nodes, strict=True):
            assert list(entry.dims) == [size if isinstance(size, int) else -1 for size in node.shape], entry.name
    request = make_request(both, [88, 3], seeds=[1, 2], cfg=[2.0, 0.0])
    tokens = session.run(["tokens"], fused_inputs(request.batch(both.config, slice(None)), both.tensors("fused")[0]))[0]
    with Pipeline.load(both.path) as pipeline:
        wanted = pipeline.generate([88, 3], seeds=[1, 2], cfg=[2.0, 0.0])
    # Other settings of ONNX Runtime round otherwise, so that a draw here and there crosses an edge.
    assert (tokens == wanted.tokens).mean() > 0.95


def with_plans(bundle, *sets):
    """The bundle as if it had TensorRT plans of the fused graph: (compute capability, built from another graph)."""
    plans = []
    for number, (capability, stale) in enumerate(sets):
        file = PlanFile(
            file=f"plans/p{number}/fused.plan", size=3, sha256="", batch=(1, 1, 8), rows=(1, 2, 16), profiles=1,
            seconds=1.0, onnx_sha256="old" if stale else bundle.files["fused.onnx"].sha256,
        )  # fmt: skip
        machine = Platform(
            target="tensorrt", version="10.3.0", cuda="12", system="Linux", gpu="GPU", compute_capability=capability
        )
        plans.append(
            PlanSet(
                name=f"p{number}",
                key="",
                built_on=machine,
                precision="fp16",
                compute_capabilities=(capability,),
                hardware_compatibility="none",
                weight_streaming=False,
                weights_sha256=bundle.files["weights.bin"].sha256,
                options={},
                graphs={"fused": file},
            )
        )
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, plans=tuple(plans)), bundle.held)


def test_tensorrt_gets_a_plan_for_each_gpu(both):
    bundle = with_plans(both, ("8.7", False), ("8.9", False), ("9.0", True), ("8.7", False))
    model = plan_stock(bundle, "tensorrt", name="var_fused", gpu=1)
    config = parse(model.texts["config.pbtxt"])
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert dict(config.cc_model_filenames) == {"8.7": "sm87.plan", "8.9": "sm89.plan"}
    assert [(list(group.gpus), group.kind) for group in config.instance_group] == [([1], 1)]
    places = {place: source.relative_to(both.path).as_posix() for place, source in model.links.items()}
    assert places == {"1/sm87.plan": "plans/p3/fused.plan", "1/sm89.plan": "plans/p1/fused.plan"}, "the newest"


def test_stock_backends_say_what_they_need(both):
    with pytest.raises(UsageError, match="no fused graph: build with --form fused or both"):
        plan_stock(demo, "onnxruntime", name="x")
    with pytest.raises(UsageError, match=r"no TensorRT plans of the fused graph.*--target tensorrt"):
        plan_stock(both, "tensorrt", name="x")
    fused_only = Bundle(both.path, dataclasses.replace(both.manifest, form="fused"), both.held)
    with pytest.raises(UsageError, match="build with --form both, or serve that graph with --stock"):
        plan_python(fused_only, Serving())


def test_the_mark_lists_what_was_written(tmp_path):
    write(plan_python(demo, Serving(), embed=False), tmp_path)
    mark = json.loads((tmp_path / "var_stream" / MARK).read_text())
    assert {*mark["files"], *mark["bundle"]} == set(files(tmp_path / "var_stream")) - {MARK}
    shutil.rmtree(tmp_path / "var")
    write(plan_python(demo, Serving(), embed=False), tmp_path)


def test_a_repository_of_a_bundle_of_links_holds_files(demo_both_bundle, tmp_path):
    linked = Bundle.open(as_links(demo_both_bundle, tmp_path / "hub"))
    written = write([*plan_python(linked, Serving()), plan_stock(linked, "onnxruntime", name="x")], tmp_path / "models")
    bundle = written[1] / "bundle"
    assert {file.name for file in bundle.iterdir()} == {"manifest.json", *linked.files}
    stock = {"fused.onnx": "fused.cpu.onnx"}  # Triton's CPU computes FP16 bundles in FP32 as ours does
    for file in (*bundle.iterdir(), *(written[2] / "1").iterdir()):
        assert file.is_file()
        assert not file.is_symlink()
        name = file.name if file.parent == bundle else stock.get(file.name, file.name)
        assert file.read_bytes() == (demo_both_bundle / name).read_bytes()
    Bundle.open(bundle)


@pytest.mark.parametrize(
    ("settings", "packages"),
    [
        ({}, ["onnxruntime>=1.23"]),
        ({"provider": "cuda"}, ["onnxruntime-gpu>=1.27", "cuda-bindings>=12.8"]),
        ({"provider": "webgpu"}, ["onnxruntime>=1.24.4", "onnxruntime-ep-webgpu>=0.4"]),
        ({"device": "GPU"}, ["openvino>=2025.4"]),
        ({"precision_hint": "f16"}, ["openvino>=2025.4"]),
    ],
)
def test_a_server_installs_what_its_settings_need(settings, packages):
    models = {model.name: model for model in plan_python(Bundle.open(DEMO_BUNDLE), Serving(**settings))}
    lines = models["var_stream"].texts["requirements.txt"].splitlines()
    assert [line for line in lines if line and not line.startswith(("#", "numpy", "click", "pillow"))] == packages


def test_settings_that_a_server_would_refuse_are_refused_here():
    for settings in ({"backend": "onnxruntime", "precision_hint": "f16"}, {"backend": "tensorrt", "device": "GPU"}):
        with pytest.raises(BackendError, match="OpenVINO"):
            plan_python(Bundle.open(DEMO_BUNDLE), Serving(**settings))
