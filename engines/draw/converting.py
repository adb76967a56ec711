"""From images to tokens and back, without a transformer: the part of a `Pipeline` that the VQ-VAE is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.draw.device_check import ENCODING
from engines.draw.refusal import require_finite
from engines.editing.handed import squares_of
from engines.editing.mask import Mask, kept_tokens
from engines.errors import UsageError
from engines.spec.arrays import as_batch, as_tokens
from engines.spec.choices import FITS

if TYPE_CHECKING:
    from engines.draw.device_check import DeviceCheck
    from engines.draw.engine_set import EngineSet
    from engines.draw.rerun import Engines
    from engines.editing.handed import Images
    from engines.spec.config import ModelConfig


class Converter:
    """What a `Pipeline` makes of images and tokens, in batches of up to `max_batch`."""

    config: ModelConfig
    max_batch: int
    _engines: EngineSet
    _check: DeviceCheck

    def encode(self, images: Images, *, fit: str = FITS[0]) -> NDArray[np.int64]:
        """Pictures -> tokens int64 (B, T).

        Args:
            images: uint8 RGB, (h, w, 3) or (B, h, w, 3); files; pictures of Pillow; or a list of any of these. Those of
                another size than the model's become squares of it first.
            fit: how: `crop` the largest square in the middle, `stretch`, or `pad` with the edges.

        Raises `UsageError` where something else was given.

        """
        squares = squares_of(images, self.config.image_size, fit)
        self._check.require(cast("Engines", self), ENCODING)
        return self._map("encode", "image", squares, "tokens")

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tokens int (B, T) -> images uint8 (B, h, w, 3)."""
        return self.decode_features(self.accumulate(tokens))

    def accumulate(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Tokens int (B, T) -> accumulated feature maps float32 (B, Z, S, S), which the decoder takes."""
        return self._map("accumulate", "tokens", as_tokens(tokens, self.config), "f_hat")

    def decode_features(self, f_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Accumulated feature maps float32 (B, Z, S, S) -> images uint8 (B, h, w, 3)."""
        Z, S = self.config.vae.z_channels, self.config.latent_size
        f_hat = as_batch(f_hat, "feature maps", "float32", (Z, S, S))
        return self._map("decode", "f_hat", f_hat, "image")

    def reconstruct(self, images: Images, *, fit: str = FITS[0]) -> NDArray[np.uint8]:
        """Pictures through the tokens and back, uint8 (B, h, w, 3) of the model's size; arguments of `encode`."""
        return self.decode(self.encode(images, fit=fit))

    def keeping(self, squares: NDArray[np.uint8], redrawn: Mask) -> dict[str, Any]:
        """See `engines.draw.results.ImageSource`: `forced`, the picture's tokens and where they are kept."""
        return {"forced": (self.encode(squares), kept_tokens(self.config, redrawn))}

    def _map(self, graph: str, given: str, values: Array, result: str) -> Array:
        """Run a graph with one input and one output over all of `values`, in batches."""
        if len(values) == 0:
            raise UsageError("nothing to do: the array holds no image")
        parts = []
        for start in range(0, len(values), self.max_batch):
            part = values[start : start + self.max_batch]
            parts.append(self._engines.call(graph, {given: part}, len(part))[result])
            require_finite(self.config, {result: parts[-1]})
        return np.concatenate(parts)
