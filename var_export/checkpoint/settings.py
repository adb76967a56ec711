"""What a config.json or `--set key=value` says about a checkpoint, in one vocabulary.

Two layouts of config.json are read: this project's own (`vae`, `var` and `sampling` nested, see
`data/demo/config.json`) and the flat constructor arguments that PyTorchModelHubMixin stores for the official
VARHF class (`vae_kwargs` nested). Both become settings under the names of `ModelConfig`'s fields, with dots:
`patch_nums`, `vae.quant_resi`, `transformer.heads`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.errors import CheckpointError, UsageError
from engines.spec.config import SamplingDefaults
from var_export.checkpoint.sources import Source

Value = str | bool | int | float | tuple[int, ...]

OVERRIDES = "--set"


@dataclass(frozen=True)
class Setting:
    """A value, and who says it: the name of a file, or `--set`."""

    value: Value
    origin: str


Settings = dict[str, Setting]


@dataclass(frozen=True)
class ConfigFile:
    """A config.json that was read."""

    settings: Settings = field(default_factory=dict)
    sampling: SamplingDefaults | None = None
    labels: str | None = None
    """Name of the file of labels beside it."""
    source: Source | None = None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _file_name(value: Any) -> str:
    if "/" in _text(value) or "\\" in value:
        raise ValueError
    return _text(value)


def _int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _bool(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return known[str(value).strip().lower()]


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = re.split(r"[,_\s]+", value.strip(" ,()[]"))  # underscores: the official `--pn=1_2_3`
    return tuple(_int(item) for item in value)


_EXPECTED: dict[Callable[[Any], Value], str] = {
    _text: "a name",
    _file_name: "the name of a file beside it",
    _int: "a whole number",
    _float: "a number",
    _bool: "true or false",
    _ints: "a list of whole numbers such as 1,2,3",
}

# What a user may set.
_SETTABLE: dict[str, Callable[[Any], Value]] = {
    "name": _text,
    "patch_nums": _ints,
    "transformer.depth": _int,
    "transformer.width": _int,
    "transformer.heads": _int,
    "transformer.mlp_hidden": _int,
    "transformer.mlp_ratio": _float,
    "transformer.num_classes": _int,
    "transformer.norm_eps": _float,
    "transformer.shared_aln": _bool,
    "transformer.attn_l2_norm": _bool,
    "vae.vocab_size": _int,
    "vae.z_channels": _int,
    "vae.ch": _int,
    "vae.ch_mult": _ints,
    "vae.num_res_blocks": _int,
    "vae.quant_conv_ks": _int,
    "vae.quant_resi": lambda value: abs(_float(value)),  # the official Phi takes the absolute value
    "vae.share_quant_resi": _int,
    "vae.using_znorm": _bool,
    "vae.using_sa": _bool,
    "vae.using_mid_sa": _bool,
    "vae.norm_num_groups": _int,
    "vae.norm_eps": _float,
}
_EXPECTED[_SETTABLE["vae.quant_resi"]] = _EXPECTED[_float]

# What a config.json may state besides: it follows from the rest, and is held against it.
_DERIVED: dict[str, Callable[[Any], Value]] = {
    "image_size": _int,
    "num_tokens": _int,
    "transformer.head_dim": _int,
    "transformer.uncond_class": _int,
    "vae.downsample": _int,
    "vae.in_channels": _int,
    "vae.v_patch_nums": _ints,
}

# Training, file formats, kernels of the official code: nothing here follows from them.
_WITHOUT_EFFECT = {
    "weights_dtype",
    "output_range",
    "transformer.drop_rate",
    "transformer.attn_drop_rate",
    "transformer.drop_path_rate",
    "transformer.cond_drop_rate",
    "transformer.flash_if_available",
    "transformer.fused_if_available",
    "vae.dropout",
    "vae.beta",
    "vae.test_mode",
    "vae.default_qresi_counts",
}

_ALIASES = {
    "model": "name",
    "transformer.embed_dim": "transformer.width",
    "transformer.num_heads": "transformer.heads",
}
_GROUPS = {"vae": "vae", "vae_kwargs": "vae", "var": "transformer", "transformer": "transformer"}
# One of these makes a JSON file a description of a VAR model.
_TELLTALES = {*_GROUPS, "patch_nums", "depth", "embed_dim", "sampling"}
_SAMPLING_WITHOUT_EFFECT = {"more_smooth"}  # a variant for pictures in the paper, which the loop does not offer


def parse_overrides(overrides: Mapping[str, str] | None) -> Settings:
    """Settings of `--set key=value`; a key may leave out its group: `heads` is `transformer.heads`.

    `norm_eps` alone means the transformer's, as in the official code. Raises `CheckpointError` on an
    unknown key or a value of the wrong type.
    """
    settings: Settings = {}
    for written, value in (overrides or {}).items():
        key = _canonical(written.strip())
        if key not in _SETTABLE:
            raise CheckpointError(f"{OVERRIDES} {written!r} is no known setting; known are {', '.join(_SETTABLE)}")
        settings[key] = Setting(_parsed(_SETTABLE[key], key, value, OVERRIDES), OVERRIDES)
    return settings


def read_config(source: Source, *, only_if_var: bool = False) -> ConfigFile:
    """Read a config.json; with `only_if_var`, one that does not describe a VAR model counts as empty.

    Raises `CheckpointError` where it cannot be read, has an unknown key or a value of the wrong type.
    """
    try:
        content = json.loads(source.path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"cannot read {source.shown} ({error.strerror}): check its permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{source.shown} is not valid JSON ({error}): correct it") from error
    if only_if_var and not (isinstance(content, dict) and _TELLTALES & content.keys()):
        return ConfigFile()
    if not isinstance(content, dict):
        raise CheckpointError(f"{source.shown} must hold a JSON object, not a {type(content).__name__}")
    origin = source.shown
    settings: Settings = {}
    sampling: SamplingDefaults | None = None
    labels: str | None = None
    for written, value in _flat(content, origin):
        key = _canonical(written)
        if written == "labels":
            labels = str(_parsed(_file_name, written, value, origin))
        elif written == "sampling":
            sampling = _sampling(value, origin)
        elif parse := {**_SETTABLE, **_DERIVED}.get(key):
            settings[key] = Setting(_parsed(parse, key, value, origin), origin)
        elif key not in _WITHOUT_EFFECT:
            known = ", ".join([*_SETTABLE, *_DERIVED, "sampling", "labels"])
            raise CheckpointError(f"{origin}: {written!r} is no known key: remove it; known are {known}")
    return ConfigFile(settings, sampling, labels, source)


def make_sampling(values: Mapping[str, Any], origin: str) -> SamplingDefaults:
    """Recommended sampling from some of its values. Raises `CheckpointError` in the name of `origin`."""
    try:
        return SamplingDefaults(**values)
    except UsageError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _sampling(value: Any, origin: str) -> SamplingDefaults:
    if not isinstance(value, dict):
        raise CheckpointError(f"{origin}: sampling must be a JSON object such as {{'cfg': 4.0}}")
    known = {f.name: _int if f.name == "top_k" else _float for f in dataclasses.fields(SamplingDefaults)}
    values: dict[str, Any] = {}
    for key, item in value.items():
        if key in known:
            values[key] = _parsed(known[key], f"sampling.{key}", item, origin)
        elif key not in _SAMPLING_WITHOUT_EFFECT:
            raise CheckpointError(f"{origin}: sampling.{key} is no known key: remove it; known are {', '.join(known)}")
    return make_sampling(values, origin)


def _flat(content: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if key not in _GROUPS:
            yield key, value
        elif isinstance(value, dict):
            for inner, item in value.items():
                yield f"{_GROUPS[key]}.{inner}", item
        else:
            raise CheckpointError(f"{origin}: {key} must be a JSON object")


def _canonical(key: str) -> str:
    """The full name of a key; an unknown one comes back as it is."""
    for candidate in (key, f"transformer.{key}", f"vae.{key}"):
        candidate = _ALIASES.get(candidate, candidate)
        if candidate in _SETTABLE or candidate in _DERIVED or candidate in _WITHOUT_EFFECT:
            return candidate
    return key


def _parsed(parse: Callable[[Any], Value], key: str, value: Any, origin: str) -> Value:
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{origin}: {key} = {value!r} is not {_EXPECTED[parse]}") from error
