"""The bundle that ships inside the package: what the exporter of today would write, up to the graphs' contract."""

from __future__ import annotations

import json

import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.bundle.manifest import MANIFEST, Manifest
from engines.draw.pipeline import Pipeline
from engines.fidelity.checks import verify
from engines.spec.contract import CONTRACT_VERSION, GRAPHS, graphs_of
from engines.spec.golden_run import GOLDEN_ARRAYS
from engines.storage import digest_of
from var_export.checkpoint.load import demo_checkpoint

STALE = "the embedded demo bundle is stale: run `make demo-bundle` and commit it"


def test_embedded_bundle_is_not_stale():
    manifest = json.loads((DEMO_BUNDLE / MANIFEST).read_text(encoding="utf-8"))
    checkpoint = demo_checkpoint()
    assert manifest["contract"] == CONTRACT_VERSION, STALE
    assert manifest["graphs"] == json.loads(json.dumps(Manifest.read(DEMO_BUNDLE).to_dict()))["graphs"], STALE
    assert manifest["provenance"]["checkpoint"]["sha256"] == checkpoint.sha256, STALE
    assert manifest["model"] == checkpoint.config.to_dict(), STALE
    bundle = Bundle.open(DEMO_BUNDLE)
    assert set(bundle.golden) == set(GOLDEN_ARRAYS), STALE
    for name, spec in GOLDEN_ARRAYS.items():
        assert str(bundle.golden[name].dtype) == spec.dtype, f"{name}: {STALE}"


def test_embedded_graphs_have_the_contracts_tensors():
    """What the files themselves take and give, not what the manifest says of them."""
    import onnx

    bundle = Bundle.open(DEMO_BUNDLE)
    for name in graphs_of("stepwise"):
        inputs, outputs = bundle.tensors(name)
        graph = onnx.load(bundle.graph_path(name), load_external_data=False).graph
        assert [value.name for value in graph.input] == [info.name for info in inputs], (GRAPHS[name].name, STALE)
        assert [value.name for value in graph.output] == [info.name for info in outputs], (GRAPHS[name].name, STALE)


def test_embedded_graphs_are_what_todays_exporter_writes(demo_both_bundle):
    """What they compute and their weights, not the build key: most changes of the code that it covers change neither.

    (The golden run differs between processors in its last bits.)
    """
    import onnx

    embedded, fresh = Bundle.open(DEMO_BUNDLE), Bundle.open(demo_both_bundle)
    versions, here = (bundle.provenance["versions"] for bundle in (embedded, fresh))
    if {**versions, "var-export": ""} != {**here, "var-export": ""}:
        pytest.skip(f"the embedded bundle was exported by other versions ({versions}) than there are here ({here})")

    def content(bundle, name):
        """A digest of all that each output follows from, whatever names and order the exporter chose inside."""
        graph = onnx.load(bundle.graph_path(name), load_external_data=False).graph
        known = {"": ""} | {value.name: digest_of(value.SerializeToString().hex()) for value in graph.input}
        known |= {tensor.name: digest_of(tensor.SerializeToString().hex()) for tensor in graph.initializer}
        for node in graph.node:
            settings = sorted(setting.SerializeToString().hex() for setting in node.attribute)
            made_of = digest_of([node.domain, node.op_type, settings, [known[value] for value in node.input]])
            known |= {value: f"{made_of} {index}" for index, value in enumerate(node.output)}
        return {value.name: known[value.name] for value in graph.output}

    for name in graphs_of("stepwise"):
        assert content(embedded, name) == content(fresh, name), f"{name}: {STALE}"
    first = embedded.constants["up_0"].offset  # the constants of the scales come last, here and there
    old, new = ((bundle.path / "weights.bin").read_bytes() for bundle in (embedded, fresh))
    assert old[:first] == new[:first], STALE
    for name in embedded.constants:
        assert (embedded.constant(name) == fresh.constant(name)).all(), f"{name}: {STALE}"


@pytest.mark.slow
def test_embedded_bundle_draws_the_golden_images():
    with Pipeline.load(DEMO_BUNDLE) as pipeline:
        report = verify(pipeline, pipeline.bundle.golden)
    assert report.passed, report.failures
    assert report.total.top1 == 1.0
