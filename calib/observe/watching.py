"""Sessions that show tensors inside of their graphs after each run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.changed import ChangedGraphs
from engines.backends.onnxruntime.runner import Load, RunnableGraph, Session, Sessions
from engines.spec.config import ModelConfig

Watch = Callable[[str, int, Mapping[str, NDArray[Any]]], None]
"""Called after each run of a graph: its name, the scale (0 where it has none), the watched tensors by name."""
_PAST = "past_k_0"
_CACHED = "cached_tokens"
"""A further output of graphs with a cache: int64 (1,), the tokens before this scale, which tell the scale."""


def watched(
    graphs: ChangedGraphs,
    wanted: Mapping[str, Iterable[str]],
    config: ModelConfig,
    watch: Watch,
    prepare: Callable[[ir.Model], None] = lambda model: None,
) -> Sessions:
    """Sessions for `OnnxRuntimeBackend` that run the bundle's graphs and show some of their values.

    `wanted` are names of tensors by graph, inputs and outputs among them; `watch` is called after each run, with arrays
    that are valid until it returns. `prepare` changes a graph before its values are looked for.
    """

    def sessions(graph: str, load: Load) -> RunnableGraph:
        names = list(dict.fromkeys(wanted.get(graph, ())))
        if not names:
            return graphs.open(graph, load)
        model = graphs.model(graph)
        prepare(model)
        shown = _show(model, names)

        def see(values: dict[str, NDArray[Any]]) -> None:
            cached = values.pop(_CACHED, None)
            watch(graph, 0 if cached is None else config.scale_offsets.index(int(cached[0])), values)

        runnable = graphs.open(graph, load, model)
        return replace(runnable, session=_WatchedSession(runnable.session, shown, see))

    return sessions


def _show(model: ir.Model, names: Sequence[str]) -> dict[str, str]:
    """Make tensors outputs of a graph, in place; returns the name of each tensor by that of the new output."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    values |= {value.name: value for value in graph.inputs}
    shown = {}
    for name in names:
        value = values[name]
        if value.is_graph_input() or value.is_graph_output():  # the loop binds those to its own buffers
            assert value.dtype is not None, name
            value = _appended(graph, ir.node("Identity", [value]), f"{name}.shown", value.dtype)
        graph.outputs.append(value)
        shown[value.name or ""] = name
    if _PAST in values:
        count = ir.node("Shape", [values[_PAST]], {"start": 0, "end": 1})
        graph.outputs.append(_appended(graph, count, _CACHED, ir.DataType.INT64))
        shown[_CACHED] = _CACHED
    return shown


def _appended(graph: ir.Graph, node: ir.Node, name: str, dtype: ir.DataType) -> ir.Value:
    """The one output of a new node at the end of a graph."""
    graph.append(node)
    (value,) = node.outputs
    value.name, value.dtype = name, dtype
    return value


class _WatchedSession:
    """Stands before a session: further outputs are read after each run."""

    def __init__(self, session: Session, shown: Mapping[str, str], see: Callable[[dict[str, NDArray[Any]]], None]):
        self._session, self._shown, self._see = session, shown, see

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        self._bind(iobinding)  # ONNX Runtime allocates them
        self._session.run_with_iobinding(iobinding, run_options)
        values = iobinding.get_outputs()[-len(self._shown) :]  # in the order of their first binding
        self._see({name: value.numpy() for name, value in zip(self._shown.values(), values, strict=True)})
        del values
        self._bind(iobinding)  # and frees them

    def _bind(self, iobinding: Any) -> None:
        for output in self._shown:
            iobinding.bind_output(output, "cpu")
