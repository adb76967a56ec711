"""Many images on many devices: the least hours, and what binds them.

The devices draw at most as their rooflines allow; the driver that stores the images can be slower than many of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engines.errors import UsageError
from engines.sizing.devices import Device, find
from engines.sizing.estimate import Estimate

DRIVER = "driver"
DRIVER_SECONDS = 0.11e-3
"""What `var-run --ray` takes of the driver's processor for an image, but for its bytes."""
DRIVER_SECONDS_PER_BYTE = 1.4e-9
"""What it takes for each byte of an image's pixels, stored as a row of an .npz file.

Both as measured by `tests/engines/fleet/driver_cost.py` (docs/fleet.md has machine and figures).
"""
_FORM = re.compile(r"([1-9][0-9]{0,5})x(\S+)")


def parse_workers(text: str) -> tuple[int, Device]:
    """How many workers of which device `8xl4` means. Raises `UsageError`."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"workers are written as 8xl4, a number and a device, not {text[:40]!r}")
    device = find(found[2])
    if device.is_cpu:
        raise UsageError("workers need a device whose peaks are known, such as 8xl4: those of a CPU are not")
    return int(found[1]), device


@dataclass(frozen=True)
class JobEstimate:
    """So many images, drawn by so many workers that are alike."""

    each: Estimate
    """One worker: its workload and its device."""
    images: int
    workers: int

    @property
    def drawing_seconds(self) -> float:
        """The least seconds that the workers take, all at work until the end."""
        return self.images / (self.workers * self.each.images_per_s)

    @property
    def driver_seconds(self) -> float:
        """Seconds that the driver takes to fetch and store the images, meanwhile."""
        side = self.each.workload.config.image_size
        return self.images * (DRIVER_SECONDS + DRIVER_SECONDS_PER_BYTE * side * side * 3)

    @property
    def seconds(self) -> float:
        """The least seconds of the job, without the time to load the engines."""
        return max(self.drawing_seconds, self.driver_seconds)

    @property
    def bound_by(self) -> str:
        """`memory` or `compute` of the workers, or `driver`."""
        return DRIVER if self.driver_seconds > self.drawing_seconds else self.each.bound_by

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "images": self.images,
            "workers": self.workers,
            "device": self.each.device.name,
            "bound_hours": self.seconds / 3600,
            "bound_by": self.bound_by,
            "drawing_seconds": self.drawing_seconds,
            "driver_seconds": self.driver_seconds,
        }
