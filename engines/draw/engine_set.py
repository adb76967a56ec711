"""The engines of one bundle, opened when they are first needed, and the workspaces that they run in."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from engines.backends.base import Array, Backend, Engine
from engines.bundle.bundle import Bundle
from engines.draw.pool import Pool
from engines.draw.workspace import Constants, GraphWorkspace, Workspace
from engines.errors import UsageError


class EngineSet:
    """Safe for several threads: engines are shared, and workspaces are lent to one at a time."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle, self._backend = bundle, backend
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._constants: Constants | None = None
        self._spaces = Pool()
        self._closed = False

    def open(self, graph: str) -> Engine:
        """The engine of a graph. Raises `UsageError` once closed, `BackendError`."""
        with self._lock:
            if self._closed:
                raise UsageError("this pipeline is closed; load it again")
            if graph not in self._engines:
                self._engines[graph] = self._backend.open(self._bundle, graph)
            return self._engines[graph]

    def stepwise(self, shape: tuple[int, int]) -> AbstractContextManager[Workspace]:
        """Lends a workspace of the scale loop that holds B images in N rows."""
        larger = self.open("step").shape_for(*shape)
        return self._spaces.borrow(("stepwise", *larger), lambda: self._make_stepwise(larger))

    def alone(self, graph: str, images: int, rows: int) -> AbstractContextManager[GraphWorkspace]:
        """Lends a workspace of a graph that runs on its own, for that many images and rows."""
        engine = self.open(graph)
        shape = engine.shape_for(images, rows)
        return self._spaces.borrow((graph, *shape), lambda: GraphWorkspace(self._backend, engine, shape))

    def call(self, graph: str, inputs: dict[str, Array], count: int) -> dict[str, Array]:
        """Run a graph whose inputs have `count` images or rows."""
        with self.alone(graph, count, count) as space:
            return {name: value[:count] for name, value in space.run(inputs).items()}

    def close(self) -> None:
        """Free engines, buffers and the backend."""
        with self._lock:
            self._closed = True
            self._spaces.close()
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self._constants = None
            self._backend.close()

    def _make_stepwise(self, shape: tuple[int, int]) -> Workspace:
        bundle = self._bundle
        engines = {name: self.open(name) for name in ("step", "decode")}
        with self._lock:
            if self._constants is None:
                arrays = {name: bundle.constant(name) for name in bundle.constants}
                self._constants = Constants(self._backend, bundle.config, engines["step"], arrays)
            constants = self._constants
        return Workspace(self._backend, bundle.config, engines, constants, shape)
