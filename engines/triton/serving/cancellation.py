"""How the unary model tells the streaming one that a request was cancelled: a file both know the name of.

Triton runs every Python model in a process of its own, and hands a request from one to the other, but (as of 24.10)
not its cancellation. Both processes are children of one server, so the folder is named after it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

from engines.errors import BackendError

_TOKEN = re.compile(r"[0-9a-f]{32}")


class CancelFlags:
    """Flags of one server's requests. Any process of the server may ask; one owns the folder. Raises `BackendError`."""

    def __init__(self, model: str, *, own: bool = False) -> None:
        """Args: model: name of the unary model; own: make the folder, which `close` removes."""
        self._folder = Path(tempfile.gettempdir()) / f"{model}-{os.getuid()}-{os.getppid()}"
        self._own = own
        if own:
            self._make()

    def new(self) -> str:
        """A token for one request."""
        return uuid.uuid4().hex

    def set(self, token: str) -> None:
        """The request of this token was cancelled."""
        self._make()  # a model that is loaded anew begins before the old one ends, which removes the folder
        (self._folder / token).touch()

    def clear(self, token: str) -> None:
        """The request of this token has ended."""
        with contextlib.suppress(OSError):
            (self._folder / token).unlink()

    def is_set(self, token: str) -> bool:
        """Whether the request of this token was cancelled; never for what is no token."""
        return _TOKEN.fullmatch(token) is not None and (self._folder / token).exists()

    def close(self) -> None:
        """Remove the folder of the owner."""
        if self._own:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise BackendError(f"{self._folder} belongs to another user: remove it, or give the server another TMPDIR")
