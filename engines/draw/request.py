"""From what a caller passes to `generate` to validated arrays, one value per image."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.backends.base import Array
from engines.bundle.labels import NONE, ClassNames
from engines.draw.batch import UNREAD, Batch, Rows
from engines.errors import UsageError
from engines.spec.arrays import as_array, check_tokens
from engines.spec.choices import FUSED
from engines.spec.config import ModelConfig
from engines.spec.sampling import OPTIONS, SamplingOption, SamplingOptions
from engines.spec.uniforms import MAX_SEED, noise, uniforms
from engines.words import quoted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from engines.bundle.manifest import Manifest

Classes = int | str | Sequence[int | str] | NDArray[Any]
Seeds = int | Sequence[int] | NDArray[Any]
Forced = tuple[ArrayLike, ArrayLike] | ArrayLike
FORCED = "forced"
"""The text of a picture of which some tokens were given: no command makes it again."""
PreviewScales = Sequence[int] | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Request:
    """Images to draw; every array has one entry per image."""

    classes: Array
    """int64 (B,)."""
    seeds: Array
    """uint64 (B,)."""
    sampling: Mapping[str, Array]
    """Each option of `engines.spec.sampling`, by name: (B,), of its dtype."""
    forced_tokens: Array | None = None
    """int64 (B, T)."""
    forced_mask: Array | None = None
    """bool (B, T), true where the token is taken instead of drawn."""

    def __len__(self) -> int:
        return len(self.classes)

    def texts(self, bundle: Manifest) -> tuple[dict[str, str], ...]:
        """What a saved picture of each image says of how it was made: class, label, seed, sampling and bundle."""
        names = ClassNames(bundle.config.transformer.num_classes, bundle.labels)
        shared = {"bundle": bundle.name, "build_key": bundle.build_key, "precision": bundle.precision}
        return tuple(
            {
                "class": NONE if index == names.unconditional else str(index),
                "label": names.label(index),
                "seed": str(seed),
                **{name: str(values[k].item()) for name, values in self.sampling.items()},
                **({} if self.forced_tokens is None else {FORCED: "True"}),
                **shared,
            }
            for k, (index, seed) in enumerate(zip(self.classes.tolist(), self.seeds.tolist(), strict=True))
        )

    def check_form(self, form: str, config: ModelConfig) -> None:
        """Raises `UsageError` where guidance ends early, and the form is the one that computes all scales in a call."""
        reached = self.sampling["cfg_scales"]
        if form == FUSED and ((reached > 0) & (reached < config.num_scales) & (self.sampling["cfg"] != 0)).any():
            raise UsageError("cfg_scales needs the stepwise form: --form stepwise, or load with form='stepwise'")

    def batch(self, config: ModelConfig, part: slice) -> Batch:
        """Some of the images as a batch of the scale loop."""
        sampling = {name: values[part] for name, values in self.sampling.items()}
        seeds, T = self.seeds[part], config.num_tokens
        per_token = {"uniforms": uniforms(seeds, T), "forced_mask": np.zeros((len(seeds), T), bool)}
        if self.forced_tokens is not None and self.forced_mask is not None:
            per_token |= {"forced_tokens": self.forced_tokens[part], "forced_mask": self.forced_mask[part]}
        if sampling["smooth"].any():
            per_token["noise"] = _noise(seeds, sampling["smooth"], T, config.vae.vocab_size)
        return Batch(Rows.of(self.classes[part], sampling["cfg"], config.unconditional_class), sampling, per_token)


def make_request(
    bundle: Manifest,
    classes: Classes,
    *,
    seeds: Seeds,
    forced: Forced | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Request:
    """Check and spread the arguments of `Pipeline.generate`; `bundle` need have no files.

    One class stands for as many as there are seeds. Raises `UsageError` with the fix in it.
    """
    names = ClassNames(bundle.config.transformer.num_classes, bundle.labels)
    try:
        asked = [classes] if isinstance(classes, (int, str, np.integer)) else list(classes)
        indices = [names.index(name if isinstance(name, str) else operator.index(name)) for name in asked]
    except TypeError as error:
        raise UsageError(f"classes must be indices or labels, got {quoted(classes)}") from error
    if not indices:
        raise UsageError("no class was given; name at least one")
    seeded = _seeds(seeds, len(indices))
    B = len(seeded)
    request = Request(np.resize(np.array(indices, np.int64), B), seeded, _sampling(bundle, sampling, B))
    if forced is None:
        return request
    tokens, mask = _forced(forced, bundle.config, B)
    return dataclasses.replace(request, forced_tokens=tokens, forced_mask=mask)


def preview_sets(given: PreviewScales, images: int, scales: int) -> list[set[int]]:
    """The scales after which each image is shown, the last one always. Raises `UsageError`."""
    last = scales - 1
    try:
        listed: list[Any] = list(range(scales)) if given is None else list(given)
        lists = listed if any(np.ndim(entry) for entry in listed) else [listed] * images
    except (TypeError, ValueError) as error:  # ValueError: lists in lists of different lengths
        raise UsageError(f"preview_scales must be a list of whole numbers, got {quoted(given)}") from error
    if len(lists) != images:
        raise UsageError(f"{len(lists)} lists of preview_scales for {images} images; give one list per image, or one")
    try:
        wanted = [{operator.index(scale) for scale in entry} | {last} for entry in lists]
    except TypeError as error:
        raise UsageError(f"preview_scales must be whole numbers, got {quoted(given)}") from error
    for entry in wanted:
        if not 0 <= min(entry) <= max(entry) <= last:
            raise UsageError(f"preview_scales must lie in 0 to {last}, got {quoted(sorted(entry))}")
    return wanted


def _seeds(seeds: Seeds, classes: int) -> Array:
    """A seed for each of `classes` images; of one class, as many as there are."""
    try:
        if isinstance(seeds, (int, np.integer)):
            values = [operator.index(seeds) + k for k in range(classes)]
        else:
            values = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise UsageError(f"seeds must be whole numbers, got {quoted(seeds)}") from error
    if not values or (len(values) != classes and classes != 1):
        raise UsageError(f"{len(values)} seeds for {classes} images; give one seed per image, or one for all")
    for value in values:
        if not 0 <= value <= MAX_SEED:
            raise UsageError(f"a seed must lie in 0 to 2^64 - 1, got {quoted(value)}")
    return np.array(values, np.uint64)


def _noise(seeds: Array, smooth: Array, T: int, V: int) -> Array:
    """Noise float32 (B, T, V) of the images that are smoothed; of the others, what stands for it."""
    if smooth.all():
        return noise(seeds, T, V)
    table = np.full((len(seeds), T, V), UNREAD["noise"], np.float32)
    table[smooth] = noise(seeds[smooth], T, V)
    return table


def _sampling(bundle: Manifest, given: SamplingOptions, B: int) -> dict[str, Array]:
    """Every option (B,) as given, or as the bundle recommends it."""
    unknown = set(given) - {option.name for option in OPTIONS}
    if unknown:
        raise TypeError(f"{min(unknown)} is no sampling option: they are {', '.join(o.name for o in OPTIONS)}")
    defaults = bundle.sampling.fitted(bundle.max_top_k)
    values: dict[str, Array] = {}
    for option in OPTIONS:
        value = given.get(option.name)
        values[option.name] = _spread(option, getattr(defaults, option.name) if value is None else value, B)
    _check_for_bundle(values, bundle)
    return values


def _spread(option: SamplingOption, value: Any, B: int) -> Array:
    """One option (B,) from a value for all images or one per image, checked."""
    name = option.name
    if option.kind == "bool":
        return _spread_flag(name, value, B)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{name} must be a number, or one per image, got {quoted(value)}") from error
    if array.ndim > 1 or (array.ndim == 1 and len(array) != B):
        raise UsageError(f"{name} needs one value, or one per image ({B}), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{name} must be finite, got {quoted(value)}")
    if option.kind == "int" and (array != np.floor(array)).any():
        raise UsageError(f"{name} must be a whole number, got {quoted(value)}")
    limit = 2**53 if option.kind == "int" else np.finfo(np.float32).max
    spread = np.broadcast_to(array.clip(-limit, limit), (B,)).astype(option.dtype)
    wrong = ~option.holds(spread)
    if wrong.any():
        raise option.refusal(spread[wrong][0])
    return spread


def _spread_flag(name: str, value: Any, B: int) -> Array:
    array = as_array(value, name)
    if array.dtype != np.bool_ or array.shape not in ((), (B,)):
        raise UsageError(f"{name} must be true or false, or one of them per image ({B}), got {quoted(value)}")
    return np.broadcast_to(array, (B,)).copy()


def _check_for_bundle(sampling: Mapping[str, Array], bundle: Manifest) -> None:
    """Raises `UsageError` on what other bundles could do, but not this one."""
    V, sorts = bundle.config.vae.vocab_size, bundle.max_top_k
    top_k, top_p = sampling["top_k"], sampling["top_p"]
    if (top_k > sorts).any():
        raise UsageError(
            f"top_k {top_k.max()} is more than the {sorts} this bundle was built for; "
            f"lower it, or build with --max-top-k {min(int(top_k.max()), V)}"
        )
    if sorts < V and ((top_k == 0) & (top_p > 0) & (top_p < 1)).any():
        raise UsageError(
            f"top_p without top_k needs the whole vocabulary sorted, and this bundle sorts {sorts} of {V}; "
            f"give a top_k up to {sorts}, or build with --max-top-k {V}"
        )
    if sampling["smooth"].any() and not bundle.smooth:
        raise UsageError(
            f"{bundle.name} was built without smoothing, which needs a bundle of its own: var-export build --smooth"
        )


def _forced(forced: Forced, config: ModelConfig, B: int) -> tuple[Array, Array]:
    if isinstance(forced, tuple) and len(forced) != 2:
        raise UsageError("forced must be an array of tokens, or a pair of tokens and mask")
    given, where = forced if isinstance(forced, tuple) else (forced, True)
    shape = (B, config.num_tokens)
    try:
        tokens = np.broadcast_to(as_array(given, "forced tokens"), shape)
        mask = np.broadcast_to(as_array(where, "the mask of forced tokens"), shape)
    except ValueError as error:
        raise UsageError(f"forced tokens and mask must have shape {shape}, or spread to it: {error}") from error
    if mask.dtype != np.bool_:
        raise UsageError(f"the mask of forced tokens must be bool, got {mask.dtype}")
    check_tokens(tokens[mask], config)
    return np.where(mask, tokens, 0).astype(np.int64), np.ascontiguousarray(mask)
