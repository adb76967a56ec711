"""A backend that computes nothing and notes everything: what is bound where, what is written, what runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.backends.base import Backend, Buffer, Call, Engine


@dataclass
class Event:
    """`what` is buffer, write, read, gather, bind or run."""

    what: str
    graph: str = ""
    address: int = 0
    size: int = 0
    inputs: dict | None = None
    outputs: dict | None = None


class RecordingBuffer(Buffer):
    def __init__(self, log, array):
        self.log, self.array = log, array
        self.shape, self.dtype = array.shape, array.dtype

    @property
    def address(self):
        return self.array.__array_interface__["data"][0]

    def write(self, value):
        assert value.shape == self.shape
        assert value.dtype == self.dtype
        self.log.append(Event("write", address=self.address, size=value.nbytes))
        self.array[...] = value

    def read(self):
        self.log.append(Event("read", address=self.address, size=self.array.nbytes))
        return self.array.copy()

    def rows(self, start, count):
        assert start + count <= len(self.array)
        return RecordingBuffer(self.log, self.array[start : start + count])

    def shaped(self, shape):
        return RecordingBuffer(self.log, self.array.reshape(-1)[: int(np.prod(shape))].reshape(shape))

    def gather(self, source, entries, axis):
        assert source.dtype == self.dtype
        assert not np.shares_memory(source.array, self.array)
        self.log.append(Event("gather", address=self.address, size=self.array.nbytes))
        self.array[...] = source.array.take(list(entries), axis=axis)


class RecordingCall(Call):
    def __init__(self, log, graph, inputs, outputs):
        self.log, self.graph, self.inputs, self.outputs = log, graph, inputs, outputs

    def run(self):
        self.log.append(Event("run", self.graph, inputs=self.inputs, outputs=self.outputs))


class RecordingEngine(Engine):
    def __init__(self, log, name, inputs, outputs):
        self.log, self.name, self.inputs, self.outputs = log, name, inputs, outputs
        self.closed = False

    def bind(self, inputs, outputs):
        """Checks names, types and dimensions as a strict runtime would."""
        sizes = {}
        for infos, given in ((self.inputs, inputs), (self.outputs, outputs)):
            assert set(given) == {info.name for info in infos}
            for info in infos:
                buffer = given[info.name]
                assert buffer.dtype == np.dtype(info.dtype), info.name
                assert len(buffer.shape) == len(info.shape), info.name
                for size, dim in zip(buffer.shape, info.shape, strict=True):
                    assert size == sizes.setdefault(dim, size) if isinstance(dim, str) else size == dim, info.name
        self.log.append(Event("bind", self.name, inputs=dict(inputs), outputs=dict(outputs)))
        return RecordingCall(self.log, self.name, dict(inputs), dict(outputs))

    def close(self):
        self.closed = True


class RecordingBackend(Backend):
    name, provider = "recording", "none"

    def __init__(self):
        self.log, self.engines, self.closed = [], {}, False

    def open(self, bundle, graph):
        assert bundle.graph_path(graph).is_file()
        engine = self.engines[graph] = RecordingEngine(self.log, graph, *bundle.tensors(graph))
        return engine

    def buffer(self, shape, dtype):
        array = np.zeros(shape, dtype)
        self.log.append(Event("buffer", size=array.nbytes))
        return RecordingBuffer(self.log, array)

    def describe(self):
        return {"backend": self.name}

    def close(self):
        self.closed = True

    def of(self, what, graph=None):
        return [event for event in self.log if event.what == what and graph in (None, event.graph)]
