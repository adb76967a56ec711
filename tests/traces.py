"""PyTorch's exporter, asked for the same graph again, gives what it gave before: exporting is most of a build's time.

A graph is kept under a digest of all that goes into it: the module with its weights, the shapes, the names, the code of
the model and of the graphs, the versions of the exporter's packages. What it gives is checked and cleaned as ever.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import io
import os
import pickle
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engines.storage import source_digest
from tests.kept import KEPT, locked

FOLDER = "traces"
FORMAT = 2  # of what is kept
INLINE = 1024  # bytes; smaller tensors stay in the file
SOURCES = ("var_export/model", "var_export/graphs", "engines/spec")
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir")
UNUSED_DAYS = 7


def install() -> None:
    """Put the memory before `torch.onnx.export`, for the rest of this process."""
    import torch

    if not isinstance(torch.onnx.export, Exporter):
        torch.onnx.export = Exporter(torch.onnx.export)
        _forget()


class Exporter:
    """`torch.onnx.export` with a memory."""

    def __init__(self, export: Any) -> None:
        self.export = export

    def __call__(self, module: Any, args: Any = (), **options: Any) -> Any:
        weights = {_digest(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        with locked(f"{FOLDER}/{_key(module, args, options)}.onnx") as path:
            if path.exists():
                os.utime(path)
            else:
                program = self.export(module, args, **options)
                if program is None:
                    return None
                _save(program.model, path, weights)
        return SimpleNamespace(model=_load(path, weights))


def _save(model: Any, path: Path, weights: dict[str, Any]) -> None:
    """Write the graph, with a reference where a tensor is one of the module's own: those are at hand at each call."""
    import onnx_ir as ir
    import torch

    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor.nbytes >= INLINE and isinstance(tensor.raw, torch.Tensor):
            digest = _digest(tensor.raw)
            if digest in weights:
                value.const_value = ir.ExternalTensor(
                    digest, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name
                )
    half = path.with_suffix(".partial")
    ir.save(model, half, format="protobuf")
    half.rename(path)


def _load(path: Path, weights: dict[str, Any]) -> Any:
    import onnx_ir as ir
    from torch.onnx._internal.exporter._core import TorchTensor

    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = TorchTensor(weights[value.const_value.location], name=value.name)
    return model


def _digest(tensor: Any) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    import torch

    data = tensor.detach().reshape(-1).clone().view(torch.uint8).numpy()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + data.tobytes()).hexdigest()


def _key(module: Any, args: Any, options: Any) -> str:
    """Digest of all that decides what is exported."""
    import torch

    class Content(pickle.Pickler):
        """Tensors by their bytes: as PyTorch pickles them they hold addresses."""

        def persistent_id(self, value: Any) -> Any:
            return _digest(value) if isinstance(value, torch.Tensor) else None

    content = io.BytesIO()
    Content(content).dump((module, args, options | {"dynamic_shapes": repr(options.get("dynamic_shapes"))}))
    classes = {type(part) for part in module.modules()}
    own = sorted(map(inspect.getsource, (each for each in classes if each.__module__.partition(".")[0] != "torch")))
    return hashlib.sha256(f"{FORMAT} {_code()} {own} ".encode() + content.getvalue()).hexdigest()


@functools.cache
def _code() -> str:
    versions = [importlib.metadata.version(name) for name in PACKAGES]
    return f"{source_digest(SOURCES)} {versions} {sys.version}"


def _forget() -> None:
    """Remove what no run has used for a week."""
    old = time.time() - UNUSED_DAYS * 86400
    for file in (KEPT / FOLDER).glob("*.onnx"):
        if file.stat().st_mtime < old:
            file.unlink(missing_ok=True)
