"""Where the pictures lie that browsers are shown, each written whole, and once.

Gradio, given pixels, writes a file again for each browser that is shown the same, while others read it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.pictures.images import Picture, save_picture


class Shelf:
    """A folder of pictures, which whoever made it removes: gradio those that were shown, after `seconds`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds

    async def put(self, images: Sequence[Picture], texts: Sequence[Mapping[str, str]] = ()) -> list[str]:
        """Files of images, each (h, w, 3) uint8, with their settings inside where there are some.

        They are encoded in a thread: other requests go on meanwhile.
        """
        return await asyncio.to_thread(self._put_all, images, texts)

    def _put_all(self, images: Sequence[Picture], texts: Sequence[Mapping[str, str]]) -> list[str]:
        return [self._put(image, texts[place] if texts else {}) for place, image in enumerate(images)]

    def _put(self, image: Picture, text: Mapping[str, str]) -> str:
        digest = hashlib.sha256(json.dumps([image.shape, dict(text)]).encode())
        digest.update(image.tobytes())
        name = f"{text['label'].split(',')[0]}-{text['seed']}" if "label" in text and "seed" in text else "image"
        file = self._folder / digest.hexdigest()[:32] / f"{_plain(name)}.png"
        try:
            fresh = time.time() - file.stat().st_mtime < self._seconds / 2
        except OSError:
            fresh = False
        if not fresh:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_picture(file, image, text)
        return str(file)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name)[:80]
