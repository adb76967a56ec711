"""The scale loop by what it asks of a backend: nothing is computed, and every copy is seen."""

import itertools

import numpy as np
import pytest
from recording_backend import RecordingBackend

from engines.bundle.bundle import Bundle
from engines.draw.batch import Rows
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError
from engines.spec.uniforms import uniforms

NO_CLASS = 171


@pytest.fixture
def backend():
    return RecordingBackend()


@pytest.fixture(params=["fp32", "fp16"])
def pipeline(request, backend):
    bundle = Bundle.open(request.getfixturevalue(f"demo_{request.param}_bundle"), verify=False)
    return Pipeline(bundle, backend)


def test_new_keys_and_values_are_written_right_behind_the_cached_ones(pipeline, backend):
    config = pipeline.config
    pipeline.generate([3, 4, NO_CLASS], cfg=[1.0, 0.0, 1.0])  # four rows: one image is guided
    item = 2 if pipeline.bundle.precision == "fp16" else 4
    row = 4 * config.transformer.heads * config.transformer.head_dim * item
    steps = backend.of("run", "step")
    assert len(steps) == config.num_scales
    for i in range(config.transformer.depth):
        for kind in "kv":
            start = steps[0].inputs[f"past_{kind}_{i}"].address
            for scale, step in enumerate(steps):
                past, new = step.inputs[f"past_{kind}_{i}"], step.outputs[f"new_{kind}_{i}"]
                assert past.dtype == new.dtype == f"float{item * 8}"
                assert past.shape[0] == config.scale_offsets[scale]
                assert new.shape[0] == config.scale_lengths[scale]
                assert past.address == start
                if scale < config.num_scales - 1:  # nobody reads the keys of the last
                    assert new.address == start + config.scale_offsets[scale] * row


def test_caches_of_blocks_do_not_overlap(pipeline, backend):
    pipeline.generate([3])
    last = backend.of("run", "step")[-1]
    caches = [buffer for name, buffer in last.inputs.items() if name.startswith("past_")]
    regions = sorted((buffer.address, buffer.address + buffer.array.nbytes) for buffer in caches)
    others = [buffer for name, buffer in last.outputs.items() if not name.startswith("new_")]
    regions = sorted(regions + [(buffer.address, buffer.address + buffer.array.nbytes) for buffer in others])
    for (_, end), (start, _) in itertools.pairwise(regions):
        assert end <= start


def test_one_scale_feeds_the_next_without_the_host(pipeline, backend):
    pipeline.generate([3, 4])
    steps = backend.of("run", "step")
    for before, after in itertools.pairwise(steps):
        assert before.outputs["x_next"].address == after.inputs["x"].address
        assert before.outputs["f_hat_out"].address == after.inputs["f_hat"].address
        assert after.inputs["f_hat"].address != after.outputs["f_hat_out"].address
    assert backend.of("run", "decode")[0].inputs["f_hat"].address == steps[-1].outputs["f_hat_out"].address


def test_the_host_writes_before_the_first_scale_and_reads_after_the_last(pipeline, backend):
    pipeline.generate([3, 4])
    kinds = [(event.what, event.graph) for event in backend.log]
    first, last = kinds.index(("run", "step")), kinds.index(("run", "decode"))
    assert kinds[first : last + 1] == [("run", "step")] * pipeline.config.num_scales + [("run", "decode")]
    assert all(what != "write" for what, _ in kinds[first:])


def test_a_second_image_binds_and_allocates_nothing(pipeline, backend):
    pipeline.generate([3], seeds=1)
    backend.log.clear()
    pipeline.generate([3], seeds=2, cfg=2.0, top_k=7)
    assert not backend.of("bind")
    assert not backend.of("buffer")
    assert [event.graph for event in backend.of("run")] == ["step"] * pipeline.config.num_scales + ["decode"]
    small = sum(event.size for event in backend.of("write"))
    assert small < 200_000, "AdaLN vectors and a few numbers per token"


def test_the_first_map_is_zero_for_every_image(pipeline, backend):
    pipeline.generate([3])
    pipeline.generate([4])
    for step in backend.of("run", "step"):
        if step.inputs["past_k_0"].shape[0] == 0:
            assert not step.inputs["f_hat"].array.any()
            assert step.inputs["f_hat"].address not in {
                s.outputs["f_hat_out"].address for s in backend.of("run", "step")
            }


def test_constants_are_uploaded_once(pipeline, backend):
    pipeline.generate([3])
    ups = [step.inputs["up"].address for step in backend.of("run", "step")]
    pipeline.generate([3, 4, 5], cfg=0)
    again = [step.inputs["up"].address for step in backend.of("run", "step")][len(ups) :]
    assert again == ups
    assert len(set(ups)) == len(ups)


def test_adaln_vectors_are_computed_once_per_class(pipeline, backend):
    def asked():
        labels = [event.inputs["labels"].array.tolist() for event in backend.of("run", "cond")]
        backend.log.clear()
        return labels

    pipeline.generate([3, 3, 4])
    assert sorted(asked()[0]) == [3, 4, NO_CLASS]
    pipeline.generate([4, 3], cfg=5.0)
    assert asked() == []
    pipeline.generate([4, 9])
    assert asked() == [[9]]


def test_more_classes_than_are_kept_may_share_a_batch(demo_fp32_bundle, backend):
    with Pipeline(Bundle.open(demo_fp32_bundle, verify=False), backend, max_batch=128) as pipeline:
        for _ in range(2):
            result = pipeline.generate(list(range(100)))
            assert len(result.images) == 100


def test_guidance_0_runs_half_the_rows(pipeline, backend):
    for cfg, rows in ((1.0, 6), (0.0, 3), ([1.0, 0.0, 2.0], 5)):
        backend.log.clear()
        pipeline.generate([3, 4, 5], cfg=cfg)
        assert {step.inputs["x"].shape[0] for step in backend.of("run", "step")} == {rows}
    backend.log.clear()
    pipeline.generate([NO_CLASS, "none"], cfg=4.0)
    assert {step.inputs["x"].shape[0] for step in backend.of("run", "step")} == {2}


def test_the_guidance_ramp_grows_from_0_to_cfg(pipeline, backend):
    pipeline.generate([3, 4], cfg=[3.0, 6.0])
    ramp = np.stack([step.inputs["guidance"].array for step in backend.of("run", "step")])
    wanted = np.arange(7)[:, None] / 6 * np.float32([[3.0, 6.0]])
    np.testing.assert_allclose(ramp, wanted, rtol=1e-6)


def test_every_scale_gets_its_own_uniform_numbers(pipeline, backend):
    pipeline.generate([3, 4], seeds=[8, 5])
    table = np.concatenate([step.inputs["uniforms"].array for step in backend.of("run", "step")], axis=1)
    np.testing.assert_array_equal(table, uniforms([8, 5], pipeline.config.num_tokens))


def test_only_a_few_idle_workspaces_are_kept(demo_fp32_bundle, backend):
    with Pipeline(Bundle.open(demo_fp32_bundle, verify=False), backend, max_batch=16) as pipeline:
        for count in range(1, 13):
            pipeline.generate(list(range(count)))
        backend.log.clear()
        pipeline.generate(list(range(12)))
        assert not backend.of("bind"), "the last shape is kept"
        pipeline.generate([1])
        assert backend.of("bind"), "the first was given up"


def test_previews_decode_only_where_asked(pipeline, backend):
    previews = list(pipeline.stream([3], preview_scales=[2, 4]))
    assert [preview.scale for preview in previews] == [2, 4, 6]
    assert len(backend.of("run", "decode")) == 3


def test_an_image_that_is_not_wanted_any_more_costs_no_further_scale(pipeline, backend):
    stream = pipeline.stream([3])
    next(stream)
    stream.close()
    assert len(backend.of("run", "step")) == 1


def test_closing_frees_the_engines_and_the_backend(pipeline, backend):
    pipeline.generate([3])
    pipeline.encode(np.zeros((1, 64, 64, 3), np.uint8))
    pipeline.close()
    pipeline.close()
    assert {name for name, engine in backend.engines.items() if engine.closed} == {"cond", "step", "decode", "encode"}
    assert backend.closed
    with pytest.raises(UsageError, match="closed"):
        pipeline.generate([3])


# --- rows of the transformer ----------------------------------------------------------------------------------------


def rows_of(classes, cfg):
    return Rows.of(np.array(classes), np.array(cfg, np.float32), NO_CLASS)


def test_rows_of_guided_images_come_behind_the_others():
    rows = rows_of([5, 6, 7], [2.0, 0.0, 1.0])
    assert rows.labels.tolist() == [5, 6, 7, NO_CLASS, NO_CLASS]
    assert rows.cond_row.tolist() == [0, 1, 2]
    assert rows.uncond_row.tolist() == [3, 1, 4]
    assert rows.image_row.tolist() == [0, 1, 2, 0, 2]
    for array in vars(rows).values():
        assert array.dtype == np.int64


def test_no_class_needs_one_row_whatever_its_guidance():
    rows = rows_of([NO_CLASS, 5], [4.0, 4.0])
    assert rows.labels.tolist() == [NO_CLASS, 5, NO_CLASS]
    assert rows.uncond_row.tolist() == [0, 2]


@pytest.mark.parametrize(("cfg", "count"), [([0, 0, 0], 3), ([1, 1, 1], 6)])
def test_all_or_none_guided(cfg, count):
    rows = rows_of([1, 2, 3], cfg)
    assert len(rows.labels) == count
    np.testing.assert_array_equal(rows.image_row[rows.cond_row], [0, 1, 2])
    np.testing.assert_array_equal(rows.image_row[rows.uncond_row], [0, 1, 2])
