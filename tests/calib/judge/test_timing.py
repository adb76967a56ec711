import numpy as np
import onnx_ir as ir
import pytest

from calib.graphs.layers import find_layers
from calib.judge import timing
from calib.judge.timing import Stopwatch, input_shapes, multiply_adds
from engines.backends.onnxruntime import library


@pytest.fixture(scope="module")
def layers(tiny_fp32):
    return {
        layer.name: layer
        for graph in ("cond", "step", "decode")
        for layer in find_layers(ir.load(tiny_fp32.graph_path(graph)), graph)
    }


def test_shapes_of_one_image(tiny_fp32, layers):
    config = tiny_fp32.config  # scales of 1, 2, 3 and 4
    width = config.transformer.width
    assert input_shapes(layers["step/blocks.0.fc1"], config) == [(2, width), (8, width), (18, width), (32, width)]
    alone = [(1, width), (4, width), (9, width), (16, width)]
    assert input_shapes(layers["step/blocks.0.fc1"], config, guided=False) == alone
    assert input_shapes(layers["step/head"], config) == alone  # the features of both rows are one by then
    assert input_shapes(layers["cond/linears.0"], config) == [(2, width)]
    assert input_shapes(layers["step/word_embed"], config)[0][:2] == (1, 4)  # of the next scale
    assert input_shapes(layers["decode/conv_in"], config)[0][2:] == (config.latent_size,) * 2


def test_multiply_adds(tiny_fp32, layers):
    config = tiny_fp32.config
    width, hidden = config.transformer.width, config.transformer.mlp_hidden
    assert multiply_adds(layers["step/blocks.0.fc1"], config) == 2 * 30 * width * hidden
    out = layers["decode/conv_out"]
    kernel = np.prod(out.weight.shape.numpy())
    assert multiply_adds(out, config) == kernel * config.image_size**2


@pytest.mark.parametrize("way", ["float", "static", "per-token", "per-block"])
def test_every_way_is_timed(tiny_fp32, layers, way):
    stopwatch = Stopwatch(tiny_fp32.config, 1)
    assert 0 < stopwatch.seconds(layers["step/blocks.0.fc1"], way) < 1
    if way in ("float", "static"):
        assert 0 < stopwatch.seconds(layers["decode/conv_out"], way) < 1


def test_equal_products_are_timed_once(tiny_fp32, layers, monkeypatch):
    timed = []
    monkeypatch.setattr(timing, "_best", lambda session, sample: timed.append(sample.shape) or 1.0)
    stopwatch = Stopwatch(tiny_fp32.config, 1)
    for name in ("step/blocks.0.fc1", "step/blocks.1.fc1"):
        assert stopwatch.seconds(layers[name], "float") == 4  # scales
    assert len(timed) == 4
    assert stopwatch.seconds(layers["step/blocks.0.fc1"], "static") == 4
    assert len(timed) == 8


def test_what_is_timed_is_the_integer_kernel(tiny_fp32, layers, monkeypatch):
    """Not a float product between conversions."""
    seen = {}

    def best(session, sample):
        del sample
        return seen.setdefault("session", session) and 1.0

    monkeypatch.setattr(timing, "_best", best)
    options_of = library.import_onnxruntime

    class Recording:
        def __init__(self, folder):
            self._ort, self._folder = options_of(), folder

        def __getattr__(self, name):
            return getattr(self._ort, name)

        def InferenceSession(self, model, options, **more):
            options.optimized_model_filepath = str(self._folder)
            return self._ort.InferenceSession(model, options, **more)

    import tempfile
    from pathlib import Path

    for name, way, kernel in (
        ("step/blocks.0.fc1", "static", "QGemm"),
        ("step/blocks.0.fc1", "per-token", "QGemm"),
        ("step/blocks.0.fc1", "per-block", "MatMulNBits"),
        ("decode/up.0.block.0.conv1", "static", "QLinearConv"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "optimised.onnx"
            monkeypatch.setattr(library, "import_onnxruntime", lambda file=file: Recording(file))
            Stopwatch(tiny_fp32.config, 1).seconds(layers[name], way)
            assert kernel in {node.op_type for node in ir.load(file).graph}
