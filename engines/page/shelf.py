"""Where the pictures lie that browsers are shown, each written whole, and once.

Gradio, given pixels, writes a file again for each browser that is shown the same, while others read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.errors import UsageError
from engines.pictures.images import Picture, save_picture


class Shelf:
    """A folder of what browsers upload and are shown; whoever made it removes it, and `sweep` what is older than
    `seconds`.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds

    def own(self, file: Any) -> Path:
        """A file that a browser says it has uploaded: it lies here. Raises `UsageError` where it does not."""
        try:
            path = Path(file["path"]).resolve(strict=True)
        except (OSError, KeyError, TypeError, ValueError):
            raise UsageError("upload the file once more: it is no longer here") from None
        if not path.is_relative_to(self._folder.resolve()) or not path.is_file():
            raise UsageError("upload the file once more: it is no longer here")
        return path

    async def sweep(self) -> None:
        """Remove, for ever, what has lain here for so long; whoever calls it ends it."""
        while True:
            await asyncio.sleep(self._seconds / 6)
            await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        oldest = time.time() - self._seconds
        for file in self._folder.rglob("*"):
            with contextlib.suppress(OSError):
                if file.is_file() and file.stat().st_mtime < oldest:
                    file.unlink()

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
