"""What `Pipeline.edit` was asked for, as what `Pipeline.generate` takes; and its images laid over the originals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.editing.handed import canvas_of, masks_of, pictures_of
from engines.editing.mask import check_area
from engines.errors import UsageError
from engines.spec.config import ModelConfig

if TYPE_CHECKING:
    from engines.editing.canvas import Canvas
    from engines.editing.handed import Images, Masks
    from engines.pictures.images import Picture


@dataclass(frozen=True)
class Edit:
    """An edit of one picture or several; image k is of picture k and area k, or of the only one."""

    pictures: Sequence[Picture]
    canvases: Sequence[Canvas]
    areas: NDArray[np.bool_]
    """The cells that are redrawn, (areas, S, S)."""
    classes: Sequence[int | str]
    """One per image."""

    def squares(self) -> NDArray[np.uint8]:
        """The pictures as the model sees them, uint8 (pictures, R, R, 3)."""
        return np.stack([canvas.to_square(one) for canvas, one in zip(self.canvases, self.pictures, strict=True)])

    def laid_over(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The model's images (B, size, size, 3) laid over the originals, (B, h, w, 3) uint8.

        These are of one size, as `check_composite` makes sure.
        """
        laid = [
            canvas.lay_over(picture, image, area)
            for image, canvas, picture, area in zip(
                images, *map(itertools.cycle, (self.canvases, self.pictures, self.areas)), strict=False
            )
        ]
        return np.stack(laid)

    def check_composite(self) -> None:
        """Raises `UsageError` where pictures of several sizes would be laid over in one call."""
        sizes = {picture.shape for picture in self.pictures}
        if len(sizes) > 1:
            raise UsageError("pictures of several sizes cannot be composited in one call: edit them one by one")


def prepare(
    config: ModelConfig,
    images: Images,
    mask: Masks,
    classes: int | str | Sequence[int | str] | None,
    seeds: int | Sequence[int],
    fit: str,
) -> Edit:
    """Spread the arguments of `Pipeline.edit`, which explains them. Raises `UsageError`."""
    pictures, masks = pictures_of(images), masks_of(mask)
    canvases = [canvas_of(picture, config.image_size, fit) for picture in pictures]
    if classes is None:
        classes = config.unconditional_class
    try:
        names = [classes] if isinstance(classes, (int, str, np.integer)) else list(classes)
        seeded = 1 if isinstance(seeds, (int, np.integer)) else len(seeds)
    except TypeError as error:
        raise UsageError(f"classes and seeds must be numbers, or lists of them: {error}") from error
    counts = {"images": len(pictures), "masks": len(masks), "classes": len(names), "seeds": seeded}
    most = max(counts.values())
    if set(counts.values()) - {1, most}:
        listed = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise UsageError(f"{listed} do not fit: give one of a kind, or {most}")
    side, pairs = config.latent_size, max(len(pictures), len(masks))
    areas = np.stack(
        [
            one if one.shape == (side, side) else canvas.grid_of_mask(one, side)
            for one, canvas, _ in zip(itertools.cycle(masks), itertools.cycle(canvases), range(pairs), strict=False)
        ]
    )
    check_area(areas)
    return Edit(pictures, canvases, areas, names * most if len(names) == 1 else names)
