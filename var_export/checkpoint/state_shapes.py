"""Which tensors the official state dicts hold, from the configuration alone, and whether a state dict does.

Key names and shapes: `models/var.py`, `models/basic_var.py`, `models/vqvae.py`, `models/basic_vae.py` and
`models/quant.py` of FoundationVision/VAR.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from engines.errors import CheckpointError
from engines.spec.config import ModelConfig, VaeConfig

Shapes = dict[str, tuple[int, ...]]

# Buffers that follow from the configuration, or serve training alone: a file may leave them out.
OPTIONAL = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_MAX_LISTED = 3


def expected_var_shapes(config: ModelConfig) -> Shapes:
    """Key -> shape of the whole official `VAR.state_dict()`, buffers included."""
    sizes, C, L = config.transformer, config.transformer.width, config.num_tokens
    shapes: Shapes = {
        "pos_start": (1, config.scale_lengths[0], C),
        "pos_1LC": (1, L, C),
        "lvl_1L": (1, L),
        "attn_bias_for_masking": (1, 1, L, L),
        "class_emb.weight": (sizes.num_classes + 1, C),
        "lvl_embed.weight": (config.num_scales, C),
        **_affine("word_embed", C, config.vae.z_channels),
        **_affine("head_nm.ada_lin.1", 2 * C, C),
        **_affine("head", config.vae.vocab_size, C),
    }
    if sizes.shared_aln:
        shapes |= _affine("shared_ada_lin.1", 6 * C, C)
    for i in range(sizes.depth):
        block = f"blocks.{i}"
        shapes |= {
            f"{block}.attn.mat_qkv.weight": (3 * C, C),
            f"{block}.attn.q_bias": (C,),
            f"{block}.attn.v_bias": (C,),
            f"{block}.attn.zero_k_bias": (C,),
            **_affine(f"{block}.attn.proj", C, C),
            **_affine(f"{block}.ffn.fc1", sizes.mlp_hidden, C),
            **_affine(f"{block}.ffn.fc2", C, sizes.mlp_hidden),
        }
        if sizes.attn_l2_norm:
            shapes[f"{block}.attn.scale_mul_1H11"] = (1, sizes.heads, 1, 1)
        if sizes.shared_aln:
            shapes[f"{block}.ada_gss"] = (1, 1, 6, C)
        else:
            shapes |= _affine(f"{block}.ada_lin.1", 6 * C, C)
    return shapes


def expected_vae_shapes(config: ModelConfig) -> Shapes:
    """Key -> shape of the whole official `VQVAE.state_dict()`, encoder and buffers included."""
    vae, Z = config.vae, config.vae.z_channels
    shapes: Shapes = {
        "quantize.embedding.weight": (vae.vocab_size, Z),
        "quantize.ema_vocab_hit_SV": (config.num_scales, vae.vocab_size),
        **_affine("quant_conv", Z, Z, vae.quant_conv_ks, vae.quant_conv_ks),
        **_affine("post_quant_conv", Z, Z, vae.quant_conv_ks, vae.quant_conv_ks),
        **_encoder(vae),
        **_decoder(vae),
    }
    for phi in phi_keys(config):
        shapes |= _affine(phi, Z, Z, 3, 3)
    return shapes


def phi_keys(config: ModelConfig) -> list[str]:
    """Prefixes of the phi convolutions; none where `quant_resi` is 0."""
    shared = config.vae.share_quant_resi
    if abs(config.vae.quant_resi) <= 1e-6:
        return []
    if shared == 0:
        return [f"quantize.quant_resi.{i}" for i in range(config.num_scales)]
    if shared == 1:
        return ["quantize.quant_resi.qresi"]
    return [f"quantize.quant_resi.qresi_ls.{i}" for i in range(shared)]


def is_optional(key: str) -> bool:
    """Whether a state dict may lack this key."""
    return key.rpartition(".")[2] in OPTIONAL


def check_state(state: Mapping[str, Tensor], expected: Shapes, file: str, what: str) -> None:
    """Hold a state dict against its table: keys, shapes, dtypes, and no infinite or NaN weight.

    Reads every weight once, without a copy of it. Raises `CheckpointError`.
    """
    missing = [key for key in expected if key not in state and not is_optional(key)]
    if missing:
        raise missing_error(missing, file, what, of=len(expected))
    unexpected = [key for key in state if key not in expected]
    if unexpected:
        raise CheckpointError(
            f"{file}: {_listing(unexpected)} {_are(unexpected)} no part of the {what} that its other tensors "
            "describe: it is of another architecture, or of a changed one"
        )
    for key, shape in expected.items():
        # As in the official code, statistics of another number of scales do not matter.
        if key in state and tuple(state[key].shape) != shape and not key.endswith("ema_vocab_hit_SV"):
            raise CheckpointError(
                f"{file}: {key} has the shape {tuple(state[key].shape)} where its other tensors ask for {shape}: "
                "it is damaged, or of another architecture"
            )
    for key, tensor in state.items():
        if not is_optional(key):
            _check_values(key, tensor, file)


def missing_error(keys: list[str], file: str, what: str, of: int | None = None) -> CheckpointError:
    """The error for weights that are not there; `of` how many, where the architecture is known."""
    count = f"{len(keys)} of {of} tensors" if of else f"at least {len(keys)} tensor{'s' * (len(keys) > 1)}"
    return CheckpointError(
        f"{file} lacks {count} of a {what} ({_listing(keys)}): it is truncated, partial or of another "
        "architecture; download it again, or save the whole state dict"
    )


def _check_values(key: str, tensor: Tensor, file: str) -> None:
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
        kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
        raise CheckpointError(f"{file}: {key} is stored as {kind}: save it as float16, bfloat16, float32 or float64")
    # Extremes show NaN and infinity alike, and unlike `isfinite` need no tensor of the same size.
    low, high = torch.aminmax(tensor)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise CheckpointError(f"{file}: {key} holds NaN or infinite values: the file is damaged, or training diverged")


def _listing(keys: Iterable[str]) -> str:
    names = [" ".join(key.split()) for key in keys]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _are(items: list[str]) -> str:
    return "is" if len(items) == 1 else "are"


def _affine(key: str, *shape: int) -> Shapes:
    """A linear layer or convolution."""
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}


def _norm(key: str, channels: int) -> Shapes:
    return {f"{key}.weight": (channels,), f"{key}.bias": (channels,)}


def _resnet(key: str, entering: int, leaving: int) -> Shapes:
    shortcut = _affine(f"{key}.nin_shortcut", leaving, entering, 1, 1) if entering != leaving else {}
    return {
        **_norm(f"{key}.norm1", entering),
        **_affine(f"{key}.conv1", leaving, entering, 3, 3),
        **_norm(f"{key}.norm2", leaving),
        **_affine(f"{key}.conv2", leaving, leaving, 3, 3),
        **shortcut,
    }


def _attention(key: str, channels: int) -> Shapes:
    return {
        **_norm(f"{key}.norm", channels),
        **_affine(f"{key}.qkv", 3 * channels, channels, 1, 1),
        **_affine(f"{key}.proj_out", channels, channels, 1, 1),
    }


def _level(key: str, entering: int, leaving: int, blocks: int, attention: bool) -> Shapes:
    shapes: Shapes = {}
    for i in range(blocks):
        shapes |= _resnet(f"{key}.block.{i}", entering if i == 0 else leaving, leaving)
        if attention:
            shapes |= _attention(f"{key}.attn.{i}", leaving)
    return shapes


def _middle(key: str, channels: int, attention: bool) -> Shapes:
    return {
        **_resnet(f"{key}.block_1", channels, channels),
        **(_attention(f"{key}.attn_1", channels) if attention else {}),
        **_resnet(f"{key}.block_2", channels, channels),
    }


def _encoder(vae: VaeConfig) -> Shapes:
    widths = [vae.ch * mult for mult in (1, *vae.ch_mult)]
    last = len(vae.ch_mult) - 1
    shapes = _affine("encoder.conv_in", vae.ch, 3, 3, 3)
    for i in range(last + 1):
        key = f"encoder.down.{i}"
        shapes |= _level(key, widths[i], widths[i + 1], vae.num_res_blocks, vae.using_sa and i == last)
        if i != last:
            shapes |= _affine(f"{key}.downsample.conv", widths[i + 1], widths[i + 1], 3, 3)
    shapes |= _middle("encoder.mid", widths[-1], vae.using_mid_sa)
    shapes |= _norm("encoder.norm_out", widths[-1])
    return shapes | _affine("encoder.conv_out", vae.z_channels, widths[-1], 3, 3)


def _decoder(vae: VaeConfig) -> Shapes:
    widths = [vae.ch * mult for mult in vae.ch_mult]
    last = len(widths) - 1
    shapes = _affine("decoder.conv_in", widths[-1], vae.z_channels, 3, 3)
    shapes |= _middle("decoder.mid", widths[-1], vae.using_mid_sa)
    for i in range(last + 1):
        key = f"decoder.up.{i}"
        entering = widths[min(i + 1, last)]
        shapes |= _level(key, entering, widths[i], vae.num_res_blocks + 1, vae.using_sa and i == last)
        if i != 0:
            shapes |= _affine(f"{key}.upsample.conv", widths[i], widths[i], 3, 3)
    shapes |= _norm("decoder.norm_out", widths[0])
    return shapes | _affine("decoder.conv_out", 3, widths[0], 3, 3)
