"""The traced modules and their ONNX graphs against the reference, scale by scale."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from support import architectures, eager, one_block, tiny_reference

from engines.draw.batch import Rows
from engines.spec import contract
from engines.spec.config import phi_index
from var_export.build import make_graph
from var_export.graphs.precision import PRECISIONS
from var_export.graphs.quantize import Quantizer
from var_export.graphs.trace import trace
from var_export.model.sampling import sample

pytestmark = pytest.mark.slow

ARCHITECTURES = architectures()
EXPORTED = ("l2-own-phi4", "fixed-shared-phi1-znorm", "fixed-own-phi0", "no-phi")  # each takes seconds
MAX_TOP_K = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Graphs:
    """The graphs of one tiny model as functions from named arrays to named arrays, eager or by ONNX Runtime."""

    def __init__(self, config, folder=None):
        self.reference = tiny_reference(config)
        self.config = self.reference.config
        self.quantizer = Quantizer(self.reference.vae.quantize)
        self._folder, self._runs = folder, {}

    def __call__(self, graph, inputs):
        if graph not in self._runs:
            module = make_graph(graph, self.reference, self.quantizer, PRECISIONS["fp32"], MAX_TOP_K)
            self._runs[graph] = eager(module) if self._folder is None else self._onnx(graph, module)
        wanted, results = contract.resolve(contract.GRAPHS[graph], self.config, "fp32")
        feeds = {info.name: np.asarray(inputs[info.name], info.dtype) for info in wanted}
        values = self._runs[graph](feeds)
        return {info.name: value for info, value in zip(results, values, strict=True)}

    def _onnx(self, graph, module):
        path = self._folder / f"{self.config.name}-{graph}.onnx"
        ir.save(trace(module, contract.GRAPHS[graph], self.config, "fp32"), path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def traced(request):
    return Graphs(ARCHITECTURES[request.param])


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    # Blocks take the time, and one stands for two: shared bundles have two, and are checked when they are built.
    return Graphs(one_block(ARCHITECTURES[request.param]), tmp_path_factory.mktemp("graphs"))


def test_eager_scales_follow_the_reference(traced):
    check_scales(traced)


def test_eager_quantizer_follows_the_reference(traced):
    check_accumulate(traced)


def test_exported_scales_follow_the_reference(exported):
    check_scales(exported)


def test_eager_autoencoder_follows_the_reference(traced):
    check_autoencoder(traced)


def test_exported_quantizer_follows_the_reference(exported):
    check_accumulate(exported)


@pytest.mark.parametrize("exported", EXPORTED[:2], indirect=True)  # without and with znorm; else they are the same
def test_exported_autoencoder_follows_the_reference(exported):
    check_autoencoder(exported)


def check_scales(graphs):
    """Images with guidance, without, and of no class share a batch; some tokens are forced, some drawn."""
    config, reference, quantizer = graphs.config, graphs.reference, graphs.quantizer
    classes = np.array([0, 3, config.unconditional_class, 1])
    cfg = np.array([2.0, 0.0, 1.5, 0.5], np.float32)
    rows = Rows.of(classes, cfg, config.unconditional_class)
    B, N = len(classes), len(rows.labels)
    assert (B, N) == (4, 6)
    rng = np.random.RandomState(1)
    uniforms = rng.random_sample((B, config.num_tokens)).astype(np.float32)
    forced = rng.randint(0, config.vae.vocab_size, (B, config.num_tokens))
    mask = rng.random_sample((B, config.num_tokens)) < 0.4
    mask[0], mask[1] = True, False
    sampling = {
        "temperature": np.array([0.7, 1.0, 1.3, 1.0], np.float32),
        "top_k": np.array([7, 1, 1, 1]),
        "top_p": np.array([0.9, 0.0, 0.0, 0.0], np.float32),
    }

    given = graphs("cond", {"labels": rows.labels})
    check_cond(graphs, rows.labels, given)
    shared = {
        **given,
        **sampling,
        "cond_row": rows.cond_row,
        "uncond_row": rows.uncond_row,
        "image_row": rows.image_row,
    }
    x = given["x"]
    f_hat = np.zeros((B, config.vae.z_channels, config.latent_size, config.latent_size), np.float32)
    sizes = config.transformer
    caches = {f"past_{kind}_{i}": np.zeros((0, N, sizes.heads, sizes.head_dim), np.float32)
              for kind in "kv" for i in range(sizes.depth)}  # fmt: skip

    embedding = reference.var.class_emb(torch.from_numpy(rows.labels))
    wanted_x, wanted_f, past = reference.var.first_input(embedding), torch.zeros(f_hat.shape), None
    for scale in range(config.num_scales):
        here = config.scale_slice(scale)
        following = min(scale + 1, config.num_scales - 1)
        ratio = scale / (config.num_scales - 1)
        out = graphs(
            "step",
            {
                **shared, **caches, "x": x, "f_hat": f_hat,
                "uniforms": uniforms[:, here], "guidance": cfg * np.float32(ratio),
                "forced_tokens": forced[:, here], "forced_mask": mask[:, here],
                "up": quantizer.up[scale].numpy(), "down": quantizer.down[following].numpy(),
                "phi_index": np.array([phi_index(config, scale)]),
                "pos_next": reference.var.positions(following).numpy(),
            },
        )  # fmt: skip

        with torch.inference_mode():
            logits, past = reference.var(wanted_x, embedding, past)
            t = torch.from_numpy(cfg)[:, None, None] * ratio
            guided = (1 + t) * logits[rows.cond_row] - t * logits[rows.uncond_row]
            drawn = sample(
                guided,
                torch.from_numpy(uniforms[:, here]),
                **{name: torch.from_numpy(value) for name, value in sampling.items()},
                max_top_k=MAX_TOP_K,
            ).numpy()
            tokens = np.where(mask[:, here], forced[:, here], drawn)
            wanted_f = wanted_f + reference.vae.quantize.contribution(torch.from_numpy(tokens), scale)

        where = f"{config.name}, scale {scale}"
        np.testing.assert_allclose(out["logits"], guided, atol=2e-4, err_msg=where)
        np.testing.assert_array_equal(out["drawn"], drawn, where)
        np.testing.assert_array_equal(out["tokens"], tokens, where)
        np.testing.assert_allclose(out["f_hat_out"], wanted_f, atol=2e-5, err_msg=where)
        for i, (k, v) in enumerate(past):  # (N, H, P+L, d) in the reference
            for kind, value in (("k", k), ("v", v)):
                new = value[:, :, config.scale_offsets[scale] :].permute(2, 0, 1, 3)
                np.testing.assert_allclose(out[f"new_{kind}_{i}"], new, atol=5e-5, err_msg=f"{where}, {kind}{i}")
                name = f"past_{kind}_{i}"
                caches[name] = np.concatenate((caches[name], out[f"new_{kind}_{i}"]))
        if scale + 1 < config.num_scales:
            with torch.inference_mode():
                features = reference.vae.quantize.next_input(wanted_f, scale)
                wanted_x = reference.var.next_input(features, scale + 1)[rows.image_row]
            np.testing.assert_allclose(out["x_next"], wanted_x, atol=5e-5, err_msg=where)
        x, f_hat = out["x_next"], out["f_hat_out"]


def check_cond(graphs, labels, given):
    """AdaLN is hoisted: what the reference computes in every block at every scale, once."""
    var = graphs.reference.var
    cond = var.class_emb(torch.from_numpy(labels))
    shared = var.shared_modulation(cond)
    with torch.inference_mode():
        for i, block in enumerate(var.blocks):
            wanted = block.modulation(cond, shared).clone()
            wanted[:, 2:4] += 1
            np.testing.assert_allclose(given["adaln"][:, i], wanted, atol=1e-5)
        wanted = var.head_nm.modulation(cond).clone()
        wanted[:, 0] += 1
    np.testing.assert_allclose(given["head_adaln"], wanted, atol=1e-5)
    np.testing.assert_allclose(given["x"], var.first_input(cond), atol=1e-5)


def check_accumulate(graphs):
    config = graphs.config
    tokens = np.random.RandomState(3).randint(0, config.vae.vocab_size, (3, config.num_tokens))
    f_hat = graphs("accumulate", {"tokens": tokens})["f_hat"]
    with torch.inference_mode():
        whole = torch.from_numpy(tokens)
        parts = [
            graphs.reference.vae.quantize.contribution(whole[:, config.scale_slice(scale)], scale)
            for scale in range(config.num_scales)
        ]
        wanted = sum(parts)
    np.testing.assert_allclose(f_hat, wanted, atol=2e-5)


def check_autoencoder(graphs):
    config, reference = graphs.config, graphs.reference
    rng = np.random.RandomState(2)
    pixels = rng.randint(0, 256, (2, config.image_size, config.image_size, 3), dtype=np.uint8)
    encoded = graphs("encode", {"image": pixels})["tokens"]
    np.testing.assert_array_equal(encoded, reference.encode(torch.from_numpy(pixels)))

    f_hat = rng.standard_normal((3, config.vae.z_channels, config.latent_size, config.latent_size))
    image = graphs("decode", {"f_hat": f_hat})["image"]
    with torch.inference_mode():
        wanted = reference.vae.decode(torch.from_numpy(f_hat).float())
    off_by = np.abs(image.astype(int) - wanted.numpy())
    assert off_by.max() <= 1  # rounding may fall either way
    assert (off_by > 0).mean() < 0.01
