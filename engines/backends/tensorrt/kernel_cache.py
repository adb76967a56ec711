"""TensorRT-RTX compiles its kernels where it runs; this keeps them from one process to the next.

A plan of TensorRT-RTX holds its kernels as source. They are compiled when a context is made, for every profile, and a
runtime cache holds the results. TensorRT-RTX itself refuses a cache of another GPU, driver or version.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from engines.errors import UsageError
from engines.storage import atomic_write

log = logging.getLogger(__name__)


class KernelCache:
    """The runtime cache of one engine, and the file it is kept in."""

    def __init__(self, trt: Any, engine: Any, file: Path | None) -> None:
        self._file = file
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache = self.config.create_runtime_cache()
        self._known = 0
        try:
            data = b"" if file is None else file.read_bytes()
        except OSError:
            data = b""
        if data and self._cache.deserialize(data):
            self._known = len(data)
        if not self.config.set_runtime_cache(self._cache):
            log.info("TensorRT-RTX takes no cache for %s: it compiles the kernels in every process", file)

    def save(self) -> None:
        """Write the file anew where kernels were added. A cache that cannot be written only costs time."""
        data = memoryview(self._cache.serialize())
        if self._file is None or data.nbytes == self._known:
            return
        try:
            with atomic_write(self._file) as file:
                file.write(data)
            self._known = data.nbytes
        except UsageError as error:
            log.info("the compiled kernels are not kept: %s", error)
