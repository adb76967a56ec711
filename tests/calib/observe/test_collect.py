"""What is gathered is what an ordinary run computes, held against ONNX Runtime and numpy on that run's own inputs."""

import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from calib.graphs.changed import ChangedGraphs
from calib.observe import collect as collecting
from calib.observe.collect import FIRST_SEED, Requests, collect
from calib.observe.watching import watched
from engines.backends.onnxruntime.runner import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError

SAMPLES = 3  # of `calibrated`


class Recorder(OnnxRuntimeBackend):
    """Keeps a copy of what every graph is fed with."""

    def __init__(self):
        super().__init__("cpu", 1)
        self.fed = []

    def open(self, bundle, graph):
        engine = super().open(bundle, graph)
        bind = engine.bind

        def recorded(inputs, outputs):
            call = bind(inputs, outputs)
            run = call.run

            def kept():
                self.fed.append((graph, {name: buffer.array.copy() for name, buffer in inputs.items()}))
                run()

            call.run = kept
            return call

        engine.bind = recorded
        return engine


@pytest.fixture(scope="module")
def fed(tiny_fp32):
    """What an ordinary pipeline feeds to its graphs in drawing the samples of `calibrated`."""
    backend = Recorder()
    with Pipeline(tiny_fp32, backend, max_batch=1) as pipeline:
        requests = Requests.spread(tiny_fp32.config, SAMPLES)
        for label, seed in zip(requests.classes, requests.seeds, strict=True):
            pipeline.encode(pipeline.generate(label, seeds=seed).images)
    return backend.fed


def run_with(bundle, folder, graph, weight, feeds, *, output=False):
    """Input or output of the product with `weight`, by plain ONNX Runtime."""
    folder.mkdir()
    model = onnx.load(bundle.graph_path(graph), load_external_data=False)
    (node,) = [node for node in model.graph.node if weight in node.input]
    name = node.output[0] if output else node.input[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    onnx.save(model, folder / f"{graph}.onnx")
    shutil.copy(bundle.path / "weights.bin", folder)
    session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", providers=["CPUExecutionProvider"])
    return [session.run([name], one)[0] for one in feeds]


def assert_describes(statistics, values, scales=None, axis=None):
    """`values`: one array per run, of the scale in `scales`."""
    assert set(statistics.scales) == set(scales or [0])
    for scale in statistics.scales:
        here = np.concatenate([v.ravel() for k, v in enumerate(values) if scales is None or scales[k] == scale])
        found = statistics.scales[scale]
        assert found.count == here.size
        assert (found.minimum, found.maximum) == pytest.approx((here.min(), here.max()), rel=1e-4)
        assert found.mean_square == pytest.approx(np.mean(np.float64(here) ** 2), rel=1e-5)
    if axis is None:
        assert statistics.channel_abs_max is None
    else:
        rows = np.concatenate([v.reshape(-1, v.shape[-1]) for v in values])
        np.testing.assert_allclose(statistics.channel_abs_max, np.abs(rows).max(0), rtol=1e-4)
        np.testing.assert_allclose(statistics.channel_mean_square, np.square(np.float64(rows)).mean(0), rtol=1e-4)


def steps(fed, config):
    feeds = [feed for graph, feed in fed if graph == "step"]
    return feeds, [config.scale_offsets.index(len(feed["past_k_0"])) for feed in feeds]


@pytest.mark.slow
def test_the_input_of_attention_is_the_modulated_layer_norm(tiny_fp32, calibrated, fed):
    feeds, scales = steps(fed, tiny_fp32.config)
    assert len(feeds) == SAMPLES * tiny_fp32.config.num_scales
    values = []
    for feed in feeds:
        x, adaln = np.float64(feed["x"]), np.float64(feed["adaln"][:, 0, :, None])
        assert len(x) == 2  # guidance: a row with the class and one without
        norm = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        values.append(norm * adaln[:, 2] + adaln[:, 4])
    assert_describes(calibrated.tensors["step/blocks.0.attention.qkv:input"], values, scales, axis=-1)


@pytest.mark.parametrize("layer", ["blocks.1.fc2", "blocks.1.attention.proj", "head"])
def test_what_lies_deep_inside(tiny_fp32, calibrated, fed, tmp_path, layer):
    feeds, scales = steps(fed, tiny_fp32.config)
    values = run_with(tiny_fp32, tmp_path / "by-hand", "step", f"trunk.{layer}.weight", feeds)
    assert_describes(calibrated.tensors[f"step/{layer}:input"], values, scales, axis=-1)


@pytest.mark.slow
def test_convolutions_have_input_and_output(tiny_fp32, calibrated, fed, tmp_path):
    feeds = [feed for graph, feed in fed if graph == "decode"]
    assert_describes(calibrated.tensors["decode/post_quant_conv:input"], [feed["f_hat"] for feed in feeds])
    for graph, name, weight in (
        ("decode", "conv_in", "layers.1.conv_in.weight"),
        ("encode", "down.1.block.0.conv2", "layers.0.down.1.block.0.conv2.weight"),
    ):
        feeds = [feed for fed_graph, feed in fed if fed_graph == graph]
        assert len(feeds) == SAMPLES
        for which in ("input", "output"):
            folder = tmp_path / f"{graph}-{which}"
            values = run_with(tiny_fp32, folder, graph, weight, feeds, output=which == "output")
            assert_describes(calibrated.tensors[f"{graph}/{name}:{which}"], values)


def test_every_layer_and_scale_is_reached(tiny_fp32, calibrated):
    from calib.graphs.layers import find_layers, ir

    for graph in ("step", "decode", "encode"):
        for layer in find_layers(ir.load(tiny_fp32.graph_path(graph)), graph):
            statistics = calibrated.tensors[f"{layer.name}:input"]
            assert len(statistics.scales) == (tiny_fp32.config.num_scales if graph == "step" else 1), layer.name
            assert (f"{layer.name}:output" in calibrated.tensors) == layer.is_conv
    assert calibrated.done == SAMPLES


@pytest.mark.slow
def test_smoothed_layers_are_seen_divided(tiny_fp32, calibrated):
    smoothed = collect(tiny_fp32, Requests.spread(tiny_fp32.config, SAMPLES, smooth="0.5"), threads=1)
    assert len(smoothed.smoothing) == 6
    for name, factors in smoothed.smoothing.items():
        plain, divided = (made.tensors[f"{name}:input"].channel_abs_max for made in (calibrated, smoothed))
        np.testing.assert_allclose(divided * factors, plain, rtol=1e-5)
    for name, statistics in calibrated.tensors.items():
        if name.removesuffix(":input") not in smoothed.smoothing:
            assert smoothed.tensors[name].to_dict() == statistics.to_dict()


def test_watching_changes_no_token(tiny_fp32, tmp_path):
    from calib.graphs.layers import find_layers, ir

    wanted = {g: [v.input.name for v in find_layers(ir.load(tiny_fp32.graph_path(g)), g)] for g in ("step", "decode")}
    seen = []

    def see(graph, scale, values):
        assert set(values) == set(wanted[graph])
        seen.append((graph, scale))

    graphs = ChangedGraphs(tiny_fp32, beside=tmp_path)
    backend = OnnxRuntimeBackend(threads=1, sessions=watched(graphs, wanted, tiny_fp32.config, see))
    with (
        graphs,
        Pipeline(tiny_fp32, backend, max_batch=4) as watching,
        Pipeline.load(tiny_fp32.path, threads=1) as plain,
    ):
        # Guidance for some, twice: the second run takes the buffers of the first.
        for seed in (0, 7):
            options = {"seeds": seed, "cfg": [0.0, 3.0, 1.0]}
            drawn, wanted_result = (pipeline.generate([0, 4, 2], **options) for pipeline in (watching, plain))
            np.testing.assert_array_equal(drawn.tokens, wanted_result.tokens)
            np.testing.assert_array_equal(drawn.images, wanted_result.images)
    scales = [("step", scale) for scale in range(tiny_fp32.config.num_scales)]
    assert seen == 2 * [*scales, ("decode", 0)]


# Again, and interrupted


def stopping_at(line_start):
    def progress(line, done):
        if line.startswith(line_start):
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["smoothing: sample 2", "calibration: sample 1", "calibration: sample 4"])
def test_interrupted_and_taken_up_again_it_says_the_same(own_bundle, monkeypatch, stop):
    monkeypatch.setattr(collecting, "SAVE_EVERY", -1)
    requests = Requests.spread(own_bundle.config, 5)
    resume = own_bundle.path.parent / "kept"
    with pytest.raises(KeyboardInterrupt):
        collect(own_bundle, requests, resume=resume, threads=1, progress=stopping_at(stop))
    beside = {file.name for file in own_bundle.path.parent.iterdir()}
    assert beside == ({"tiny", "kept"} if stop.endswith("4") else {"tiny"})
    lines = []
    again = collect(own_bundle, requests, resume=resume, threads=1, progress=lambda line, done: lines.append(line))
    assert ("calibration: sample 3 of 5" in lines) is not stop.endswith("4")
    assert [file.name for file in own_bundle.path.parent.iterdir()] == ["tiny"]
    assert again.digest() == collect(own_bundle, requests, threads=1).digest()


@pytest.mark.slow
def test_what_is_left_of_other_requests_is_not_taken_up(own_bundle, monkeypatch):
    monkeypatch.setattr(collecting, "SAVE_EVERY", -1)
    resume = own_bundle.path.parent / "kept"
    with pytest.raises(KeyboardInterrupt):
        collect(
            own_bundle,
            Requests.spread(own_bundle.config, 3, [0, 1]),
            resume=resume,
            threads=1,
            progress=stopping_at("calibration: sample 3"),
        )
    requests = Requests.spread(own_bundle.config, 2)
    made = collect(own_bundle, requests, resume=resume, threads=1)
    assert made.digest() == collect(own_bundle, requests, threads=1).digest()
    resume.write_text("{")
    assert collect(own_bundle, requests, resume=resume, threads=1).digest() == made.digest()


# Pictures


def test_pictures_for_the_encoder(tiny_fp32, calibrated, tmp_path):
    size = tiny_fp32.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    files = [tmp_path / f"{k}.png" for k in range(2)]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file)
    requests = Requests.spread(tiny_fp32.config, SAMPLES, images=files, smooth=None)
    made = collect(tiny_fp32, requests, threads=1)
    assert made.done == SAMPLES + 2
    found = made.tensors["encode/conv_in:input"]
    assert found.count == pixels.size
    assert (found.minimum, found.maximum) == pytest.approx(np.float32([pixels.min(), pixels.max()]) / 127.5 - 1)
    for name, statistics in calibrated.tensors.items():
        same = made.tensors[name].to_dict() == statistics.to_dict()
        assert same is not name.startswith("encode/"), name

    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(files[0].read_bytes())
    assert Requests.spread(tiny_fp32.config, 2, images=[moved]).describe()["images"] == made.requests["images"][:1]


def test_a_picture_that_is_none(own_bundle, tmp_path):
    file = tmp_path / "no.png"
    file.write_text("no picture")
    with pytest.raises(UsageError, match=r"no\.png"):
        collect(own_bundle, Requests.spread(own_bundle.config, 2, images=[file]), threads=1)
    assert [one.name for one in own_bundle.path.parent.iterdir()] == ["tiny"]


# What is refused


def test_weights_that_are_not_finite(own_bundle):
    """Told by the name of the first layer behind them."""
    weights = own_bundle.path / "weights.bin"
    model = onnx.load(own_bundle.graph_path("step"), load_external_data=False)
    (qkv,) = [t for t in model.graph.initializer if t.name == "trunk.blocks.1.fc1.weight"]
    offset = next(int(entry.value) for entry in qkv.external_data if entry.key == "offset")
    data = bytearray(weights.read_bytes())
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    weights.write_bytes(data)
    bundle = Bundle.open(own_bundle.path, verify=False)
    with pytest.raises(UsageError, match="NaN or infinite") as caught:
        collect(bundle, Requests.spread(bundle.config, 2, smooth=None), threads=1)
    assert str(caught.value).startswith("step/blocks.1.fc2 cannot be calibrated: ")
    assert len(str(caught.value).splitlines()) == 1
    assert [one.name for one in own_bundle.path.parent.iterdir()] == ["tiny"]


def test_samples_are_spread_over_the_classes(tiny_fp32):
    config = tiny_fp32.config  # of five classes
    requests = Requests.spread(config, 7)
    assert requests.classes == (0, 1, 2, 3, 4, 0, 1)
    assert requests.seeds == tuple(range(FIRST_SEED, FIRST_SEED + 7))
    assert len(set(Requests.spread(config, 3).classes)) == 3
    assert Requests.spread(config, 3, [4, 1]).classes == (4, 1, 4)


def test_requests_that_would_tell_too_little(tiny_fp32):
    with pytest.raises(UsageError, match="1 sample or more, got 0"):
        Requests.spread(tiny_fp32.config, 0)
    with pytest.raises(UsageError, match="class 3 alone"):
        Requests.spread(tiny_fp32.config, 8, [3, 3])


def test_a_layer_that_nothing_reaches_is_an_error(calibrated):
    def layer(name):
        return SimpleNamespace(name=name, graph=name.partition("/")[0], is_conv=False)

    with pytest.raises(UsageError, match="never reached step/nowhere"):
        calibrated.check_layers([layer("step/nowhere")], 4)
    with pytest.raises(UsageError, match="never reached scale 4 of step/head"):
        calibrated.check_layers([layer("decode/conv_in"), layer("step/head")], 5)
