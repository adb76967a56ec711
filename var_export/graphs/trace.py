"""From a traced module to an ONNX graph in memory, by PyTorch's torch.export-based exporter.

Names, order, element types and varying dimensions come from `engines/spec/contract.py` alone.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from engines.errors import VarExportError
from engines.spec import contract
from engines.spec.config import ModelConfig

OPSET = 20  # the newest that TensorRT 10.3's parser documents

# Sizes to trace with: distinct, and none of 0 or 1, which torch.export would take for constants.
_EXAMPLE = {"B": 3, "N": 5, "L": 4, "M": 9, "P": 7}
_LIMITS = {"B": (1, 4096), "N": (1, 8192), "L": (1, 65536), "M": (1, 65536), "P": (0, 262144)}


class ExportError(VarExportError, RuntimeError):
    """PyTorch's exporter failed on a graph."""


def trace(
    module: nn.Module, spec: contract.GraphSpec, config: ModelConfig, precision: str, *, smooth: bool = False
) -> ir.Model:
    """Trace `module` and return its graph with the weights referenced, not copied.

    Args:
        module: takes and returns what `spec` lists; numbered inputs (past_k_0, past_k_1 ...) arrive as one list.
        spec: the graph in `engines.spec.contract`.
        config: gives the fixed dimensions.
        precision: "fp32", "fp16" or "bf16", the type of the KV cache.
        smooth: with the inputs and outputs of bundles that can mix codebook entries.

    Raises `ExportError` where the exporter returns nothing, or a graph without the contract's inputs and outputs.

    """
    inputs, outputs = contract.resolve(spec, config, precision, smooth=smooth)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in _LIMITS.items()}
    kwargs: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for info in inputs:
        example = torch.zeros([_EXAMPLE[d] if isinstance(d, str) else d for d in info.shape], dtype=_dtype(info))
        varying = {axis: dims[d] for axis, d in enumerate(info.shape) if isinstance(d, str)}
        group, _, index = info.name.rpartition("_")
        if index.isdigit():  # past_k_0, past_k_1 ... arrive as one list
            kwargs.setdefault(group, []).append(example)
            shapes.setdefault(group, []).append(varying)
        else:
            kwargs[info.name], shapes[info.name] = example, varying
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=kwargs,
            dynamic_shapes=shapes,
            input_names=[info.name for info in inputs],
            output_names=[info.name for info in outputs],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"PyTorch's exporter returned nothing for the {spec.name} graph")
    model: ir.Model = program.model
    _check(model, spec.name, inputs, outputs)
    _clean(model, spec)
    return model


def _dtype(info: contract.TensorInfo) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, info.dtype)
    return dtype


def _check(
    model: ir.Model,
    name: str,
    inputs: tuple[contract.TensorInfo, ...],
    outputs: tuple[contract.TensorInfo, ...],
) -> None:
    for what, infos, values in (("inputs", inputs, model.graph.inputs), ("outputs", outputs, model.graph.outputs)):
        wanted = [(info.name, info.dtype) for info in infos]
        got = [(value.name, str(value.dtype.numpy()) if value.dtype else "") for value in values]
        if wanted != got:
            raise ExportError(f"the {name} graph was traced with {what} {got} instead of {wanted}")


def _clean(model: ir.Model, spec: contract.GraphSpec) -> None:
    """Drop what the exporter notes about this machine's source files, and weights that nothing uses."""
    nodes = list(model.graph.all_nodes())
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(value for n in nodes for value in n.outputs)]
    noted: Any
    for noted in (model, model.graph, *nodes, *values):
        noted.metadata_props.clear()
        noted.doc_string = None
    model.doc_string, model.graph.name = spec.meaning, spec.name
    model.producer_name, model.producer_version = "var-export", None
    unused = [name for name, value in model.graph.initializers.items() if not value.uses()]
    for name in unused:
        del model.graph.initializers[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals; none of it is for the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
