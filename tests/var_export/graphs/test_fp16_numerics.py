"""The FP16 graphs with true half-precision rounding: their modules run eagerly, on the demo model.

ONNX Runtime's CPU computes much of an FP16 graph in float32 and cannot show this: 79 dB where this gives 47.
"""

import numpy as np
import pytest
import torch
from support import demo_reference, eager, settings

from engines.draw.batch import Rows
from engines.judging.similarity import psnr
from engines.judging.thresholds import THRESHOLDS
from engines.spec import contract
from engines.spec.config import phi_index
from engines.spec.uniforms import uniforms
from var_export.build import make_graph
from var_export.graphs.precision import PRECISIONS
from var_export.graphs.quantize import Quantizer

pytestmark = pytest.mark.slow

CLASSES = np.array([88, 3, 171, 120])
CFG = np.array([1.0, 4.0, 1.0, 2.0], np.float32)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The demo model is too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo():
    return demo_reference()


@pytest.fixture(scope="module")
def drawn(demo):
    """What the reference draws and thinks."""
    options = settings(len(CLASSES), top_k=20, top_p=0.4) | {"cfg": torch.from_numpy(CFG)}
    table = torch.from_numpy(uniforms(range(4), demo.config.num_tokens))
    return demo.generate(torch.from_numpy(CLASSES), table, **options, max_top_k=900, keep_logits=True)


@pytest.fixture(scope="module")
def half(demo):
    """The graphs in FP16, as functions from named arrays to named arrays."""
    quantizer = Quantizer(demo.vae.quantize)

    def make(graph):
        module = make_graph(graph, demo, quantizer, PRECISIONS["fp16"], 900)
        inputs, outputs = contract.resolve(contract.GRAPHS[graph], demo.config, "fp16")
        run = eager(module)

        def call(given):
            values = run({info.name: np.asarray(given[info.name], info.dtype) for info in inputs})
            for info, value in zip(outputs, values, strict=True):
                assert value.dtype == info.dtype, info.name
            return {info.name: value for info, value in zip(outputs, values, strict=True)}

        return call

    return {graph: make(graph) for graph in ("cond", "step", "decode", "encode")}, quantizer


def test_teacher_forced_tokens_agree_with_the_reference(demo, drawn, half):
    graphs, quantizer = half
    config = demo.config
    rows = Rows.of(CLASSES, CFG, config.unconditional_class)
    B, N = len(CLASSES), len(rows.labels)
    tokens, table = drawn.tokens.numpy(), uniforms(range(4), config.num_tokens)
    conditioned = graphs["cond"]({"labels": rows.labels})
    fixed = {**conditioned, **vars(rows), "temperature": np.ones(B), "top_k": np.full(B, 20), "top_p": np.full(B, 0.4)}
    sizes = config.transformer
    cache = {f"past_{kind}_{i}": np.zeros((0, N, sizes.heads, sizes.head_dim), np.float16)
             for kind in "kv" for i in range(sizes.depth)}  # fmt: skip
    x, f_hat = conditioned["x"], np.zeros((B, config.vae.z_channels, config.latent_size, config.latent_size))

    top1, draws = [], []
    for scale, wanted in enumerate(drawn.logits):
        here = config.scale_slice(scale)
        following = min(scale + 1, config.num_scales - 1)
        out = graphs["step"](
            {
                **fixed, **cache, "x": x, "f_hat": f_hat, "uniforms": table[:, here],
                "guidance": CFG * np.float32(scale / (config.num_scales - 1)),
                "forced_tokens": tokens[:, here], "forced_mask": np.ones((B, config.scale_lengths[scale])),
                "up": quantizer.up[scale], "down": quantizer.down[following],
                "phi_index": [phi_index(config, scale)], "pos_next": demo.var.positions(following),
            }
        )  # fmt: skip
        assert np.isfinite(out["logits"]).all()
        top1.append(out["logits"].argmax(-1) == wanted.argmax(-1).numpy())
        draws.append(out["drawn"] == tokens[:, here])
        x, f_hat = out["x_next"], out["f_hat_out"]
        cache = {name: np.concatenate((past, out[name.replace("past", "new")])) for name, past in cache.items()}

    assert np.concatenate(top1, axis=1).mean() >= 0.99
    assert np.concatenate(draws, axis=1).mean() >= 0.99
    # Tokens are forced, so the feature map differs by the rounding of FP32 alone.
    np.testing.assert_allclose(f_hat, drawn.f_hat, atol=1e-4)


def test_decoder_keeps_the_picture(drawn, half):
    image = half[0]["decode"]({"f_hat": drawn.f_hat})["image"]
    assert psnr(image, drawn.image.numpy()) > THRESHOLDS["fp16"].decoder_psnr  # measured: 46.9 dB


def test_encoder_finds_the_tokens(demo, drawn, half):
    tokens = half[0]["encode"]({"image": drawn.image})["tokens"]
    assert (tokens == demo.encode(drawn.image).numpy()).mean() >= THRESHOLDS["fp16"].encoder_tokens
