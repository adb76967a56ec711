"""The reference model against outputs recorded from the official code (FoundationVision/VAR).

`tests/data/official_*.npz` hold numbers only, made once by running the official code with the weights of
`support.tiny_state` and of the demo checkpoint; no greedy choice in them is closer than 2e-4 to the next best.
"""

import math

import numpy as np
import pytest
import torch
from support import DATA, architectures, demo_reference, settings, tiny_config, tiny_reference, tiny_state
from torch.nn import functional

from engines.editing.mask import boxes_to_grid, kept_tokens
from engines.spec.config import phi_index
from engines.spec.uniforms import noise

ARCHITECTURES = architectures()
LABELS = [0, 3, 5]  # the last is the unconditional class
CFG = 3.0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def official():
    with np.load(DATA / "official_tiny.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def official_demo():
    with np.load(DATA / "official_demo.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def demo():
    return demo_reference()


def greedy(reference, labels, cfg, **options):
    count = len(labels)
    return reference.generate(
        torch.tensor(labels),
        torch.zeros(count, reference.config.num_tokens),
        **settings(count, cfg=cfg, top_k=1),
        max_top_k=8,
        keep_logits=True,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "default", "whole", "edit"])
def test_demo_smooths_as_officially(case, demo):
    """`more_smooth=True`, with our Gumbel noise (`engines.spec.uniforms`) in place of the official generator's."""
    with np.load(DATA / "official_smooth.npz") as archive:
        wanted = {name.partition("/")[2]: archive[name] for name in archive.files if name.startswith(f"{case}/")}
    config, count = demo.config, len(wanted["classes"])
    sampling = {name: wanted[name].item() for name in ("cfg", "top_k", "top_p")}
    forced = {}
    if "own" in wanted:  # what was kept: the upper half
        kept = torch.from_numpy(kept_tokens(config, boxes_to_grid([(0.0, 0.5, 1.0, 1.0)], config.latent_size)[None]))
        forced = {"forced": torch.from_numpy(wanted["own"].astype(np.int64)), "forced_mask": kept.expand(count, -1)}
    drawn = demo.generate(
        torch.from_numpy(wanted["classes"]),
        torch.zeros(count, config.num_tokens),
        **settings(count, **sampling),
        max_top_k=900,
        noise=torch.from_numpy(noise(wanted["seeds"], config.num_tokens, config.vae.vocab_size)),
        **forced,
    )
    free = ~forced["forced_mask"].numpy() if forced else np.ones(wanted["tokens"].shape, bool)
    np.testing.assert_array_equal(drawn.tokens.numpy()[free], wanted["tokens"][free])
    np.testing.assert_allclose(drawn.f_hat, wanted["f_hat"], atol=4e-3)  # stored as float16
    assert np.abs(drawn.image.numpy().astype(int) - wanted["image"]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_image_is_the_official_one(name, official):
    config = ARCHITECTURES[name]
    seed = int(official[f"{name}/seed"])
    reference = tiny_reference(config, seed)
    drawn = greedy(reference, LABELS, CFG)

    np.testing.assert_array_equal(drawn.tokens.numpy(), official[f"{name}/tokens"])
    edges = torch.stack([torch.stack((x[:, 0], x[:, -1]), dim=1) for x in drawn.logits], dim=1)
    np.testing.assert_allclose(edges.numpy(), official[f"{name}/logits"], atol=2e-4)
    np.testing.assert_allclose(drawn.f_hat.numpy(), official[f"{name}/f_hat"], atol=1e-5)
    wanted = official[f"{name}/image"]  # float in [0, 1], of the first image
    vae = reference.vae
    with torch.no_grad():
        image = vae.decoder(vae.post_quant_conv(drawn.f_hat[:1])).clamp(-1, 1)[0].permute(1, 2, 0) / 2 + 0.5
    np.testing.assert_allclose(image.numpy(), wanted, atol=1e-5)
    off_by = np.abs(drawn.image[0].numpy().astype(int) - np.round(wanted * 255))
    assert off_by.max() <= 1  # a value on the edge between two may fall either way on another CPU
    assert (off_by > 0).mean() < 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encoder_gives_the_official_tokens(name, official):
    config = ARCHITECTURES[name]
    seed = int(official[f"{name}/seed"])
    shape = (2, config.image_size, config.image_size, 3)
    pixels = np.random.RandomState(seed + 7).randint(0, 256, shape, dtype=np.uint8)
    encoded = tiny_reference(config, seed).encode(torch.from_numpy(pixels))
    np.testing.assert_array_equal(encoded.numpy(), official[f"{name}/encoded"])


@pytest.mark.parametrize("scales", range(2, 15))
def test_each_scale_is_served_by_the_official_phi(scales, official):
    for count in range(2, 13):
        config = tiny_config(patch_nums=range(1, scales + 1), vae={"share_quant_resi": count})
        got = [phi_index(config, scale) for scale in range(scales)]
        assert got == official[f"phi/{count}/{scales}"].tolist(), f"{count} phis"
    shared = tiny_config(patch_nums=range(1, scales + 1), vae={"share_quant_resi": 0})
    if scales in range(2, 13):
        assert [phi_index(shared, s) for s in range(scales)] == official[f"phi/{scales}/{scales}"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["1", "4"])
def test_demo_model_draws_the_official_images(cfg, demo, official_demo):
    wanted = {key.split("/")[1]: value for key, value in official_demo.items() if key.startswith(f"cfg{cfg}/")}
    drawn = greedy(demo, wanted["classes"].tolist(), float(cfg))
    np.testing.assert_array_equal(drawn.tokens.numpy(), wanted["tokens"])
    last = torch.stack([x[:, -1, ::16] for x in drawn.logits], dim=1)  # the last token of each scale
    np.testing.assert_allclose(last.numpy(), wanted["logits"], atol=1e-3)
    np.testing.assert_allclose(drawn.f_hat.numpy(), wanted["f_hat"].astype(np.float32), rtol=1e-3, atol=1e-3)
    off_by = np.abs(drawn.image.numpy().astype(int) - wanted["image"])
    assert off_by.max() <= 1
    assert (off_by > 0).mean() < 1e-3


@pytest.mark.parametrize("cfg", ["1", "4"])
def test_demo_encoder_gives_the_official_tokens(cfg, demo, official_demo):
    encoded = demo.encode(torch.from_numpy(official_demo[f"cfg{cfg}/image"]))
    # Distances to two codebook entries come within 4e-5: another CPU's rounding may choose the other.
    assert (encoded.numpy() == official_demo[f"cfg{cfg}/encoded"]).mean() > 0.995


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scale_loop_equals_one_pass_under_the_block_causal_mask(name, official):
    config = ARCHITECTURES[name]
    seed = int(official[f"{name}/seed"])
    tokens = torch.from_numpy(official[f"{name}/tokens"].astype(np.int64))
    looped = greedy(tiny_reference(config, seed), LABELS, 0.0, forced=tokens)
    one_pass = block_causal_logits(config, *tiny_state(config, seed), torch.tensor(LABELS), tokens)

    np.testing.assert_array_equal(looped.tokens, tokens)
    np.testing.assert_allclose(torch.cat(looped.logits, dim=1).numpy(), one_pass.numpy(), atol=5e-5)
    np.testing.assert_allclose(one_pass[:, ::6].numpy(), official[f"{name}/train_logits"], atol=5e-5)


def block_causal_logits(config, var, vae, labels, tokens):
    """Logits of all tokens (B, T, V) in one pass, from the formulas of the paper and nothing of the package's model."""
    sizes, C = config.transformer, config.transformer.width
    B, H = len(labels), sizes.heads

    inputs, f_hat = [], 0
    for scale, (side, part) in enumerate(
        zip(config.patch_nums, tokens.split(list(config.scale_lengths), dim=1), strict=True)
    ):
        if scale:
            inputs.append(functional.adaptive_avg_pool2d(f_hat, side).flatten(2).mT)
        h = vae["quantize.embedding.weight"][part].mT.reshape(B, -1, side, side)
        h = functional.interpolate(h, size=[config.latent_size] * 2, mode="bicubic")
        f_hat = f_hat + phi(config, vae, h, scale)

    class_embedding = var["class_emb.weight"][labels]
    start = class_embedding[:, None] + var["pos_start"]
    x = torch.cat((start, torch.cat(inputs, dim=1) @ var["word_embed.weight"].T + var["word_embed.bias"]), dim=1)
    level = torch.repeat_interleave(torch.arange(config.num_scales), torch.tensor(config.scale_lengths))
    x = x + var["lvl_embed.weight"][level] + var["pos_1LC"]
    visible = level[:, None] >= level[None, :]

    def affine(values, name):
        return values @ var[f"{name}.weight"].T + var[f"{name}.bias"]

    def norm(values):
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    act = class_embedding * torch.sigmoid(class_embedding)
    for i in range(sizes.depth):
        if sizes.shared_aln:
            vectors = affine(act, "shared_ada_lin.1").reshape(B, 1, 6, C) + var[f"blocks.{i}.ada_gss"]
        else:
            vectors = affine(act, f"blocks.{i}.ada_lin.1").reshape(B, 1, 6, C)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = vectors.unbind(2)

        qkv = (norm(x) * (1 + scale1) + shift1) @ var[f"blocks.{i}.attn.mat_qkv.weight"].T
        q, k, v = (part.reshape(B, -1, H, C // H).transpose(1, 2) for part in qkv.split(C, dim=-1))
        q = q + var[f"blocks.{i}.attn.q_bias"].reshape(H, 1, -1)
        v = v + var[f"blocks.{i}.attn.v_bias"].reshape(H, 1, -1)
        if sizes.attn_l2_norm:
            strength = var[f"blocks.{i}.attn.scale_mul_1H11"].exp().clamp(max=100)
            scores = (q / q.norm(dim=-1, keepdim=True) * strength) @ (k / k.norm(dim=-1, keepdim=True)).mT
        else:
            scores = q @ k.mT * 0.25 / math.sqrt(C // H)
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        y = affine((weights @ v).transpose(1, 2).reshape(B, -1, C), f"blocks.{i}.attn.proj")
        x = x + y * gamma1

        h = affine(norm(x) * (1 + scale2) + shift2, f"blocks.{i}.ffn.fc1")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + affine(h, f"blocks.{i}.ffn.fc2") * gamma2
    scale, shift = affine(act, "head_nm.ada_lin.1").reshape(B, 1, 2, C).unbind(2)
    return affine(norm(x) * (1 + scale) + shift, "head")


def phi(config, vae, h, scale):
    ratio, share = config.vae.quant_resi, config.vae.share_quant_resi
    if ratio == 0:
        return h
    count = share or config.num_scales
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    nearest = int(np.argmin(np.abs(ticks - scale / (config.num_scales - 1))))
    key = {0: f"{nearest}", 1: "qresi"}.get(share, f"qresi_ls.{nearest}")
    weight, bias = vae[f"quantize.quant_resi.{key}.weight"], vae[f"quantize.quant_resi.{key}.bias"]
    return (1 - ratio) * h + ratio * functional.conv2d(h, weight, bias, padding=1)
