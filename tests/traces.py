"""PyTorch's exporter, asked for the same graph again, gives what it gave before: exporting is most of a build's time.

A graph is kept under a digest of all that goes into it: the module with its weights, the shapes, the names, the code of
the model and of the graphs, the versions of the exporter's packages. What it gives is checked and cleaned as ever.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import os
import pickle
import time
from types import SimpleNamespace
from typing import Any

from tests.kept import KEPT, digest_of_code, locked

FOLDER = "traces"
SOURCES = ("var_export/model", "var_export/graphs", "engines/spec", "tests/traces.py")
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
        import onnx_ir as ir

        key = _key(module, args, options)
        with locked(f"{FOLDER}/{key}.onnx") as path:
            if path.exists():
                os.utime(path)
            else:
                program = self.export(module, args, **options)
                if program is None:
                    return None
                half = path.with_suffix(".partial")
                ir.save(program.model, half)
                half.rename(path)
            return SimpleNamespace(model=ir.load(path))


def _key(module: Any, args: Any, options: Any) -> str:
    """Digest of all that decides what is exported."""
    import torch

    class Content(pickle.Pickler):
        """Tensors by their bytes: pickled by PyTorch they hold addresses."""

        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return None
            data = value.detach().reshape(-1).clone().view(torch.uint8).numpy()
            return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()

    content = io.BytesIO()
    Content(content).dump((module, args, options | {"dynamic_shapes": repr(options.get("dynamic_shapes"))}))
    files = {inspect.getfile(type(part)) for part in module.modules()}
    own = sorted(file for file in files if "site-packages" not in file)
    return hashlib.sha256(content.getvalue() + _code().encode() + digest_of_code(own).encode()).hexdigest()


@functools.cache
def _code() -> str:
    return digest_of_code(SOURCES, PACKAGES)


def _forget() -> None:
    """Remove what no run has used for a week."""
    old = time.time() - UNUSED_DAYS * 86400
    for file in (KEPT / FOLDER).glob("*.onnx"):
        if file.stat().st_mtime < old:
            file.unlink(missing_ok=True)
