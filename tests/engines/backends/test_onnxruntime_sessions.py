"""The seam for graphs that are not the bundle's: a function decides what runs in place of each."""

import numpy as np
import pytest

from engines.backends.onnxruntime.runner import OnnxRuntimeBackend, RunnableGraph
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError

BUNDLE = Bundle.open(DEMO_BUNDLE, verify=False)


def own_graphs(asked):
    """The bundle's own graphs, by the seam; `asked` gets their names."""

    def sessions(graph, load):
        asked.append(graph)
        return RunnableGraph(load(BUNDLE.graph_path(graph, cpu=True)), *BUNDLE.tensors(graph))

    return sessions


def test_it_decides_for_every_graph_that_is_opened():
    asked = []
    with Pipeline.load(DEMO_BUNDLE, threads=1) as plain:
        wanted = plain.generate(88, seeds=3)
    with Pipeline(BUNDLE, OnnxRuntimeBackend(threads=1, sessions=own_graphs(asked))) as pipeline:
        drawn = pipeline.generate(88, seeds=3)
    assert sorted(asked) == ["cond", "decode", "step"]
    np.testing.assert_array_equal(drawn.images, wanted.images)


def test_its_graphs_may_have_another_precision_than_the_bundle(demo_bf16_bundle):
    bundle = Bundle.open(demo_bf16_bundle)
    with OnnxRuntimeBackend(threads=1) as backend, pytest.raises(BackendError, match="BF16, which ONNX Runtime cannot"):
        backend.open(bundle, "cond")
    with OnnxRuntimeBackend(threads=1, sessions=own_graphs([])) as backend:
        assert backend.open(bundle, "cond") is not None


def test_a_file_that_is_no_graph_is_one_line(tmp_path):
    file = tmp_path / "cond.onnx"
    file.write_bytes(b"rubbish")

    def sessions(graph, load):
        return RunnableGraph(load(file), *BUNDLE.tensors(graph))

    with OnnxRuntimeBackend(threads=1, sessions=sessions) as backend, pytest.raises(BackendError) as caught:
        backend.open(BUNDLE, "cond")
    assert "\n" not in str(caught.value)
