"""The runner end to end on an emulated GPU: the same graphs on the same addresses give what ONNX Runtime gives.

Whatever a run leaves behind is spoiled before the next one, every allocation has guards, and the fixture `emulate`
checks at the end of each test that all of it is given back.
"""

import itertools
import logging
import threading

import numpy as np
import pytest
from same_images import assert_same
from support import copy_bundle, refused, tiny_config

from engines.backends.device_buffer import DeviceBuffer
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, CheckFailedError
from tests.emulation import hollow_bundle
from tests.emulation.tensorrt import STREAMING_BUDGET, Engine

FORMS = ["stepwise", "fused"]


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [0.0, 2.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("form", FORMS)
def test_demo_images_are_those_of_onnx_runtime(form, count, cfg, emulate, planned_demo, reference):
    """Run directly, then recorded as a CUDA graph, then launched."""
    path = planned_demo(count)
    emulation = emulate()
    pipeline = emulation.load(path, form=form)
    expected_by = reference(path, form, padded_to=(count, 2 * count) if form == "fused" else None)
    classes = [(17 * i) % 172 for i in range(count)]
    expected = {seed: expected_by.generate(classes, seeds=seed, cfg=cfg) for seed in (5, 6)}
    launches = []
    for seed in (5, 6, 5):
        emulation.poison()
        assert_same(pipeline.generate(classes, seeds=seed, cfg=cfg), expected[seed])
        emulation.cuda.check_guards()
        launches.append(emulation.cuda.launches)
    per_image = 1 if form == "fused" else pipeline.config.num_scales + 1
    assert launches == [0, per_image, 2 * per_image], "from the second run on, all calls are launches"


@pytest.mark.parametrize("form", FORMS)
def test_fp32_images_are_those_of_onnx_runtime(form, emulate, planned_tiny, reference):
    emulation = emulate()
    pipeline = emulation.load(planned_tiny, form=form)
    for seed in range(3):
        emulation.poison()
        assert_same(pipeline.generate([0, 4], seeds=seed), reference(planned_tiny, form).generate([0, 4], seeds=seed))


@pytest.mark.parametrize("form", FORMS)
def test_smoothed_images_are_those_of_onnx_runtime(form, emulate, planned_smooth, reference):
    """Some images of a batch, all, and none: what an earlier batch left in the buffers shows nowhere."""
    emulation = emulate()
    pipeline = emulation.load(planned_smooth, form=form)
    wanted = reference(planned_smooth, form)
    for seed, smooth in enumerate([[True, False, True], True, False, [False, True, False]]):
        emulation.poison()
        assert_same(
            pipeline.generate([0, 4, 5], seeds=seed, smooth=smooth),
            wanted.generate([0, 4, 5], seeds=seed, smooth=smooth),
        )


# --- what one call may ask for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_guidance_may_differ_within_a_batch(form, emulate, planned_tiny, reference):
    """With and without guidance, and the class that is no class: one to eight rows for four images."""
    pipeline = emulate().load(planned_tiny, form=form)
    for cfg in ([0, 2, 0.5, 0], [3, 0, 0, 4], [0, 0, 0, 0], 1.5):
        arguments = {"classes": [0, 5, 3, 5], "seeds": 9, "cfg": cfg}
        assert_same(pipeline.generate(**arguments), reference(planned_tiny, form).generate(**arguments))


UNGUIDED = [([1, 1, 1], 3.0), ([2, 0, 1], 3.0), ([0, 3, 2], [2.0, 0.0, 4.0]), (0, 3.0), (2, 1.5)]


@pytest.mark.parametrize("plans", ["planned_tiny", "static_tiny"])
def test_guidance_may_end_early(plans, emulate, request, reference):
    """Each with other rows and at other scales: what was bound, recorded or cached for one serves the next."""
    path = request.getfixturevalue(plans)
    emulation = emulate()
    pipeline, expected_by = emulation.load(path), reference(path)
    for cfg_scales, cfg in [*UNGUIDED, *UNGUIDED]:
        arguments = {"classes": [0, 5, 3], "seeds": 9, "cfg": cfg, "cfg_scales": cfg_scales}
        emulation.poison()
        assert_same(pipeline.generate(**arguments), expected_by.generate(**arguments))
        emulation.cuda.check_guards()


def test_images_whose_guidance_ends_early_are_launches_and_take_no_more_memory(emulate, planned_tiny):
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    arguments = {"classes": [0, 5], "cfg": 2.0}
    pipeline.generate(**arguments)
    guided = emulation.cuda.in_use
    for _ in range(2):
        pipeline.generate(**arguments, cfg_scales=2)
    cache = 2 * pipeline.config.transformer.depth
    assert emulation.cuda.in_use - guided < guided / cache, "a block's keys, and AdaLN vectors"
    made, contexts, launches = (
        emulation.cuda.total_allocations,
        emulation.trt.contexts_made,
        emulation.cuda.launches,
    )
    pipeline.generate(**arguments, cfg_scales=2)
    assert (emulation.cuda.total_allocations, emulation.trt.contexts_made) == (made, contexts)
    assert emulation.cuda.launches - launches == pipeline.config.num_scales + 1


@pytest.mark.parametrize("form", FORMS)
def test_sampling_may_differ_within_a_batch(form, emulate, planned_tiny, reference):
    pipeline = emulate().load(planned_tiny, form=form)
    arguments = {
        "classes": [1, 2, 3, 4],
        "seeds": [7, 2**64 - 1, 0, 7],
        "temperature": [0.5, 1, 2, 1],
        "top_k": [1, 0, 5, 64],
        "top_p": [0.5, 0, 1, 0.9],
    }
    for _ in range(3):
        assert_same(pipeline.generate(**arguments), reference(planned_tiny, form).generate(**arguments))


@pytest.mark.parametrize("form", FORMS)
def test_forced_tokens_are_taken(form, emulate, planned_tiny, reference):
    """And an image without them, after one with them, is not touched by what the other left."""
    pipeline, expected_by = emulate().load(planned_tiny, form=form), reference(planned_tiny, form)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 64, (2, pipeline.config.num_tokens))
    mask = rng.random(tokens.shape) < 0.5
    for forced in ((tokens, mask), None, tokens, (tokens, ~mask), None):
        result = pipeline.generate([1, 2], seeds=4, forced=forced)
        assert_same(result, expected_by.generate([1, 2], seeds=4, forced=forced))
        if isinstance(forced, tuple):
            assert (result.tokens == tokens)[forced[1]].all()


def test_an_image_depends_on_its_own_seed_alone(emulate, planned_tiny):
    pipeline = emulate().load(planned_tiny)
    together = pipeline.generate([1, 2, 3, 1], seeds=20)
    for image, name in enumerate([1, 2, 3, 1]):
        alone = pipeline.generate(name, seeds=20 + image)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[image])
        np.testing.assert_array_equal(alone.images[0], together.images[image])


def test_previews(emulate, planned_tiny, reference):
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    for scales in (None, [1], [0, 2], []):
        emulation.poison()
        previews = pipeline.stream([0, 3, 2], seeds=1, preview_scales=scales)
        expected = reference(planned_tiny).stream([0, 3, 2], seeds=1, preview_scales=scales)
        for preview, other in itertools.zip_longest(previews, expected):
            assert (preview.scale, preview.final) == (other.scale, other.final)
            np.testing.assert_array_equal(preview.images, other.images)
            np.testing.assert_array_equal(preview.tokens, other.tokens)


def test_a_stream_that_is_abandoned_leaves_no_trace(emulate, planned_tiny, reference):
    pipeline = emulate().load(planned_tiny)
    for taken in (0, 1, 2):
        previews = pipeline.stream([0, 3], seeds=1)
        for _ in range(taken):
            next(previews)
        previews.close()
        assert_same(pipeline.generate([4, 1], seeds=2), reference(planned_tiny).generate([4, 1], seeds=2))


def test_a_callback_that_fails_leaves_no_trace(emulate, planned_tiny, reference):
    """The batch stops with its work unread; the next one uses the same buffers."""
    pipeline = emulate().load(planned_tiny)

    def fail(view):
        raise RuntimeError("enough")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="enough"):
            pipeline.generate([0, 3], seeds=1, on_scale=fail)
        assert_same(pipeline.generate([4, 1], seeds=2), reference(planned_tiny).generate([4, 1], seeds=2))


@pytest.mark.parametrize("form", FORMS)
def test_encode_decode_and_reconstruct(form, emulate, planned_tiny, reference):
    """More images than one call takes, so that the last call is a smaller one."""
    pipeline, expected_by = emulate().load(planned_tiny, form=form), reference(planned_tiny, form)
    side = pipeline.config.image_size
    images = np.random.default_rng(0).integers(0, 256, (7, side, side, 3), dtype=np.uint8)
    for _ in range(3):
        np.testing.assert_array_equal(pipeline.encode(images), expected_by.encode(images))
        np.testing.assert_array_equal(pipeline.reconstruct(images), expected_by.reconstruct(images))
    tokens = expected_by.encode(images)
    np.testing.assert_array_equal(pipeline.decode(tokens), expected_by.decode(tokens))


def test_logits_of_every_scale(emulate, planned_tiny, reference):
    def run(pipeline):
        seen = []
        result = pipeline.generate([0, 5, 1], seeds=3, on_scale=lambda view: seen.append(view.read_logits()))
        return result, seen

    pipeline = emulate().load(planned_tiny)
    expected, expected_logits = run(reference(planned_tiny))
    for _ in range(3):
        result, logits = run(pipeline)
        assert_same(result, expected)
        for scale, pair in enumerate(zip(logits, expected_logits, strict=True)):
            np.testing.assert_array_equal(*pair, err_msg=f"scale {scale}")


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_more_images_than_the_plan_holds_are_split(form, emulate, planned_tiny, reference):
    pipeline = emulate().load(planned_tiny, form=form)
    assert pipeline.max_batch == (4 if form == "stepwise" else 2)
    classes = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert_same(pipeline.generate(classes, seeds=3), reference(planned_tiny, form).generate(classes, seeds=3))


@pytest.mark.parametrize("cfg", [0, 2, [0, 3, 0]], ids=["unguided", "guided", "mixed"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_fewer_images_than_a_static_plan_are_padded(form, count, cfg, emulate, static_tiny, reference):
    emulation = emulate()
    pipeline = emulation.load(static_tiny, form=form)
    arguments = {"classes": [0, 4, 2][:count], "seeds": 8, "cfg": cfg[:count] if isinstance(cfg, list) else cfg}
    for _ in range(3):
        emulation.poison()
        result = pipeline.generate(**arguments)
        assert_same(result, reference(static_tiny, form).generate(**arguments))
        assert len(result.images) == count


def test_a_static_plan_pads_everything_else_too(emulate, static_tiny, reference):
    emulation = emulate()
    pipeline, expected_by = emulation.load(static_tiny), reference(static_tiny)
    images = expected_by.generate([0, 1, 2, 3, 4], seeds=0).images
    np.testing.assert_array_equal(pipeline.reconstruct(images), expected_by.reconstruct(images))
    previews = list(pipeline.stream([3], seeds=1))
    assert [preview.images.shape[0] for preview in previews] == [1] * pipeline.config.num_scales
    expected = list(expected_by.stream([3], seeds=1))
    np.testing.assert_array_equal(previews[-1].images, expected[-1].images)
    seen = []
    pipeline.generate([3], seeds=1, on_scale=lambda view: seen.append(view.read_logits()))
    assert {logits.shape[0] for logits in seen} == {1}, "padding is nobody's business"


def test_max_batch_may_be_smaller_than_the_plan(emulate, planned_tiny, reference):
    emulation = emulate()
    pipeline = emulation.load(planned_tiny, max_batch=3)
    assert pipeline.max_batch == 3
    assert_same(pipeline.generate([0] * 7, seeds=3), reference(planned_tiny).generate([0] * 7, seeds=3))
    assert emulation.load(planned_tiny, max_batch=100).max_batch == 4, "and never larger"


@pytest.mark.slow
def test_a_workspace_is_made_once_per_shape(emulate, planned_tiny):
    """However often the batches change, as a server's do; unused ones are dropped, so that memory stays bounded."""
    emulation = emulate()
    pipeline = emulation.load(planned_tiny)
    pipeline.generate([0, 1], cfg=2)
    pipeline.generate([0], cfg=2)
    made, contexts = emulation.cuda.total_allocations, emulation.trt.contexts_made
    for _ in range(3):
        pipeline.generate([0, 1], cfg=2)
        pipeline.generate([0], cfg=2)
    assert (emulation.cuda.total_allocations, emulation.trt.contexts_made) == (made, contexts)
    most = []
    for _ in range(2):
        for shape in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3]):
            for cfg in (0, 2):
                pipeline.generate(shape, cfg=cfg)
        most.append(emulation.cuda.in_use)
    assert most[0] == most[1]


# --- several at once ----------------------------------------------------------------------------------------------


def in_threads(*functions):
    """Run them at once; the first exception is raised here."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.slow
def test_two_threads_share_a_pipeline(emulate, planned_tiny, reference):
    pipeline = emulate().load(planned_tiny)
    jobs = [([0, 1], 1), ([2], 2), ([3, 4, 0], 3), ([5], 4)]
    expected = [reference(planned_tiny).generate(classes, seeds=seed) for classes, seed in jobs]

    def work(order):
        for index in order:
            classes, seed = jobs[index]
            assert_same(pipeline.generate(classes, seeds=seed), expected[index])

    in_threads(lambda: work([0, 1, 2, 3] * 3), lambda: work([0, 3, 2, 1] * 3))


def test_two_pipelines_share_a_gpu(emulate, planned_tiny, static_tiny, reference):
    """Each has a stream, scratch memory and a lock of its own; closing one leaves the other alone."""
    emulation = emulate()
    first, second = emulation.load(planned_tiny), emulation.load(static_tiny, form="fused")
    expected = reference(planned_tiny).generate([0, 1], seeds=1)

    def work(pipeline):
        for _ in range(4):
            assert_same(pipeline.generate([0, 1], seeds=1), expected)

    work(first)
    work(second)
    in_threads(lambda: work(first), lambda: work(second))
    second.close()
    work(first)


def test_the_first_batches_of_two_threads_may_meet(emulate, planned_tiny, reference):
    """Nothing is loaded, bound or recorded yet when both arrive."""
    pipeline = emulate().load(planned_tiny)
    expected = reference(planned_tiny).generate([0, 1], seeds=1)
    barrier = threading.Barrier(3)

    def work():
        barrier.wait()
        for _ in range(3):
            assert_same(pipeline.generate([0, 1], seeds=1), expected)

    in_threads(work, work, work)


# --- CUDA graphs --------------------------------------------------------------------------------------------------


def test_without_cuda_graphs_it_runs_directly_and_says_so(emulate, planned_tiny, reference, caplog):
    emulation = emulate(capture=False)
    pipeline = emulation.load(planned_tiny)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            assert_same(pipeline.generate([0, 1], seeds=1), reference(planned_tiny).generate([0, 1], seeds=1))
    assert emulation.cuda.launches == 0
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 2, "once for step and once for decode, however many calls each has"
    for line, name in zip(said, ("decode", "step"), strict=True):
        assert line.startswith(f"{name} could not be captured as a CUDA graph and runs directly: ")
        assert "cudaErrorStreamCaptureUnsupported" in line
        assert "\n" not in line


def test_tensorrt_rtx_is_asked_whether_it_can_be_captured(emulate, tiny, tmp_path, reference, caplog):
    emulation = emulate(rtx=True)
    path = copy_bundle(tiny, tmp_path / "bundle")
    emulation.build(path, "1:1:2")
    expected = reference(tiny).generate([0, 1], seeds=1)
    pipeline = emulation.load(path)
    for _ in range(3):
        assert_same(pipeline.generate([0, 1], seeds=1), expected)
    assert emulation.cuda.launches > 0

    emulation.trt.capturable = False
    emulation.cuda.launches = 0
    with caplog.at_level(logging.INFO):
        direct = emulation.load(path)
        for _ in range(3):
            assert_same(direct.generate([0, 1], seeds=1), expected)
    assert emulation.cuda.launches == 0
    assert "step cannot be captured as a CUDA graph; it runs directly" in caplog.text


def test_weights_that_are_streamed_get_a_budget_and_no_cuda_graph(emulate, tiny, tmp_path, reference):
    """Whether a recording would repeat the copies of the weights is nowhere documented."""
    emulation = emulate()
    path = copy_bundle(tiny, tmp_path / "bundle")
    emulation.build(path, weight_streaming=True)
    assert all(emulation.trt.BuilderFlag.WEIGHT_STREAMING in config.flags for _, config in emulation.trt.builds)
    pipeline = emulation.load(path)
    for _ in range(4):
        assert_same(pipeline.generate([0, 1], seeds=1), reference(tiny).generate([0, 1], seeds=1))
    assert {engine.weight_streaming_budget_v2 for engine in emulation.trt.engines} == {STREAMING_BUDGET}
    assert emulation.cuda.launches == 0


def test_a_budget_that_is_refused_is_not_passed_over(emulate, tiny, tmp_path, monkeypatch):
    """TensorRT keeps the old one without a word."""
    emulation = emulate()
    path = copy_bundle(tiny, tmp_path / "bundle")
    emulation.build(path, weight_streaming=True)
    monkeypatch.setattr(Engine, "weight_streaming_budget_v2", property(lambda self: 0, lambda self, budget: None))
    with pytest.raises(BackendError, match="MiB of weights on the GPU"):
        emulation.load(path)
    emulation.cuda.streams.clear()


# --- what is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_timings_add_up(form, emulate, planned_tiny):
    pipeline = emulate().load(planned_tiny, form=form)
    for classes in ([0], [0, 1, 2, 3, 4]):
        for _ in range(3):
            timings = pipeline.generate(classes).timings
            assert len(timings.scales) == (pipeline.config.num_scales if form == "stepwise" else 1)
            assert all(seconds > 0 for seconds in timings.scales)
            assert (timings.decode > 0) == (form == "stepwise")
            assert timings.outside >= 0
            assert timings.cond + sum(timings.scales) + timings.decode <= timings.total


def test_plans_are_judged_before_they_draw(emulate, planned_tiny, tmp_path, monkeypatch):
    """By figures of the plans themselves: what ONNX Runtime computes of the same bundle says nothing of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    emulate()
    Pipeline.load(planned_tiny, backend="onnxruntime").close()
    verdicts = {file.name for file in (tmp_path / "var-export/checks").iterdir()}
    Pipeline.load(planned_tiny).close()
    (verdict,) = {file.name for file in (tmp_path / "var-export/checks").iterdir()} - verdicts
    (tmp_path / "var-export/checks" / verdict).unlink()
    monkeypatch.setattr(DeviceBuffer, "read", lambda self, read=DeviceBuffer.read: read(self) * 0)
    message = refused(lambda: Pipeline.load(planned_tiny), "Build the plans again", kind=CheckFailedError)
    assert "decoder PSNR" in message


def test_the_pipeline_finds_the_plans_by_itself(emulate, planned_tiny, reference):
    """No backend is named: the bundle has plans that fit."""
    emulation = emulate()
    with Pipeline.load(planned_tiny) as pipeline:
        told = pipeline.describe_runtime()
        assert (told["backend"], told["provider"], told["tensorrt"]) == ("tensorrt", "cuda", "10.3.0")
        assert (told["gpu"], told["compute_capability"], told["cuda"]) == ("Emulated GPU", "8.6", "12.6")
        assert_same(pipeline.generate([1]), reference(planned_tiny).generate([1]))
    assert emulation.trt.deserialized == 3


# --- alignment ----------------------------------------------------------------------------------------------------


def odd_heads(folder, precision):
    """One head of 64: a row of the cache takes 128 bytes in FP16."""
    return hollow_bundle(folder, tiny_config(heads=1, patch_nums=(1, 2, 3)), precision=precision)


@pytest.mark.slow
def test_an_odd_number_of_heads_in_fp16_is_refused_where_it_cannot_be_bound(emulate, tmp_path):
    """TensorRT wants addresses that are multiples of 256 bytes, and one unguided image fills 128 at the first scale."""
    config = tiny_config(heads=1, patch_nums=(1, 2, 3))
    emulation = emulate(model=(config, "fp16"), empty=True)
    path = odd_heads(tmp_path / "odd", "fp16")
    emulation.build(path)
    pipeline = emulation.load(path)
    with pytest.raises(BackendError) as caught:
        pipeline.generate([0], cfg=0)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("k_0 of step", "256 bytes", "--precision fp32", "even batch"):
        assert word in message
    pipeline.generate([0], cfg=2)  # what still works: guidance, an even number of images ...
    pipeline.generate([0, 1], cfg=0)


def test_what_the_message_about_odd_heads_proposes_works(emulate, tmp_path):
    config = tiny_config(heads=1, patch_nums=(1, 2, 3))
    emulation = emulate(model=(config, "fp16"), empty=True)
    even = odd_heads(tmp_path / "even", "fp16")
    emulation.build(even, "2")
    assert len(emulation.load(even).generate([0], cfg=0).images) == 1, "a plan for two images pads one"

    emulation = emulate(model=(config, "fp32"), empty=True)
    wide = odd_heads(tmp_path / "fp32", "fp32")
    emulation.build(wide)
    assert len(emulation.load(wide).generate([0], cfg=0).images) == 1
