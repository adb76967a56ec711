"""The fused graph for Triton's own ONNX Runtime and TensorRT backends: class to image in one call, without Python.

What the Python models do for a request, its client does here: `engines.draw.batch.fused_inputs` makes the tensors of a
batch, uniforms included (examples/triton_fused.py).
"""

from __future__ import annotations

from typing import Any

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import WEIGHTS
from engines.bundle.plans import PlanSet
from engines.errors import UsageError
from engines.spec.contract import TensorInfo
from engines.triton.wire import TYPES
from engines.triton.writing.pbtxt import Word, pbtxt, tensor_entry
from engines.triton.writing.repository import CONFIG, VERSION, Model, check_name

GRAPH = "fused"
STOCK = ("onnxruntime", "tensorrt")


def plan_stock(bundle: Bundle, backend: str, *, name: str, gpu: int | None = None) -> Model:
    """The one model of a stock repository, for a `backend` of `STOCK`; `gpu`: None is the CPU, of ONNX Runtime.

    Raises `UsageError` on a bundle without the fused graph, and for TensorRT without plans of it.
    """
    check_name(name)
    if GRAPH not in bundle.graphs:
        raise UsageError(f"{bundle.path} has no fused graph: build with --form fused or both")
    if backend == "onnxruntime":
        if bundle.for_gpus:
            raise UsageError(f"{bundle.path} is for TensorRT: ONNX Runtime cannot run its graphs; use --stock tensorrt")
        graph = f"{GRAPH}.onnx"
        links = {f"{VERSION}/{graph}": bundle.graph_path(GRAPH, cpu=gpu is None)}
        links[f"{VERSION}/{WEIGHTS}"] = bundle.path / WEIGHTS
        kind: dict[str, Any] = {
            "backend": "onnxruntime",
            "platform": "onnxruntime_onnx",
            "default_model_filename": graph,
        }
    else:
        plans = _by_capability(bundle)
        links = {f"{VERSION}/{_plan_name(cc)}": bundle.path / plan.graphs[GRAPH].file for cc, plan in plans.items()}
        names = [{"key": cc, "value": _plan_name(cc)} for cc in plans]
        first = {"default_model_filename": _plan_name(next(iter(plans)))}
        kind = {"backend": "tensorrt", "platform": "tensorrt_plan", **first, "cc_model_filenames": names}
    return Model(name, {CONFIG: _config(bundle, name, kind, gpu)}, links)


def _config(bundle: Bundle, name: str, kind: dict[str, Any], gpu: int | None) -> str:
    inputs, outputs = bundle.tensors(GRAPH)
    group: dict[str, Any] = {"count": 1, "kind": Word("KIND_CPU" if gpu is None else "KIND_GPU")}
    return pbtxt(
        {
            "name": name,
            **kind,
            # Rows and images are two axes that vary apart, so that Triton cannot join requests: a client sends a batch.
            "max_batch_size": 0,
            "input": [_entry(info) for info in inputs],
            "output": [_entry(info) for info in outputs],
            "instance_group": group if gpu is None else group | {"gpus": [gpu]},
        }
    )


def _entry(info: TensorInfo) -> dict[str, Any]:
    return tensor_entry(info.name, TYPES[info.dtype], [-1 if isinstance(size, str) else size for size in info.shape])


def _by_capability(bundle: Bundle) -> dict[str, PlanSet]:
    """The newest TensorRT plans of the fused graph for each compute capability."""
    found: dict[str, PlanSet] = {}
    for plans in bundle.plans:
        if plans.built_on.target == "tensorrt" and plans.built_from(bundle.files, GRAPH):
            capabilities = plans.compute_capabilities or (plans.built_on.compute_capability,)
            found |= dict.fromkeys(filter(None, capabilities), plans)
    if not found:
        raise UsageError(
            f"{bundle.path} has no TensorRT plans of the fused graph: run `var-export build {bundle.path} "
            "--target tensorrt` on a GPU of each kind that will serve"
        )
    return dict(sorted(found.items()))


def _plan_name(capability: str) -> str:
    return f"sm{capability.replace('.', '')}.plan"
