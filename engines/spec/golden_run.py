"""What a golden run holds: G images of the PyTorch reference, which a bundle carries to check its engines against.

`var_export/golden.py` makes it when the bundle is built, `engines/fidelity/checks.py` compares with it on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.spec.config import ModelConfig
from engines.spec.contract import sizes_of, specs_of
from engines.spec.sampling import RECOMMENDED

# Beside the names of dimensions in `engines.spec.contract`: G images of the run, K tokens kept at each place.
GOLDEN_ARRAYS = {
    spec.name: spec
    for spec in specs_of(
        """
        classes     int64   (G)
        seeds       uint64  (G)
        """
        + "".join(f"{option.name} {option.dtype} (G)\n" for option in RECOMMENDED)
        + """
        tokens      int64   (G, T)        drawn by the reference with the uniforms of its seeds
        f_hat       float32 (G, Z, S, S)  after the last scale
        image       uint8   (G, R, R, 3)
        top_index   int32   (G, T, K)     the K most likely tokens by the guided logits
        top_logit   float32 (G, T, K)     their logits
        log_sum_exp float64 (G, T)        over the whole vocabulary
        encoded     int64   (G, T)        the tokens the reference's encoder gives for `image`
        """
    )
}
# A bundle built with smoothing has these too: what smoothing makes of the same logits, with the noise of the seeds.
SMOOTH_ARRAYS = {
    spec.name: spec
    for spec in specs_of(
        """
        heaviest     int64   (G, T)        the entries of the codebook that weigh most
        mixed        float32 (G, T, Z)     the entries mixed
        smooth_image uint8   (G, R, R, 3)  mixed at scale 1 alone, with the tokens of the others
        """
    )
}
_TOKENS = ("tokens", "top_index", "encoded", "heaviest")
_MAX_IMAGES = 1024

# How the golden run smooths. As many entries are kept as the bundle sorts, so that many are mixed, whatever sampling
# the bundle recommends; at MIXED_SCALE alone, so that one coarse map of mixed entries is seen in the image.
SMOOTH_CHECK: dict[str, Any] = {"temperature": 2.0, "top_p": 0.0}
MIXED_SCALE = 1


class GoldenForm:
    """The form that the golden run of one bundle must have."""

    def __init__(self, config: ModelConfig, *, smooth: bool) -> None:
        self._config = config
        self._specs = GOLDEN_ARRAYS | (SMOOTH_ARRAYS if smooth else {})
        self._free: dict[str, int] = {}  # G and K, as the first array with them has them
        self._most = {"G": _MAX_IMAGES, "K": config.vae.vocab_size}
        self.names = tuple(self._specs)

    def accept(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Raises `ValueError` where an array has another type or shape than the configuration asks for."""
        spec, sizes = self._specs[name], sizes_of(self._config)
        wanted: list[int | str] = []
        for dim, length in zip(spec.dims, shape, strict=False):
            known = int(dim) if dim.isdigit() else sizes.get(dim, self._free.get(dim))
            if known is None and 1 <= length <= self._most[dim]:
                known = self._free[dim] = length
            wanted.append(dim if known is None else known)
        if dtype != np.dtype(spec.dtype) or list(shape) != wanted or len(shape) != len(spec.dims):
            raise ValueError(f"{name} is {dtype} {shape}, and not {spec.dtype} ({', '.join(spec.dims)})")

    def check_values(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raises `ValueError` on tokens and classes that the model does not have, and on what is not finite."""
        most = dict.fromkeys(_TOKENS, self._config.vae.vocab_size - 1) | {"classes": self._config.unconditional_class}
        for name, array in arrays.items():
            if name in most and not 0 <= array.min() <= array.max() <= most[name]:
                raise ValueError(f"{name} must lie in 0 to {most[name]}, and runs from {array.min()} to {array.max()}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinite values")
