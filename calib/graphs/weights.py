"""The one weight file of a bundle: every tensor once, whichever graphs use it.

Tensors are keyed by the SHA-256 of their bytes, so the stepwise and the fused graphs share their weights
though they were traced apart.
"""

from __future__ import annotations

import hashlib
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.layers import read_weight
from engines.bundle.manifest import ALIGNMENT

INLINE = 1024  # smaller tensors stay in the graph, where shape inference can see them


def _stored(value: ir.Value) -> NDArray[Any]:
    """A constant as its bytes lie in a file: integers of 4 bits two by two."""
    tensor = value.const_value
    assert tensor is not None
    return read_weight(value) if tensor.dtype.bitwidth >= 8 else np.frombuffer(tensor.tobytes(), np.uint8)


class WeightFile:
    """Appends tensors to an open file."""

    def __init__(self, stream: BufferedWriter) -> None:
        self._file, self._stream = Path(stream.name), stream
        self._offsets: dict[bytes, int] = {}

    def add(self, array: NDArray[Any]) -> int:
        """Store the bytes of `array` unless they are there already; returns their offset."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        key = hashlib.sha256(data).digest()
        if key not in self._offsets:
            padding = -self._stream.tell() % ALIGNMENT
            self._stream.write(bytes(padding))
            self._offsets[key] = self._stream.tell()
            self._stream.write(data)
        return self._offsets[key]

    def store(self, model: ir.Model, *, new_only: bool = False) -> None:
        """Move the large tensors of `model` to the file; the model then refers to them and holds none.

        `new_only`: those that lie in some file already stay there.
        """
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None, value.name
            stored = isinstance(tensor, ir.ExternalTensor) and (new_only or Path(tensor.base_dir) == self._file.parent)
            if stored or tensor.nbytes < INLINE:
                continue
            value.const_value = ir.ExternalTensor(
                self._file.name,
                self.add(_stored(value)),
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=self._file.parent,
            )
