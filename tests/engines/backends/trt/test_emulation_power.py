"""What the emulation is worth: the mistakes that a runner can make, made on purpose, are all noticed.

Each test breaks one line of the runner. The same run without the break passes in `test_emulated_pipeline.py`.
"""

import gc

import numpy as np
import pytest

from engines.backends.cuda import Cuda
from engines.backends.device_buffer import DeviceBuffer, zeros
from engines.backends.tensorrt.engine import Scratch, TensorRTCall, TensorRTEngine
from engines.errors import BackendError, NotFiniteError
from tests.emulation import HostCuda, Misuse

# What is freed in a broken state complains once more, where nobody can catch it.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture
def noticed(emulate, planned_tiny, reference):
    """True where a run of the pipeline fails, differs from ONNX Runtime, or does what no GPU forgives."""

    def run(*, encode=False, scratch=()):
        emulation = emulate()
        emulation.trt.scratch = dict(scratch)
        expected_by = reference(planned_tiny)
        expected = expected_by.generate([0, 3], seeds=1)
        found = []
        try:
            pipeline = emulation.load(planned_tiny)
            for round_ in range(4):
                emulation.poison()
                result = pipeline.generate([0, 3], seeds=1)
                if not np.array_equal(result.tokens, expected.tokens):
                    found.append("other tokens")
                if not np.array_equal(result.images, expected.images):
                    found.append("other images")
                if (
                    encode
                    and round_ == 2
                    and not np.array_equal(pipeline.encode(expected.images), expected_by.encode(expected.images))
                ):
                    found.append("other codes")
            emulation.cuda.check_guards()
        except (Misuse, BackendError, NotFiniteError) as error:
            found.append(str(error))
        found += emulation.cuda.violations
        emulation.close = lambda: None  # what is left of a broken run proves nothing
        return found

    yield run
    gc.collect()


def test_nothing_is_noticed_where_nothing_is_wrong(noticed):
    assert noticed() == []
    assert noticed(encode=True) == []


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("what", ["past", "new"])
def test_a_wrong_offset_of_the_cache(what, by, noticed, monkeypatch):
    """Keys that are read from, or written to, one row beside their place."""
    rows = DeviceBuffer.rows

    def shifted(self, start, count):
        is_past = start == 0  # of the loop: the past begins at row 0, what is new behind it
        if is_past and what == "past" and count:
            return rows(self, max(by, 0), count) if by > 0 else rows(self, 0, count).rows_before()
        if not is_past and what == "new":
            return rows(self, start + by, count)
        return rows(self, start, count)

    def rows_before(self):
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        return DeviceBuffer(self._cuda, self._memory, self._offset - row, self.shape, self.dtype)

    monkeypatch.setattr(DeviceBuffer, "rows_before", rows_before, raising=False)
    monkeypatch.setattr(DeviceBuffer, "rows", shifted)
    assert noticed()


def test_a_wrong_offset_in_bytes(noticed, monkeypatch):
    """The offset as if every element took two bytes."""
    rows = DeviceBuffer.rows

    def narrow(self, start, count):
        part = rows(self, start, count)
        part._offset = self._offset + (part._offset - self._offset) // 2
        return part

    monkeypatch.setattr(DeviceBuffer, "rows", narrow)
    assert noticed()


def test_a_missing_wait_before_reading(noticed, monkeypatch):
    def no_wait(self):
        self.epoch += 1

    monkeypatch.setattr(Cuda, "synchronize", no_wait)
    assert noticed()


def test_a_freed_buffer_that_is_still_bound(noticed, monkeypatch):
    """A context knows addresses only, not whether somebody still holds the memory there."""
    init = TensorRTCall.__init__

    def forgetful(self, *args):
        init(self, *args)
        if "f_hat" in self._buffers:
            self._buffers["f_hat"]._memory.free()

    monkeypatch.setattr(TensorRTCall, "__init__", forgetful)
    assert any("no live allocation" in line for line in noticed())


def test_scratch_memory_that_is_too_small(noticed, monkeypatch):
    reserve = Scratch.reserve
    monkeypatch.setattr(Scratch, "reserve", lambda self, size: reserve(self, size // 2))
    assert any("scratch memory is too small" in line for line in noticed())


def test_scratch_memory_that_is_smaller_than_said(noticed, monkeypatch):
    monkeypatch.setattr(Scratch, "size", property(lambda self: 1 << 20 if self._memory else 0))
    assert any("no live allocation" in line for line in noticed())


@pytest.mark.parametrize("kept", ["address", "recording"])
def test_scratch_memory_that_has_moved(kept, noticed, monkeypatch):
    """The encoder makes it grow, and calls go on with the old address, or with a recording that has it inside."""
    settle = TensorRTCall._settle

    def keep(self):
        if kept == "recording" or self._generation < 0:
            graph, self._graph = self._graph, None
            settle(self)
            self._graph = graph
        self._generation = self._shared.scratch.generation

    monkeypatch.setattr(TensorRTCall, "_settle", keep)
    assert any("no live allocation" in line for line in noticed(encode=True, scratch={"encode": 1 << 20}))


def test_an_allocation_that_is_too_small(noticed, monkeypatch):
    """Of every buffer, one element is missing at its end."""
    allocate = Cuda.allocate
    monkeypatch.setattr(Cuda, "allocate", lambda self, size, **options: allocate(self, max(size - 8, 1), **options))
    assert noticed()


def test_a_wrong_profile(noticed, monkeypatch):
    monkeypatch.setattr(TensorRTEngine, "_profile_for", lambda self, shapes: 0)
    assert any("shape of" in line for line in noticed())


def test_a_context_that_is_freed_before_its_work_is_done(noticed, monkeypatch):
    def run_and_forget(self):
        with self._shared.cuda.held():
            self._settle()
            self._execute()
            self._context = None

    monkeypatch.setattr(TensorRTCall, "run", run_and_forget)
    assert any("a context was freed" in line for line in noticed())


def test_a_tensor_without_an_address(noticed, monkeypatch):
    init = TensorRTCall.__init__

    def one_missing(self, shared, engine, profile, shapes, buffers):
        init(self, shared, engine, profile, shapes, dict(list(buffers.items())[:-1]))

    monkeypatch.setattr(TensorRTCall, "__init__", one_missing)
    assert any("has no address" in line for line in noticed())


def test_an_allocation_in_a_recording(noticed, monkeypatch):
    """It breaks the recording: the call falls back to run directly, which `launches` tell."""
    execute = TensorRTCall._execute

    def allocating(self):
        self._shared.cuda.allocate(1)
        execute(self)

    monkeypatch.setattr(TensorRTCall, "_execute", allocating)
    launched = []
    launch = HostCuda.cudaGraphLaunch
    monkeypatch.setattr(HostCuda, "cudaGraphLaunch", lambda *args: launched.append(1) or launch(*args))
    noticed()
    assert not launched


def test_a_copy_that_overtakes_another(emulate):
    """Two writes to a buffer share its page-locked memory: the second has to wait for the first."""
    emulation = emulate()
    cuda = Cuda(runtime=emulation.cuda)
    source, seen = zeros(cuda, (4,), "int64"), []
    work = lambda: seen.append(emulation.cuda.region(source.address, 32).view(np.int64)[0])  # noqa: E731
    for value in (1, 2):
        source.write(np.full(4, value, np.int64))
        emulation.cuda.enqueue(cuda.stream, work)
    cuda.synchronize()
    assert seen == [1, 2]

    seen.clear()
    for value in (1, 2):
        source._written = -1  # as if nobody had asked whether the first copy is done
        source.write(np.full(4, value, np.int64))
        emulation.cuda.enqueue(cuda.stream, work)
    cuda.synchronize()
    assert seen == [2, 2], "this is what the question is for"
    cuda.close()


def test_guards_see_what_is_written_beside_an_allocation(emulate):
    for offset in (-1, 256):
        emulation = emulate()
        cuda = Cuda(runtime=emulation.cuda)
        memory = cuda.allocate(256)
        raw = emulation.cuda.allocations[memory.address].raw
        at = emulation.cuda.allocations[memory.address].start + offset
        good, raw[at] = raw[at], 0
        with pytest.raises(Misuse, match="outside of an allocation"):
            emulation.cuda.check_guards()
        with pytest.raises(Misuse, match="outside of its allocation"):
            emulation.cuda.cudaFree(memory.address)
        emulation.cuda.violations.clear()
        emulation.cuda.allocations.clear()
        emulation.cuda.freed += 1
        memory._handle = None
        raw[at] = good
        cuda.close()
