"""What graphs give where a value that decides it is not finite, so that no backend turns an overflow into a picture.

NaN and infinity leave a graph as ordinary numbers: a pixel becomes 0, a token the first of the codebook. So the graphs
look at what decides their outputs, and give what nothing else gives: a token of -1, a picture of stripes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1


def stripes(width: int) -> NDArray[np.uint8]:
    """A row of such a picture, (width,): black and white in turns, in every channel and row."""
    return (np.arange(width) % 2 * 255).astype(np.uint8)
