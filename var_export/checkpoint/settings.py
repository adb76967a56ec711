"""What a config.json or `--set key=value` says about a checkpoint, in one vocabulary.

Two layouts of config.json are read: this project's own (`vae`, `var` and `sampling` nested, see
`data/demo/config.json`) and the flat constructor arguments that PyTorchModelHubMixin stores for the official
VARHF class (`vae_kwargs` nested). Both become settings under the names of `ModelConfig`'s fields, with dots:
`patch_nums`, `vae.quant_resi`, `transformer.heads`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.errors import CheckpointError, UsageError
from engines.foreign import MALFORMED, parse_json
from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig
from engines.spec.sampling import RECOMMENDED, Sampling
from engines.words import quoted
from var_export.checkpoint.sources import NamedFile

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
    """What a config.json says; nothing at all for one that does not count."""

    settings: Settings = field(default_factory=dict)
    sampling: Sampling | None = None
    labels: str | None = None
    """Name of the file of labels, which lies beside the config.json."""
    file: NamedFile | None = None


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


def _ratio(value: Any) -> float:
    return abs(_float(value))  # as the official Phi takes it


_EXPECTED: dict[Callable[[Any], Value], str] = {
    _text: "a name",
    _file_name: "the name of a file beside it",
    _int: "a whole number",
    _float: "a number",
    _ratio: "a number",
    _bool: "true or false",
    _ints: "a list of whole numbers such as 1,2,3",
}

# Type of a field, as the configuration is annotated -> what reads a value of it.
_PARSERS: dict[Any, Callable[[Any], Value]] = {
    "str": _text,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "tuple[int, ...]": _ints,
}


def _fields(kind: type, group: str = "") -> dict[str, Callable[[Any], Value]]:
    """Name of each plain field of a configuration, after `group` -> what reads it."""
    return {f"{group}{f.name}": _PARSERS[f.type] for f in dataclasses.fields(kind) if f.type in _PARSERS}


# What a user may set.
_SETTABLE = {
    **_fields(ModelConfig),
    **_fields(TransformerConfig, "transformer."),
    "transformer.mlp_ratio": _float,
    **_fields(VaeConfig, "vae."),
    "vae.quant_resi": _ratio,
}

# What a config.json may state besides: it follows from the rest, and is held against it.
_DERIVED: dict[str, Callable[[ModelConfig], Value]] = {
    "image_size": lambda config: config.image_size,
    "num_tokens": lambda config: config.num_tokens,
    "transformer.head_dim": lambda config: config.transformer.head_dim,
    "transformer.uncond_class": lambda config: config.unconditional_class,
    "vae.downsample": lambda config: config.vae.downsample,
    "vae.in_channels": lambda config: 3,
    "vae.v_patch_nums": lambda config: config.patch_nums,
}
_READERS = {key: _ints if key == "vae.v_patch_nums" else _int for key in _DERIVED} | _SETTABLE

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


def read_config(file: NamedFile, *, only_if_var: bool = False) -> ConfigFile:
    """Read a config.json; with `only_if_var`, one that does not describe a VAR model counts as empty.

    Raises `CheckpointError` where it cannot be read, has an unknown key or a value of the wrong type.
    """
    origin = file.shown
    try:
        content = parse_json(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{origin} is not valid JSON ({error}): correct it") from error
    if only_if_var and not (isinstance(content, dict) and _TELLTALES & content.keys()):
        return ConfigFile()
    if not isinstance(content, dict):
        raise CheckpointError(f"{origin} must hold a JSON object, not a {type(content).__name__}")
    settings: Settings = {}
    sampling: Sampling | None = None
    labels: str | None = None
    for written, value in _flat(content, origin):
        key = _canonical(written)
        if written == "labels":
            labels = str(_parsed(_file_name, written, value, origin))
        elif written == "sampling":
            sampling = _sampling(value, origin)
        elif parse := _READERS.get(key):
            settings[key] = Setting(_parsed(parse, key, value, origin), origin)
        elif key not in _WITHOUT_EFFECT:
            known = ", ".join([*_READERS, "sampling", "labels"])
            raise CheckpointError(f"{origin}: {written!r} is no known key: remove it; known are {known}")
    return ConfigFile(settings, sampling, labels, file)


def check_derived(config: ModelConfig, settings: Settings) -> None:
    """Hold what a config.json states although it follows from the rest against `config`. Raises `CheckpointError`."""
    for key, setting in settings.items():
        if key in _DERIVED and setting.value != (value := _DERIVED[key](config)):
            raise CheckpointError(
                f"{setting.origin} says {key} = {shown(setting.value)}, but {shown(value)} follows from the tensors "
                "and the other settings: correct or remove it"
            )


def shown(value: Value) -> str:
    """A value as messages show it: a list in the form that `--set` takes."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def make_sampling(values: Mapping[str, Any], origin: str) -> Sampling:
    """Recommended sampling from some of its values. Raises `CheckpointError` in the name of `origin`."""
    try:
        return Sampling(**values)
    except UsageError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _sampling(value: Any, origin: str) -> Sampling:
    if not isinstance(value, dict):
        raise CheckpointError(f"{origin}: sampling must be a JSON object such as {{'cfg': 4.0}}")
    known = {option.name: _PARSERS[option.kind] for option in RECOMMENDED}
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
        if candidate in _READERS or candidate in _WITHOUT_EFFECT:
            return candidate
    return key


def _parsed(parse: Callable[[Any], Value], key: str, value: Any, origin: str) -> Value:
    try:
        return parse(value)
    except MALFORMED as error:
        raise CheckpointError(f"{origin}: {key} = {quoted(value)} is not {_EXPECTED[parse]}") from error
