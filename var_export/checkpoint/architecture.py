"""The configuration of a model, read off its tensors.

Shapes and key names say almost everything. What no tensor says (phi's ratio, `using_znorm`, the epsilons,
the number of normalisation groups, heads without l2-normalisation, the scales where `lvl_1L` was not
saved) has the official value unless a config.json or `--set` says otherwise; where those contradict the
tensors, it is an error that names both values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

from engines.errors import CheckpointError, UsageError
from engines.spec.config import HEAD_DIM, ModelConfig, TransformerConfig, VaeConfig
from var_export.checkpoint.settings import Setting, Settings, Value, check_derived, shown
from var_export.checkpoint.strictness import ODD, Weights

# Scales of the official models (`utils/arg_util.py`: 256, 512 and 1024 pixels) and of the embedded demo. No two
# have the same number of tokens.
KNOWN_SCALES = (
    (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
    (1, 2, 3, 4, 5, 6, 8),
)

_PHI = "quantize.quant_resi."
_NAMELESS = "unnamed"


def infer_config(var: Weights, vae: Weights, settings: Settings) -> ModelConfig:
    """Configuration of a pair; its name is the setting `name`, or a placeholder.

    Raises `CheckpointError` where a tensor that is needed is not there, the two files do not belong
    together, or `settings` contradict the tensors.
    """
    facts = _transformer_facts(var) | _vae_facts(vae)
    _check_pair(var, vae, facts)
    scales = _scales(var, settings.get("patch_nums"))
    facts["patch_nums"] = scales
    for key, setting in settings.items():
        if key in facts and not _same(setting.value, facts[key]):
            raise CheckpointError(
                f"{setting.origin} says {key} = {shown(setting.value)}, but the tensors of "
                f"{(vae if key.startswith('vae.') else var).file} say {shown(facts[key])}: correct or remove it"
            )
    _check_phi(vae, facts, settings, len(scales))

    values = {key: setting.value for key, setting in settings.items()} | facts
    if "transformer.heads" not in values:
        values["transformer.heads"] = _official_heads(var.size("word_embed.weight", 0, ndim=2), var.file)
    groups = {"vae": VaeConfig, "transformer": TransformerConfig}
    chosen = {
        group: {f.name: values[f"{group}.{f.name}"] for f in dataclasses.fields(kind) if f"{group}.{f.name}" in values}
        for group, kind in groups.items()
    }
    try:
        config = ModelConfig.from_dict({"name": values.get("name", _NAMELESS), "patch_nums": scales, **chosen})
    except UsageError as error:
        raise CheckpointError(f"{var.file} with {vae.file}: {error}; correct a wrong value with --set") from error
    check_derived(config, settings)
    return config


def _transformer_facts(var: Weights) -> dict[str, Value]:
    var.need(["word_embed.weight", "class_emb.weight", "pos_1LC", "lvl_embed.weight", "head.weight"])
    width, mlp_hidden = var.size("word_embed.weight", 0, ndim=2), var.size("blocks.0.ffn.fc1.weight", 0, ndim=2)
    values: dict[str, Value] = {
        "transformer.width": width,
        "transformer.depth": var.count("blocks."),
        "transformer.num_classes": var.size("class_emb.weight", 0, ndim=2) - 1,
        "transformer.mlp_hidden": mlp_hidden,
        "transformer.mlp_ratio": mlp_hidden / width,
        "transformer.shared_aln": var.has("shared_ada_lin.") or var.has("blocks.", ".ada_gss"),
        "transformer.attn_l2_norm": var.has("blocks.", ".scale_mul_1H11"),
    }
    if values["transformer.attn_l2_norm"]:
        values["transformer.heads"] = var.size("blocks.0.attn.scale_mul_1H11", 1, ndim=4)
    return values


def _vae_facts(vae: Weights) -> dict[str, Value]:
    finest = "decoder.up.0.block.0.conv2.weight"
    vae.need(["quantize.embedding.weight", "encoder.conv_in.weight", "quant_conv.weight", finest])
    ch = vae.size("encoder.conv_in.weight", 0, ndim=4)
    levels = vae.count("decoder.up.")
    widths = [vae.size(f"decoder.up.{i}.block.0.conv2.weight", 0, ndim=4) for i in range(levels)]
    if any(width % ch for width in widths):
        raise CheckpointError(
            f"{vae.file}: the decoder's widths {widths} are not multiples of the encoder's {ch}: {ODD}"
        )
    last = f"encoder.down.{levels - 1}."
    values: dict[str, Value] = {
        "vae.vocab_size": vae.size("quantize.embedding.weight", 0, ndim=2),
        "vae.z_channels": vae.size("quantize.embedding.weight", 1, ndim=2),
        "vae.ch": ch,
        "vae.ch_mult": tuple(width // ch for width in widths),
        "vae.num_res_blocks": vae.count("encoder.down.0.block."),
        "vae.quant_conv_ks": vae.size("quant_conv.weight", 3, ndim=4),
        "vae.using_sa": vae.has(f"{last}attn.") or vae.has(f"decoder.up.{levels - 1}.attn."),
        "vae.using_mid_sa": vae.has("encoder.mid.attn_1.") or vae.has("decoder.mid.attn_1."),
    }
    if vae.has(f"{_PHI}qresi_ls."):
        values["vae.share_quant_resi"] = vae.count(f"{_PHI}qresi_ls.")
    elif vae.has(f"{_PHI}qresi."):
        values["vae.share_quant_resi"] = 1
    elif vae.has(_PHI):
        values["vae.share_quant_resi"] = 0
    else:
        values["vae.quant_resi"] = 0.0  # no phi at all, so how they are shared does not matter
    return values


def _scales(var: Weights, setting: Setting | None) -> tuple[int, ...]:
    """Side of each scale's token map: as the buffer `lvl_1L` says, else as set, else those of a known model."""
    tokens, count = var.size("pos_1LC", 1, ndim=3), var.size("lvl_embed.weight", 0, ndim=2)
    if "lvl_1L" in var.state:
        return _scales_from_levels(var)
    if setting is not None:
        scales = tuple(int(side) for side in setting.value) if isinstance(setting.value, tuple) else ()
        if (total := sum(side * side for side in scales)) != tokens or len(scales) != count:
            raise CheckpointError(
                f"{setting.origin} says patch_nums = {shown(scales)}, {total} tokens in {len(scales)} scales, but the "
                f"tensors of {var.file} say {tokens} tokens in {count} scales: correct or remove it"
            )
        return scales
    for scales in KNOWN_SCALES:
        if sum(side * side for side in scales) == tokens and len(scales) == count:
            return scales
    raise CheckpointError(
        f"{var.file} has {tokens} tokens in {count} scales, which are no official ones, and no lvl_1L buffer: "
        "say the side of each scale with --set patch_nums=1,2,..."
    )


def _scales_from_levels(var: Weights) -> tuple[int, ...]:
    """Side of each scale's token map from `lvl_1L`, (1, sum L), which holds the scale of each token."""
    var.size("lvl_1L", 1, ndim=2)
    # In float64: a file converted to half precision as a whole has its levels in half precision, too.
    levels, counts = torch.unique_consecutive(var.state["lvl_1L"].to(torch.float64), return_counts=True)
    sides = [math.isqrt(count) for count in counts.tolist()]
    if levels.tolist() != list(range(len(sides))) or [side * side for side in sides] != counts.tolist():
        raise CheckpointError(f"{var.file}: lvl_1L does not count square token maps one after another: {ODD}")
    return tuple(sides)


def _check_pair(var: Weights, vae: Weights, facts: Mapping[str, Value]) -> None:
    """Whether the transformer was trained on the tokens of this VQ-VAE."""
    for key, of_var, what in (
        ("vae.z_channels", var.size("word_embed.weight", 1, ndim=2), "latent channels"),
        ("vae.vocab_size", var.size("head.weight", 0, ndim=2), "tokens in the vocabulary"),
    ):
        if of_var != facts[key]:
            raise CheckpointError(
                f"{var.file} and {vae.file} do not belong together: the transformer has {of_var} {what}, the VQ-VAE "
                f"{facts[key]}; pass the VQ-VAE that it was trained on with --vae"
            )


def _check_phi(vae: Weights, facts: Mapping[str, Value], settings: Settings, num_scales: int) -> None:
    """Whether the phi convolutions that are there agree with the ratio that is set and with the number of scales."""
    if "vae.quant_resi" in facts:
        return
    setting = settings.get("vae.quant_resi")
    if setting is not None and abs(float(setting.value)) <= 1e-6:  # type: ignore[arg-type]  # parsed as a number
        raise CheckpointError(
            f"{setting.origin} says vae.quant_resi = {setting.value}, which leaves no phi, but {vae.file} holds "
            "phi convolutions: correct or remove it (the official value is 0.5)"
        )
    if facts["vae.share_quant_resi"] == 0 and (count := vae.count(_PHI)) != num_scales:
        raise CheckpointError(
            f"{vae.file} has one phi for each of {count} scales, but the transformer has {num_scales} scales: they do "
            "not belong together; pass the VQ-VAE that it was trained on with --vae"
        )


def _official_heads(width: int, file: str) -> int:
    """Heads of 64 channels each, where neither a tensor nor a setting says how many there are."""
    if width % HEAD_DIM:
        raise CheckpointError(
            f"{file}: no tensor says how many heads share the width {width}, and it is no multiple of the official "
            f"{HEAD_DIM} channels a head: say it with --set heads=N"
        )
    return width // HEAD_DIM


def _same(a: Value, b: Value) -> bool:
    """Whether two values of one setting agree; numbers with a fraction need to do so within 0.1 %."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)  # ratios: the official code rounds the product
    return a == b
