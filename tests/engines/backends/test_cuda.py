"""Memory, order and errors of one GPU, on an emulated one.

In this folder and not in `backends/`: a test file there would put that folder on the path of Python, where its
folders `tensorrt` and `onnxruntime` could be imported in place of what is not installed.
"""

import gc
import threading

import numpy as np
import pytest

from engines.backends import cuda as module
from engines.backends.cuda import ALIGNMENT, Cuda
from engines.backends.device_buffer import zeros
from engines.errors import BackendError, OutOfMemoryError
from tests.emulation import HostCuda


@pytest.fixture
def host():
    """The emulated driver; at the end of a test nothing that was done was wrong, and everything is given back."""
    driver = HostCuda()
    yield driver
    if driver.leaks():
        gc.collect()
    assert driver.violations == []
    assert driver.leaks() == {}


@pytest.fixture
def cuda(host):
    device = Cuda(runtime=host)
    yield device
    device.close()


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- finding a GPU ------------------------------------------------------------------------------------------------


def test_the_device_is_described(cuda):
    assert cuda.describe() == {
        "gpu": "Emulated GPU",
        "compute_capability": "8.6",
        "gpu_memory": 1 << 34,
        "cuda": "12.6",
    }


def test_a_jetson_is_told_by_its_processors_and_gets_other_advice():
    """Every Orin has the name and compute capability of the others, and no memory of its own to spare."""
    cuda = Cuda(runtime=HostCuda(name="Orin", capability=(8, 7), integrated=True, processors=8, memory=1 << 20))
    assert cuda.describe()["gpu"] == "Orin (8 SM)"
    with pytest.raises(OutOfMemoryError) as caught:
        cuda.allocate(1 << 21)
    assert "lower --batch, or close other programs" in one_line(caught)
    assert "--weight-streaming" not in str(caught.value)
    cuda.close()


def test_without_a_gpu_one_line_says_where_to_look():
    with pytest.raises(BackendError) as caught:
        Cuda(runtime=HostCuda(devices=0))
    assert "nvidia-smi" in one_line(caught)


def test_a_driver_that_is_older_than_the_bindings():
    with pytest.raises(BackendError) as caught:
        Cuda(runtime=HostCuda(devices=0, driver=11080))
    message = one_line(caught)
    assert "the driver has CUDA 11.8, but cuda-bindings need 12.6" in message
    assert 'pip install "cuda-bindings<12"' in message


@pytest.mark.parametrize("ordinal", [-1, 2, 7])
def test_a_gpu_that_is_not_there(ordinal):
    with pytest.raises(BackendError) as caught:
        Cuda(ordinal, runtime=HostCuda(devices=2))
    assert one_line(caught) == f"there is no GPU {ordinal}: CUDA sees 2"


def test_the_second_gpu_is_current_in_every_thread(host):
    """The current device belongs to the thread; what a thread does before it chose lands on GPU 0."""
    host.devices = 2
    cuda = Cuda(1, runtime=host)
    seen = []

    def work():
        zeros(cuda, (4,), "float32").write(np.ones(4, np.float32))
        seen.append(host._current.device)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [1, 1]
    cuda.close()


def test_the_bindings_that_are_missing_are_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_cuda(name, *args, **options):
        if name.startswith("cuda"):
            raise ImportError("No module named 'cuda'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_cuda)
    with pytest.raises(BackendError) as caught:
        Cuda()
    assert 'pip install "cuda-bindings' in one_line(caught)


# --- buffers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (2, 3, 4)])
def test_what_is_written_is_read(shape, dtype, cuda):
    buffer = zeros(cuda, shape, dtype)
    assert not buffer.read().any(), "zeros at first"
    value = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    buffer.write(value)
    np.testing.assert_array_equal(buffer.read(), value)
    assert buffer.read().dtype == value.dtype
    assert buffer.address % ALIGNMENT == 0


def test_a_bfloat16_buffer_holds_its_bits(cuda):
    """numpy has no such type; nobody on the host reads it as numbers."""
    assert zeros(cuda, (2, 3), "bfloat16").read().dtype == np.uint16
    assert zeros(cuda, (2, 3), "bfloat16").size == 12


def test_a_copy_does_not_follow_the_buffer(cuda):
    buffer = zeros(cuda, (3,), "int64")
    before = buffer.read()
    buffer.write(np.arange(3))
    assert before.tolist() == [0, 0, 0]


def test_a_value_that_is_no_contiguous_array_is_written_too(cuda):
    buffer, table = zeros(cuda, (3, 2), "int64"), np.arange(12).reshape(3, 4)
    buffer.write(table[:, 1:3])
    np.testing.assert_array_equal(buffer.read(), table[:, 1:3])


@pytest.mark.parametrize("value", [np.zeros(3, np.int64), np.zeros(4, np.int32), np.zeros((4, 1), np.int64)])
def test_a_value_of_another_shape_or_type_is_refused(value, cuda):
    with pytest.raises(ValueError, match="does not fit"):
        zeros(cuda, (4,), "int64").write(value)


def test_rows_and_shapes_share_the_memory(cuda):
    whole = zeros(cuda, (6, 2), "int64")
    whole.write(np.arange(12).reshape(6, 2))
    part = whole.rows(2, 3)
    assert part.address == whole.address + 2 * 2 * 8
    assert part.read().tolist() == [[4, 5], [6, 7], [8, 9]]
    part.write(np.zeros((3, 2), np.int64))
    assert whole.read().ravel().tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 10, 11]
    assert whole.shaped((2, 2)).read().tolist() == [[0, 1], [2, 3]]
    assert whole.rows(1, 2).rows(1, 1).read().tolist() == [[0, 0]]


@pytest.mark.parametrize(("entries", "copies"), [([0, 1, 2], 1), ([0, 1, 4], 2), ([3], 1), ([4, 2, 3, 0], 3)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_entries_of_an_axis_are_copied_on_the_device(axis, entries, copies, cuda, host, monkeypatch):
    """A run of neighbours is one copy, and the host waits for none."""
    values = np.random.default_rng(axis).integers(0, 1 << 16, (5, 5, 5, 3)).astype(np.uint16)
    source = zeros(cuda, (7, 5, 5, 3), "bfloat16").rows(1, 5)  # begins in the midst of its memory
    source.write(values)
    wanted = values.take(entries, axis=axis)
    whole = zeros(cuda, (8, *wanted.shape[1:]), "bfloat16")
    started, waits = [], cuda.epoch
    copy = host.cudaMemcpy2DAsync
    monkeypatch.setattr(host, "cudaMemcpy2DAsync", lambda *args: started.append(args) or copy(*args))
    whole.rows(2, len(wanted)).gather(source, entries, axis)
    assert (len(started), cuda.epoch) == (copies, waits)
    assert np.array_equal(whole.rows(2, len(wanted)).read(), wanted)
    assert not whole.rows(0, 2).read().any()
    assert not whole.rows(2 + len(wanted), 1).read().any()


def test_an_empty_part_has_an_address(cuda):
    """The past of the first scale: TensorRT wants an address for it all the same."""
    empty = zeros(cuda, (4, 2), "float16").rows(0, 0)
    assert empty.address % ALIGNMENT == 0
    assert zeros(cuda, (0, 2), "float16").address


@pytest.mark.slow
def test_a_part_keeps_the_memory_alive(cuda, host):
    part = zeros(cuda, (4,), "int64").rows(1, 2)
    gc.collect()
    assert part.read().tolist() == [0, 0]
    held = len(host.allocations)
    del part
    gc.collect()
    assert len(host.allocations) < held


def test_writes_are_done_in_order_and_reads_wait(cuda, host):
    """Between two reads nothing is done at once: a buffer may be written twice before the GPU has looked."""
    first, second = zeros(cuda, (2,), "int64"), zeros(cuda, (2,), "int64")
    seen = []
    for value in (1, 2, 3):
        first.write(np.full(2, value))
        host.enqueue(cuda.stream, lambda: seen.append(host.region(first.address, 16).view(np.int64)[0]))
    second.write(np.full(2, 9))
    assert second.read().tolist() == [9, 9]
    assert seen == [1, 2, 3]


@pytest.mark.slow
def test_memory_goes_back_when_nobody_holds_it(cuda, host):
    before = host.in_use
    buffer = zeros(cuda, (1000,), "float32")
    buffer.write(np.ones(1000, np.float32))
    assert host.in_use == before + 4000
    del buffer
    gc.collect()
    assert host.in_use == before
    assert not host.allocations


@pytest.mark.slow
def test_memory_goes_back_in_any_thread(cuda, host):
    held = [zeros(cuda, (10,), "float32")]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert not host.allocations


def test_too_little_memory(host):
    host.memory = 5 << 20
    cuda = Cuda(runtime=host)
    kept = zeros(cuda, (1 << 20,), "float32")
    assert cuda.free_memory() == 1 << 20
    with pytest.raises(OutOfMemoryError) as caught:
        zeros(cuda, (1 << 19,), "float32")
    message = one_line(caught)
    assert "2.0 MiB were needed, 1 of 5 MiB are free" in message
    assert "lower --batch" in message
    assert not kept.read().any(), "and what was there is untouched"
    del caught
    cuda.close()


# --- time ---------------------------------------------------------------------------------------------------------


def test_marks_measure_the_work_between_them(cuda, host):
    import time

    start, end, later = cuda.mark(), cuda.mark(), cuda.mark()
    start.record()
    host.enqueue(cuda.stream, lambda: time.sleep(0.1))
    end.record()
    host.enqueue(cuda.stream, lambda: time.sleep(0.1))
    later.record()
    assert 0.1 <= end.since(start) < later.since(start)
    start.record()  # again, as every image does
    end.record()
    assert end.since(start) < 0.1


# --- CUDA graphs --------------------------------------------------------------------------------------------------


def test_a_graph_repeats_its_work(cuda, host):
    done = []
    graph = cuda.capture(lambda: host.enqueue(cuda.stream, lambda: done.append(1)))
    cuda.synchronize()
    assert done == [], "recorded, not done"
    for _ in range(3):
        graph.launch()
    cuda.synchronize()
    assert done == [1, 1, 1]
    graph.free()
    graph.free()


def test_work_that_fails_ends_the_recording(cuda, host):
    def fail():
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        cuda.capture(fail)
    assert not host.graphs
    cuda.capture(lambda: None).free()
    assert not zeros(cuda, (2,), "int64").read().any()


def test_a_recording_that_is_refused(host):
    host.capture_works = False
    cuda = Cuda(runtime=host)
    with pytest.raises(BackendError) as caught:
        cuda.capture(lambda: None)
    assert "cudaErrorStreamCaptureUnsupported" in one_line(caught)
    cuda.close()


def test_waiting_in_a_recording_is_an_error_and_not_a_crash(cuda):
    with pytest.raises(BackendError, match="cudaErrorStreamCapture"):
        cuda.capture(cuda.synchronize)
    cuda.synchronize()


def test_other_threads_wait_for_a_recording(cuda, host):
    """Their copies would land in it."""
    inside, done = threading.Event(), []

    def other():
        inside.wait()
        zeros(cuda, (2,), "int64").write(np.ones(2, np.int64))
        done.append(len(host._capturing))

    thread = threading.Thread(target=other)
    thread.start()

    def work():
        inside.set()
        thread.join(0.2)
        assert not done

    cuda.capture(work).free()
    thread.join()
    assert done == [0]


def test_the_garbage_collector_is_left_as_it_was(cuda):
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            cuda.capture(lambda: None).free()
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


# --- the end ------------------------------------------------------------------------------------------------------


def test_close_frees_what_is_still_held(host):
    cuda = Cuda(runtime=host)
    buffer, mark = zeros(cuda, (4,), "float32"), cuda.mark()
    buffer.write(np.ones(4, np.float32))
    cuda.close()
    cuda.close()
    assert host.leaks() == {}
    write, make = lambda: buffer.write(np.ones(4, np.float32)), lambda: zeros(cuda, (1,), "bool")
    for use in (buffer.read, write, make, mark.record):
        with pytest.raises(BackendError, match="closed; load the pipeline again"):
            use()


def test_errors_name_what_was_done(cuda, host, monkeypatch):
    monkeypatch.setattr(host, "cudaStreamSynchronize", lambda stream: (host.cudaError_t.cudaErrorInvalidValue,))
    with pytest.raises(BackendError) as caught:
        cuda.synchronize()
    assert one_line(caught) == "CUDA failed while waiting for the GPU: cudaErrorInvalidValue"
    monkeypatch.undo()


def test_versions_are_written_as_people_write_them():
    assert [module._dotted(version) for version in (12060, 12080, 13000, 11080)] == ["12.6", "12.8", "13.0", "11.8"]
