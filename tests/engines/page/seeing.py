"""What a page shows, as pixels."""

import io

import httpx
import numpy as np
from PIL import Image


def pixels(address, **options):
    with Image.open(io.BytesIO(httpx.get(address, **options).content)) as image:
        return np.asarray(image.convert("RGB"))
