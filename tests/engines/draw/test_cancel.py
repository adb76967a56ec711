"""`stop`, and previews that each image chooses: what a server needs of a pipeline."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.backends.base import Mark
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import CancelledError, UsageError
from tests.bundles import shared_bundle
from tests.recording_backend import RecordingBackend

SCALES = 7


@pytest.fixture(scope="module")
def pipeline():
    with Pipeline.load(DEMO_BUNDLE, threads=1) as loaded:
        yield loaded


class After:
    """Says stop when it is asked for the n-th time."""

    def __init__(self, asked):
        self.left = asked

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("scales", range(SCALES))
def test_stop_is_asked_before_each_scale(scales):
    """Not one more scale is started once it says so, nor the decoder."""
    backend = RecordingBackend()
    with Pipeline(Bundle.open(DEMO_BUNDLE), backend) as pipeline:
        with pytest.raises(CancelledError):
            pipeline.generate(88, stop=After(scales))
        assert len(backend.of("run", "step")) == scales
        with pytest.raises(CancelledError):
            list(pipeline.stream(88, stop=After(scales), preview_scales=[]))
        assert len(backend.of("run", "step")) == 2 * scales
        assert not backend.of("run", "decode")


def test_a_gpu_is_never_more_than_two_scales_ahead_of_the_question():
    """Its calls return at once: without waiting, all would be asked before the first scale was drawn."""
    waited = []

    class Later(Mark):
        def record(self):
            pass

        def since(self, earlier):
            waited.append(self)
            return 0.0

    backend = RecordingBackend()
    backend.mark = Later
    with Pipeline(Bundle.open(DEMO_BUNDLE), backend) as pipeline:
        asked = []
        pipeline.generate(88, stop=lambda: asked.append(len(waited)) or False)
        assert asked == [0, 0, 1, 2, 3, 4, 5]
        waited.clear()
        pipeline.generate(88)
        assert len(waited) == SCALES + 1, "who asks for nothing waits for nothing until the end"


@pytest.mark.slow
def test_a_pipeline_that_was_stopped_draws_as_before(pipeline):
    wanted = pipeline.generate([88, 3], seeds=[1, 2])
    for scales in (0, 3, 6):
        with pytest.raises(CancelledError):
            pipeline.generate([5, 6], seeds=[8, 9], cfg=3.0, stop=After(scales))
        again = pipeline.generate([88, 3], seeds=[1, 2], stop=lambda: False)
        np.testing.assert_array_equal(again.tokens, wanted.tokens)
        np.testing.assert_array_equal(again.images, wanted.images)


def test_an_error_of_stop_is_the_callers_own(pipeline):
    def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipeline.generate(88, stop=fail)
    pipeline.generate(88)


@pytest.mark.slow
def test_batches_that_are_split_stop_too():
    with Pipeline.load(DEMO_BUNDLE, threads=1, max_batch=2) as pipeline, pytest.raises(CancelledError):
        pipeline.generate([1] * 6, stop=After(SCALES + 1))  # in the second batch


def test_the_fused_form_stops_between_batches():
    with Pipeline.load(shared_bundle("tiny-fp32"), form="fused", threads=1, max_batch=2) as pipeline:
        with pytest.raises(CancelledError):
            pipeline.generate([0, 1, 2], stop=After(1))
        pipeline.generate([0, 1, 2], stop=After(2))


@pytest.mark.slow
def test_others_go_on_while_one_is_stopped(pipeline, caplog, capfd):
    """Several threads, some stopped at any time: the others' images are right, and nothing is printed."""
    wanted = {seed: pipeline.generate([88, seed], seeds=seed, cfg=seed % 3).tokens for seed in range(6)}
    caplog.set_level(logging.DEBUG)
    barrier = threading.Barrier(6)

    def draw(seed):
        barrier.wait()
        for turn in range(3):
            if seed % 2:
                with pytest.raises(CancelledError):
                    pipeline.generate([88, seed], seeds=seed, cfg=seed % 3, stop=After(turn + 1))
            else:
                tokens = pipeline.generate([88, seed], seeds=seed, cfg=seed % 3, stop=lambda: False).tokens
                np.testing.assert_array_equal(tokens, wanted[seed])

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(draw, seed) for seed in range(6)]:
            done.result()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_each_image_chooses_its_previews(pipeline):
    shared = {preview.scale: preview for preview in pipeline.stream([88, 3, 5], seeds=[1, 2, 3])}
    seen = list(pipeline.stream([88, 3, 5], seeds=[1, 2, 3], preview_scales=[[0, 2], [], [2, 4]]))
    assert [(preview.scale, preview.which.tolist()) for preview in seen] == [
        (0, [0]), (2, [0, 2]), (4, [2]), (6, [0, 1, 2]),
    ]  # fmt: skip
    for preview in seen:
        whole = shared[preview.scale]
        np.testing.assert_array_equal(preview.tokens, whole.tokens[preview.which])
        assert np.abs(preview.images.astype(int) - whole.images[preview.which]).max() <= 1
    assert [preview.timings is not None for preview in seen] == [False, False, False, True]
    assert len(seen[-1].timings.scales) == SCALES
    assert seen[-1].timings.total >= sum(seen[-1].timings.scales) + seen[-1].timings.decode > 0


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ([7], "0 to 6"),
        ([-1], "0 to 6"),
        ([[0], [1], [2]], "3 lists of preview_scales for 2 images"),
        ([0.5], "whole"),
        ([[0], ["x"]], "whole"),
    ],
)
def test_wrong_previews_are_refused(scales, words, pipeline):
    with pytest.raises(UsageError, match=words):
        pipeline.stream([88, 3], preview_scales=scales)
