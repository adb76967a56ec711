"""Who holds which memory for how long: too little of it, scratch memory that moves, closing, or forgetting to."""

import gc
import re
import threading
import time

import numpy as np
import pytest
from same_images import assert_same
from support import copy_bundle

from engines.backends.cuda import ALIGNMENT
from engines.errors import BackendError, OutOfMemoryError, UsageError

MIB = 1 << 20


# --- scratch memory -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scratch_memory_that_grows_voids_what_was_recorded(emulate, planned_tiny, reference):
    """The encoder is opened after the graphs of the scales were recorded, with the old address in them."""
    emulation = emulate()
    emulation.trt.scratch = {"encode": MIB, "accumulate": 4 * MIB}
    pipeline, expected_by = emulation.load(planned_tiny), reference(planned_tiny)
    expected = expected_by.generate([0, 1], seeds=1)
    for _ in range(3):
        assert_same(pipeline.generate([0, 1], seeds=1), expected)
    before = pipeline.backend.scratch.address
    np.testing.assert_array_equal(pipeline.encode(expected.images), expected_by.encode(expected.images))
    assert pipeline.backend.scratch.address != before
    assert_same(pipeline.generate([0, 1], seeds=1), expected)
    launches = emulation.cuda.launches
    np.testing.assert_array_equal(pipeline.decode(expected.tokens), expected_by.decode(expected.tokens))
    for _ in range(3):
        emulation.poison()
        assert_same(pipeline.generate([0, 1], seeds=1), expected)
    assert emulation.cuda.launches > launches, "and all are recorded again"


def test_all_engines_share_one_scratch_memory(emulate, planned_tiny):
    emulation = emulate()
    emulation.trt.scratch = dict.fromkeys(("cond", "step", "decode", "encode", "accumulate"), MIB)
    pipeline = emulation.load(planned_tiny)
    pipeline.reconstruct(pipeline.generate([0, 1, 2]).images)
    assert sum(allocation.size == MIB for allocation in emulation.cuda.allocations.values()) == 1


def test_an_engine_that_needs_no_scratch_memory_is_given_an_address(emulate, planned_tiny, reference):
    emulation = emulate()
    emulation.trt.scratch = dict.fromkeys(("cond", "step", "decode"), 0)
    pipeline = emulation.load(planned_tiny)
    assert_same(pipeline.generate([0]), reference(planned_tiny).generate([0]))
    assert pipeline.backend.scratch.size == ALIGNMENT


def test_an_encoder_that_does_not_fit_leaves_the_pipeline_usable(emulate, planned_tiny, reference):
    emulation = emulate(memory=64 * MIB)
    emulation.trt.scratch = {"step": MIB, "encode": 1024 * MIB}
    pipeline, expected = emulation.load(planned_tiny), reference(planned_tiny).generate([0, 1], seeds=1)
    for _ in range(3):
        assert_same(pipeline.generate([0, 1], seeds=1), expected)
        with pytest.raises(OutOfMemoryError, match=r"1024\.0 MiB were needed"):
            pipeline.encode(expected.images)
    assert pipeline.backend.scratch.size == MIB


# --- too little memory --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_too_little_memory_is_one_line_with_figures_and_a_way_out(emulate, planned_tiny, reference):
    """The batch that fits still runs, and the failed one leaves nothing behind."""
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    pipeline.generate([0], cfg=0)
    emulation.cuda.memory = emulation.cuda.in_use + 100_000
    in_use = emulation.cuda.in_use
    with pytest.raises(OutOfMemoryError) as caught:
        pipeline.generate([0, 1, 2, 3], cfg=2)
    message = str(caught.value)
    assert "\n" not in message
    needed, free, total = map(float, re.search(r"([\d.]+) MiB were needed, ([\d.]+) of ([\d.]+) MiB", message).groups())
    assert needed >= 0
    assert free <= 1
    assert total == round(emulation.cuda.memory / MIB)
    for remedy in ("lower --batch", "close other programs", "--weight-streaming"):
        assert remedy in message
    del caught  # its traceback holds what was made of the workspace
    gc.collect()
    assert emulation.cuda.in_use == in_use
    assert_same(pipeline.generate([0], cfg=0), reference(planned_tiny).generate([0], cfg=0))


def test_the_first_workspace_may_not_fit_either(emulate, planned_tiny):
    pipeline = emulate(memory=MIB // 16).load(planned_tiny)
    with pytest.raises(OutOfMemoryError, match="the GPU is out of memory"):
        pipeline.generate([0])


# --- closing ------------------------------------------------------------------------------------------------------


def test_close_frees_everything_and_may_be_called_twice(emulate, planned_tiny):
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    pipeline.reconstruct(pipeline.generate([0, 1]).images)
    assert emulation.cuda.leaks()
    pipeline.close()
    assert emulation.cuda.leaks() == {}
    freed = emulation.cuda.freed
    pipeline.close()
    pipeline.backend.close()
    assert emulation.cuda.freed == freed


def test_use_after_close_says_so(emulate, planned_tiny):
    pipeline = emulate().load(planned_tiny)
    images = pipeline.generate([0]).images
    pipeline.close()
    for use in (lambda: pipeline.generate([0]), lambda: pipeline.encode(images), lambda: list(pipeline.stream([0]))):
        with pytest.raises(UsageError, match="closed; load it again"):
            use()


@pytest.mark.slow
def test_closing_while_another_thread_draws(emulate, planned_tiny):
    """It gets its images, or one line; never what is not its own."""
    emulation = emulate()
    for delay in range(12):
        pipeline, outcome = emulation.load(planned_tiny), []
        started = threading.Event()

        def draw(pipeline=pipeline, outcome=outcome, started=started):
            started.set()
            try:
                while True:
                    outcome.append(pipeline.generate([0, 1]).images.shape)
            except (BackendError, UsageError) as error:
                outcome.append(str(error))

        thread = threading.Thread(target=draw)
        thread.start()
        started.wait()
        time.sleep(0.004 * delay)  # in the first image, as it is bound, recorded or launched
        pipeline.close()
        thread.join()
        assert "closed" in outcome[-1]
        assert "\n" not in outcome[-1]


def test_closing_in_the_midst_of_binding(emulate, planned_tiny):
    """What the test above meets once in a while: the other thread has to wait."""
    pipeline = emulate().load(planned_tiny)
    engine = pipeline._engines.open("step")
    find, closers = engine._profile_for, []

    def find_meanwhile(shapes):
        if not closers:
            closers.append(threading.Thread(target=engine.close))
            closers[0].start()
        closers[0].join(0.2)
        return find(shapes)

    engine._profile_for = find_meanwhile
    with pytest.raises(BackendError, match="the step engine is closed"):
        pipeline.generate([0])
    closers[0].join()


def test_closing_with_a_stream_under_way(emulate, planned_tiny):
    """The generator holds a workspace; its next step says what happened."""
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    previews = pipeline.stream([0, 1])
    next(previews)
    pipeline.close()
    assert emulation.cuda.leaks() == {}
    with pytest.raises(BackendError, match="closed"):
        next(previews)


def test_what_a_closed_pipeline_left_in_the_hands_of_others(emulate, planned_tiny):
    """Views of the last scale are valid until the next; after the close they are refused, not read."""
    views = []
    pipeline = emulate().load(planned_tiny)
    pipeline.generate([0], on_scale=views.append)
    pipeline.close()
    with pytest.raises(BackendError, match="closed; load the pipeline again"):
        views[-1].read_logits()


def test_an_engine_can_be_closed_alone(emulate, planned_tiny):
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    for _ in range(2):
        pipeline.generate([0])
    assert emulation.cuda.execs
    engine = pipeline._engines.open("step")
    engine.close()
    assert not any(context.engine.graph == "step" for context in emulation.trt.contexts)
    with pytest.raises(BackendError, match="the step engine is closed"):
        pipeline.generate([0])
    with pytest.raises(BackendError, match="the step engine is closed"):
        engine.bind({}, {})
    engine.close()


@pytest.mark.slow
def test_a_pipeline_that_is_dropped_frees_its_memory(emulate, planned_tiny, reference):
    """Nobody closed it: memory, events, graphs and contexts go with the garbage; an empty stream is all that stays."""
    emulation = emulate()
    kept = emulation.load(planned_tiny)
    kept.generate([0])
    before = emulation.cuda.leaks()
    emulation.load(planned_tiny).generate([0, 1])
    emulation.pipelines[-1].generate([0, 1])  # recorded as CUDA graphs
    assert emulation.cuda.leaks() != before
    emulation.pipelines.pop()
    gc.collect()
    after = emulation.cuda.leaks()
    assert after == {**before, "streams": before["streams"] + 1}
    assert_same(kept.generate([0]), reference(planned_tiny).generate([0]))
    emulation.cuda.streams.pop(max(emulation.cuda.streams))


@pytest.mark.slow
def test_garbage_is_not_freed_into_a_recording(emulate, planned_tiny, reference):
    """Freeing memory in the thread that records a CUDA graph would spoil it, and Python frees when it likes."""
    emulation = emulate()
    emulation.load(planned_tiny).generate([0, 1])
    pipeline = emulation.load(planned_tiny)
    expected = reference(planned_tiny).generate([3], seeds=1)
    assert_same(pipeline.generate([3], seeds=1), expected)
    threshold = gc.get_threshold()
    capture = pipeline.backend.cuda.capture

    def drop_the_other_first(work):
        def busy():
            ring = [emulation.pipelines[0]]
            ring.append(ring)  # so that nothing but a collection can free it
            emulation.pipelines[:] = [pipeline]
            del ring
            rubbish = [[i] for i in range(1000)]  # with this threshold, a collection every few
            work()
            del rubbish

        return capture(busy)

    pipeline.backend.cuda.capture = drop_the_other_first
    gc.disable()
    gc.collect()
    gc.enable()
    gc.set_threshold(5, 1, 1)
    try:
        assert_same(pipeline.generate([3], seeds=1), expected)
    finally:
        gc.set_threshold(*threshold)
        del pipeline.backend.cuda.capture
    assert emulation.cuda.launches == pipeline.config.num_scales + 1, "every recording succeeded"
    gc.collect()
    emulation.cuda.streams.pop(min(emulation.cuda.streams))  # of the pipeline that nobody closed


# --- a load that fails --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_load_that_fails_half_way_leaves_no_memory(emulate, planned_tiny, tmp_path):
    emulation = emulate()
    path = copy_bundle(planned_tiny, tmp_path / "bundle")
    next(path.glob("plans/*/decode.plan")).unlink()  # opened last
    with pytest.raises(UsageError, match=r"decode\.plan is missing"):
        emulation.load(path)
    gc.collect()
    assert set(emulation.cuda.leaks()) <= {"streams"}
    assert not emulation.trt.engines
    emulation.cuda.streams.clear()


# --- what TensorRT-RTX compiled -----------------------------------------------------------------------------------


@pytest.fixture
def compiled(emulate, tiny, tmp_path, monkeypatch):
    """A bundle with plans of TensorRT-RTX, its emulation, and the folder where compiled kernels are kept."""
    emulation = emulate(rtx=True)
    path = copy_bundle(tiny, tmp_path / "bundle")
    emulation.build(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return emulation, path, tmp_path / "home" / "var-export" / "kernels"


@pytest.mark.slow
def test_compiled_kernels_are_kept_for_the_next_process(compiled):
    emulation, path, folder = compiled
    emulation.load(path).generate([0])
    emulation.pipelines.pop().close()
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(first) == 3, "cond, step and decode"
    with emulation.load(path) as pipeline:
        pipeline.generate([0])
    again = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(again) == set(first)
    assert all(again[name].startswith(data) for name, data in first.items()), "what was there was read"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["damaged", "a folder", "no folder can be made"])
def test_a_cache_of_kernels_that_cannot_be_used_costs_time_only(spoil, compiled, tiny, reference):
    emulation, path, folder = compiled
    emulation.load(path).generate([0])
    emulation.pipelines.pop().close()
    for file in folder.iterdir():
        if spoil == "damaged":
            file.write_bytes(b"rubbish")
        else:
            file.unlink()
            if spoil == "a folder":
                file.mkdir()
    if spoil == "no folder can be made":
        folder.rmdir()
        folder.parent.rmdir()
        folder.parent.write_text("a file where the folder should be")
    with emulation.load(path) as pipeline:
        assert_same(pipeline.generate([0]), reference(tiny).generate([0]))
