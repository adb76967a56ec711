"""From what a caller passes to `generate` to validated arrays, one value per image."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.backends.base import Array
from engines.bundle.labels import ClassNames
from engines.draw.batch import Batch, Rows
from engines.draw.uniforms import MAX_SEED, noise, uniforms
from engines.errors import UsageError
from engines.spec.config import ModelConfig, SamplingDefaults

if TYPE_CHECKING:
    from engines.bundle.manifest import Manifest

MAX_CFG = 1000  # beyond, differences of logits leave what float32 can tell apart
MIN_TEMPERATURE = 1e-4  # below, quotients of logits overflow
PerImage = float | Sequence[float] | NDArray[Any] | None
Flags = bool | Sequence[bool] | NDArray[np.bool_] | None
Forced = tuple[ArrayLike, ArrayLike] | ArrayLike
PreviewScales = Sequence[int] | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Request:
    """Images to draw; every array has one entry per image."""

    classes: Array
    """int64 (B,)."""
    seeds: Array
    """uint64 (B,)."""
    cfg: Array
    temperature: Array
    top_k: Array
    top_p: Array
    smooth: Array
    """bool (B,)."""
    forced_tokens: Array | None
    forced_mask: Array | None

    def __len__(self) -> int:
        return len(self.classes)

    def batch(self, config: ModelConfig, part: slice) -> Batch:
        """Some of the images as a batch of the scale loop."""
        return Batch(
            rows=Rows.of(self.classes[part], self.cfg[part], config.unconditional_class),
            uniforms=uniforms(self.seeds[part], config.num_tokens),
            cfg=self.cfg[part],
            temperature=self.temperature[part],
            top_k=self.top_k[part],
            top_p=self.top_p[part],
            smooth=self.smooth[part],
            noise=self._noise(config, part),
            forced_tokens=None if self.forced_tokens is None else self.forced_tokens[part],
            forced_mask=None if self.forced_mask is None else self.forced_mask[part],
        )

    def _noise(self, config: ModelConfig, part: slice) -> Array | None:
        smooth = self.smooth[part]
        if not smooth.any():
            return None
        T, V = config.num_tokens, config.vae.vocab_size
        if smooth.all():
            return noise(self.seeds[part], T, V)
        table = np.full((len(smooth), T, V), 0.5, np.float32)
        table[smooth] = noise(self.seeds[part][smooth], T, V)
        return table


def make_request(
    bundle: Manifest,
    classes: int | str | Sequence[int | str] | NDArray[Any],
    *,
    seeds: int | Sequence[int] | NDArray[Any],
    cfg: PerImage = None,
    temperature: PerImage = None,
    top_k: PerImage = None,
    top_p: PerImage = None,
    smooth: Flags = None,
    forced: Forced | None = None,
) -> Request:
    """Check and spread the arguments of `Pipeline.generate`; `bundle` need have no files.

    Raises `UsageError` with the fix in it.
    """
    config, defaults, max_top_k = bundle.config, bundle.sampling, bundle.max_top_k
    names = ClassNames(config.transformer.num_classes, bundle.labels)
    try:
        asked = [classes] if isinstance(classes, (int, str, np.integer)) else list(classes)
        indices = [names.index(name if isinstance(name, str) else operator.index(name)) for name in asked]
    except TypeError as error:
        raise UsageError(f"classes must be indices or labels, got {classes!r}") from error
    B = len(indices)
    if B == 0:
        raise UsageError("no class was given; name at least one")

    request = Request(
        classes=np.array(indices, np.int64),
        seeds=_seeds(seeds, B),
        cfg=_spread("cfg", cfg, defaults.cfg, B, np.float32),
        temperature=_spread("temperature", temperature, defaults.temperature, B, np.float32),
        top_k=_spread("top_k", top_k, _fitting(defaults, max_top_k), B, np.int64),
        top_p=_spread("top_p", top_p, defaults.top_p, B, np.float32),
        smooth=_flags("smooth", smooth, B),
        forced_tokens=None,
        forced_mask=None,
    )
    _check_sampling(request, config, max_top_k)
    if request.smooth.any() and not bundle.smooth:
        raise UsageError(
            f"{bundle.name} was built without smoothing, which needs a bundle of its own: var-export build --smooth"
        )
    if forced is None:
        return request
    tokens, mask = _forced(forced, config, B)
    return Request(**{**vars(request), "forced_tokens": tokens, "forced_mask": mask})


def preview_sets(given: PreviewScales, images: int, scales: int) -> list[set[int]]:
    """The scales after which each image is shown, the last one always. Raises `UsageError`."""
    last = scales - 1
    listed: list[Any] = list(range(scales)) if given is None else list(given)
    lists = listed if any(np.ndim(entry) for entry in listed) else [listed] * images
    if len(lists) != images:
        raise UsageError(f"{len(lists)} lists of preview_scales for {images} images; give one list per image, or one")
    try:
        wanted = [{operator.index(scale) for scale in entry} | {last} for entry in lists]
    except TypeError as error:
        raise UsageError(f"preview_scales must be whole numbers, got {given!r}") from error
    for entry in wanted:
        if not 0 <= min(entry) <= max(entry) <= last:
            raise UsageError(f"preview_scales must lie in 0 to {last}, got {sorted(entry)}")
    return wanted


def _fitting(defaults: SamplingDefaults, max_top_k: int) -> int:
    return min(defaults.top_k, max_top_k)


def _seeds(seeds: int | Sequence[int] | NDArray[Any], B: int) -> Array:
    try:
        if isinstance(seeds, (int, np.integer)):
            values = [operator.index(seeds) + k for k in range(B)]
        else:
            values = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise UsageError(f"seeds must be whole numbers, got {seeds!r}") from error
    if len(values) != B:
        raise UsageError(f"{len(values)} seeds for {B} images; give one seed per image, or one for all")
    for value in values:
        if not 0 <= value <= MAX_SEED:
            raise UsageError(f"a seed must lie in 0 to 2^64 - 1, got {value}")
    return np.array(values, np.uint64)


def _spread(name: str, value: PerImage, default: float, B: int, dtype: type[np.generic]) -> Array:
    try:
        array = np.asarray(default if value is None else value, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a number, or one per image, got {value!r}") from error
    if array.ndim > 1 or (array.ndim == 1 and len(array) != B):
        raise UsageError(f"{name} needs one value, or one per image ({B}), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{name} must be finite, got {value!r}")
    if dtype is np.int64 and (array != np.floor(array)).any():
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    limit = 2**53 if dtype is np.int64 else np.finfo(np.float32).max
    return np.broadcast_to(array.clip(-limit, limit), (B,)).astype(dtype)


def _flags(name: str, given: Flags, B: int) -> Array:
    try:
        array = np.asarray(False if given is None else given)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.dtype != np.bool_ or array.shape not in ((), (B,)):
        raise UsageError(f"{name} must be true or false, or one of them per image ({B}), got {given!r:.60}")
    return np.broadcast_to(array, (B,)).copy()


def _check_sampling(request: Request, config: ModelConfig, max_top_k: int) -> None:
    V = config.vae.vocab_size
    if ((request.cfg < 0) | (request.cfg > MAX_CFG)).any():
        raise UsageError(f"cfg must lie in 0 to {MAX_CFG}, got {request.cfg.min()} to {request.cfg.max()}")
    if (request.temperature < MIN_TEMPERATURE).any():
        raise UsageError(
            f"temperature must be at least {MIN_TEMPERATURE}, got {request.temperature.min()}; "
            "for the most likely token at each place use top_k 1"
        )
    if ((request.top_p < 0) | (request.top_p > 1)).any():
        raise UsageError(f"top_p must lie in 0 to 1, got {request.top_p[(request.top_p < 0) | (request.top_p > 1)][0]}")
    if (request.top_k < 0).any():
        raise UsageError(f"top_k must be 0 or more, got {request.top_k.min()}")
    if (request.top_k > max_top_k).any():
        raise UsageError(
            f"top_k {request.top_k.max()} is more than the {max_top_k} this bundle was built for; "
            f"lower it, or build with --max-top-k {min(int(request.top_k.max()), V)}"
        )
    if max_top_k < V and ((request.top_k == 0) & (request.top_p > 0) & (request.top_p < 1)).any():
        raise UsageError(
            f"top_p without top_k needs the whole vocabulary sorted, and this bundle sorts {max_top_k} of {V}; "
            f"give a top_k up to {max_top_k}, or build with --max-top-k {V}"
        )


def _forced(forced: Forced, config: ModelConfig, B: int) -> tuple[Array, Array]:
    if isinstance(forced, tuple) and len(forced) != 2:
        raise UsageError("forced must be an array of tokens, or a pair of tokens and mask")
    given, where = forced if isinstance(forced, tuple) else (forced, True)
    shape = (B, config.num_tokens)
    try:
        tokens = np.broadcast_to(np.asarray(given), shape)
        mask = np.broadcast_to(np.asarray(where), shape)
    except ValueError as error:
        raise UsageError(f"forced tokens and mask must have shape {shape}, or spread to it: {error}") from error
    if mask.dtype != np.bool_:
        raise UsageError(f"the mask of forced tokens must be bool, got {mask.dtype}")
    check_tokens(tokens[mask], config)
    return np.where(mask, tokens, 0).astype(np.int64), np.ascontiguousarray(mask)


def check_tokens(tokens: Array, config: ModelConfig) -> None:
    """Raises `UsageError` where `tokens` are not integers inside of the vocabulary."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= config.vae.vocab_size):
        raise UsageError(f"tokens must lie in 0 to {config.vae.vocab_size - 1}, got {tokens.min()} to {tokens.max()}")
