import json

import numpy as np
import onnx_ir as ir
import pytest
from support import reseal

from calib.choose.smoothquant import block_of, fold, smoothable, smoothing_factors
from calib.graphs.layers import find_layers, read_weight
from calib.statistics import Statistics
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline


def folded(bundle, out, smoothing):
    """A copy of a bundle with the factors in it."""
    import shutil

    shutil.copytree(bundle.path, out)
    models = {graph: ir.load(out / f"{graph}.onnx") for graph in ("cond", "step")}
    fold(models, find_layers(models["step"], "step"), smoothing)
    for graph, model in models.items():
        ir.save(model, out / f"{graph}.onnx")
    reseal(out)
    return Bundle.open(out)


def random_factors(bundle, seed=0):
    rng = np.random.default_rng(seed)
    layers = smoothable(find_layers(ir.load(bundle.graph_path("step")), "step"))
    return {
        layer.name: np.exp(rng.uniform(-2, 2, read_weight(layer.weight).shape[0])).astype(np.float32)
        for layer in layers
    }


def drawn(bundle):
    logits = []
    with Pipeline.load(bundle.path, threads=1, form="stepwise", check="never") as pipeline:
        result = pipeline.generate(
            [0, 3, 1], seeds=5, cfg=[2.0, 0.0, 4.0], on_scale=lambda view: logits.append(view.read_logits())
        )
    return result, logits


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_fp32", "tiny_shared_adaln"])
def test_folding_changes_nothing(model, request, tmp_path):
    bundle = request.getfixturevalue(model)
    factors = random_factors(bundle)
    assert len(factors) == 3 * bundle.config.transformer.depth
    plain, plain_logits = drawn(bundle)
    result, logits = drawn(folded(bundle, tmp_path / "folded", factors))
    np.testing.assert_array_equal(result.tokens, plain.tokens)
    np.testing.assert_array_equal(result.images, plain.images)
    for ours, wanted in zip(logits, plain_logits, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize("model", ["tiny_fp32", "tiny_shared_adaln"])
def test_every_factor_is_folded(model, request, tmp_path):
    """Or the test above would pass on a fold that does nothing: each layer's weight is multiplied."""
    bundle = request.getfixturevalue(model)
    factors = random_factors(bundle, 1)
    changed = folded(bundle, tmp_path / "folded", factors)
    layers, plain = (
        {layer.name: read_weight(layer.weight) for layer in find_layers(ir.load(b.graph_path("step")), "step")}
        for b in (changed, bundle)
    )
    for name, weight in plain.items():
        wanted = np.array(weight)
        if name in factors:
            wanted *= factors[name][:, None]
        if name.endswith("qkv"):
            wanted[:, -wanted.shape[1] // 3 :] /= factors[name.replace("qkv", "proj")]
        np.testing.assert_allclose(layers[name], wanted, rtol=1e-6, err_msg=name)


def test_one_factor_missing_would_show(tiny_fp32, tmp_path):
    """How much the check above sees: AdaLN left as it was."""
    factors = random_factors(tiny_fp32)
    changed = folded(tiny_fp32, tmp_path / "folded", factors)
    (changed.path / "cond.onnx").write_bytes((tiny_fp32.path / "cond.onnx").read_bytes())
    reseal(changed.path)
    _, wanted = drawn(tiny_fp32)
    _, logits = drawn(Bundle.open(changed.path))
    assert max(np.abs(a - b).max() for a, b in zip(logits, wanted, strict=True)) > 0.1


def test_the_contract_of_cond_stays(tiny_fp32, tmp_path):
    changed = folded(tiny_fp32, tmp_path / "folded", random_factors(tiny_fp32))
    outputs = [
        [(value.name, value.dtype, str(value.shape)) for value in ir.load(b.graph_path("cond")).graph.outputs]
        for b in (tiny_fp32, changed)
    ]
    assert outputs[0] == outputs[1]
    assert json.loads((changed.path / "manifest.json").read_text())["graphs"]["cond"]


def test_nothing_to_fold_changes_no_graph(tiny_fp32):
    models = {graph: ir.load(tiny_fp32.graph_path(graph)) for graph in ("cond", "step")}
    before = [len(list(model.graph)) for model in models.values()]
    fold(models, find_layers(models["step"], "step"), {})
    assert [len(list(model.graph)) for model in models.values()] == before


def test_who_is_smoothed(tiny_fp32):
    names = [layer.name for layer in smoothable(find_layers(ir.load(tiny_fp32.graph_path("step")), "step"))]
    assert names == [f"step/blocks.{k}.{part}" for k in (0, 1) for part in ("attention.qkv", "attention.proj", "fc1")]
    assert [block_of(name) for name in names] == [0, 0, 0, 1, 1, 1]
    decoder = find_layers(ir.load(tiny_fp32.graph_path("decode")), "decode")
    assert smoothable(decoder) == []  # has a `mid.attn_1.qkv`, which is a convolution


# The factors


def with_outliers(share=0.05, size=30.0, K=96, N=80, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, K)).astype(np.float32)
    x[:, rng.random(K) < share] *= size
    return x, (rng.standard_normal((K, N)) / K**0.5).astype(np.float32)


def counted(x):
    statistics = Statistics()
    statistics.add(x)
    return statistics


def error_of(x, weight):
    """Mean squared error of a product of 8-bit numbers, per tensor and per output channel."""
    step = np.float64(np.abs(x).max()) * 2 / 255
    steps = np.abs(weight).max(0) / 127
    quantised = (np.rint(x / step) * step) @ (np.rint(weight / steps) * steps)
    return float(np.mean((quantised - x.astype(np.float64) @ weight) ** 2))


def test_a_search_lowers_the_error_where_channels_stand_out():
    x, weight = with_outliers()
    factors = smoothing_factors(weight, counted(x), None)
    assert factors.dtype == np.float32
    assert factors.shape == (len(weight),)
    plain, smoothed = error_of(x, weight), error_of(x / factors, weight * factors[:, None])
    assert smoothed < 0.4 * plain
    fixed = [smoothing_factors(weight, counted(x), alpha) for alpha in (0.0, 0.3, 0.5, 0.8)]
    errors = [error_of(x / f, weight * f[:, None]) for f in fixed]
    assert errors[0] == plain
    assert smoothed < 1.3 * min(errors)


@pytest.mark.parametrize("seed", range(5))
def test_a_search_never_does_harm(seed):
    for share, size in ((0, 1), (0.5, 1.5), (0.02, 100), (0.3, 0.01)):
        x, weight = with_outliers(share, size, seed=seed)
        factors = smoothing_factors(weight, counted(x), None)
        assert error_of(x / factors, weight * factors[:, None]) < 1.1 * error_of(x, weight)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_a_fixed_alpha_is_the_formula(alpha):
    """Up to a common factor, which changes no product."""
    x, weight = with_outliers(size=5)
    factors = np.float64(smoothing_factors(weight, counted(x), alpha))
    wanted = np.abs(x).max(0) ** alpha / np.abs(weight).max(1) ** (1 - alpha)
    np.testing.assert_allclose(factors / factors[0], wanted / wanted[0], rtol=1e-5)


def test_dead_channels_and_rows_give_usable_factors():
    x, weight = with_outliers()
    x[:, 3], weight[5] = 0, 0
    for alpha in (None, 0.0, 0.5, 1.0):
        factors = smoothing_factors(weight, counted(x), alpha)
        assert np.isfinite(factors).all()
        assert factors.min() > 0
        assert factors.max() / factors.min() <= 1.0001e4
    np.testing.assert_array_equal(smoothing_factors(weight, counted(x), 0.0), 1)
