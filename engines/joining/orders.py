"""What one client asks for."""

from __future__ import annotations

from dataclasses import dataclass

from engines.backends.base import Array
from engines.draw.request import Request


@dataclass(frozen=True)
class Order:
    """Images to draw, or pictures of which a part is redrawn."""

    request: Request
    pictures: Array | None = None
    """uint8 (B, R, R, 3), where it is an edit."""
    redrawn: Array | None = None
    """bool (B, S, S), beside `pictures`."""

    def __len__(self) -> int:
        return len(self.request)
