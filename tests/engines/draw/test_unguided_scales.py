"""Guidance that ends before the last scale: against the PyTorch reference, image by image of a batch, row by row."""

import numpy as np
import pytest
from recording_backend import RecordingBackend
from support import need_torch

from engines.bundle.bundle import Bundle
from engines.draw.batch import Rows
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError
from engines.spec.uniforms import uniforms
from tests.bundles import SHARED, shared_bundle

CLASSES, SEEDS = [88, 3, 171, 100, 12, 3], [5, 0, 2, 7, 9, 1]  # 171 is no class
MIXED = {"cfg": [2.0, 4.0, 2.0, 0.0, 3.0, 2.5], "cfg_scales": [5, 3, 4, 3, 0, 5]}
SAMPLING = {"top_k": 100, "top_p": 0.9}


@pytest.fixture(scope="module")
def pipeline(demo_fp32_bundle):
    with Pipeline.load(demo_fp32_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def mixed(pipeline):
    """Six images in one batch, whose guidance ends at three scales, at none, or is none."""
    return pipeline.generate(CLASSES, seeds=SEEDS, **MIXED, **SAMPLING)


def same(result, other, part=slice(None)):
    np.testing.assert_array_equal(result.tokens, other.tokens[part])
    np.testing.assert_array_equal(result.images, other.images[part])


# --- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg_scales", [[1, 1, 1], [2, 2, 2], [3, 1, 0], [0, 2, 99]])
@pytest.mark.parametrize("model", ["tiny-fp32", "demo-fp32"])
def test_tokens_are_those_of_the_reference(model, cfg_scales):
    need_torch()
    import torch

    reference = SHARED[model][0]().reference()
    classes, seeds, cfg = [1, 4, 2], [3, 8, 1], [3.0, 1.5, 4.0]
    with Pipeline.load(shared_bundle(model), form="stepwise", threads=2) as pipeline:
        settings = {"temperature": [1.0, 0.9, 1.1], "top_k": [8, 4, 6], "top_p": [0.9, 0.0, 0.8]}
        drawn = pipeline.generate(classes, seeds=seeds, cfg=cfg, cfg_scales=cfg_scales, **settings)
        wanted = reference.generate(
            torch.tensor(classes),
            torch.from_numpy(uniforms(seeds, pipeline.config.num_tokens)),
            cfg=torch.tensor(cfg),
            cfg_scales=torch.tensor(cfg_scales),
            max_top_k=pipeline.bundle.max_top_k,
            **{name: torch.tensor(values) for name, values in settings.items()},
        )
    np.testing.assert_array_equal(drawn.tokens, wanted.tokens.numpy())
    np.testing.assert_allclose(drawn.images.astype(int), wanted.image.numpy().astype(int), atol=1)


@pytest.mark.parametrize("i", range(6))
def test_an_image_is_the_same_alone_and_in_any_batch(i, pipeline, mixed):
    own = {name: values[i] for name, values in MIXED.items()}
    same(pipeline.generate(CLASSES[i], seeds=SEEDS[i], **own, **SAMPLING), mixed, slice(i, i + 1))


def test_a_batch_leaves_nothing_behind_for_the_next(pipeline, mixed):
    again = {"classes": CLASSES, "seeds": SEEDS, "cfg": MIXED["cfg"], **SAMPLING}
    guided = pipeline.generate(**again)
    for cfg_scales in (1, MIXED["cfg_scales"][::-1]):
        pipeline.generate(**again, cfg_scales=cfg_scales)
        same(pipeline.generate(**again), guided)
        same(pipeline.generate(**again, cfg_scales=MIXED["cfg_scales"]), mixed)


def test_it_ends_where_it_is_told_to(pipeline):
    """Scales before are as ever; from there on another image comes, and an earlier end gives another one."""
    config = pipeline.config
    drawn = {k: pipeline.generate(88, seeds=2, cfg=4.0, cfg_scales=k, **SAMPLING).tokens for k in range(9)}
    for k in range(1, 7):
        until = config.scale_offsets[k]
        np.testing.assert_array_equal(drawn[k][:, :until], drawn[0][:, :until])
        assert (drawn[k] != drawn[0]).any()
        here = config.scale_slice(k)
        assert k < 3 or (drawn[k][:, here] != drawn[0][:, here]).any(), "guidance grows: at first few tokens feel it"
    for k in (7, 8):  # as many as there are, and more
        np.testing.assert_array_equal(drawn[k], drawn[0])


def test_an_image_without_guidance_has_none_to_end(pipeline):
    for asked in ({"classes": [88, 3], "cfg": 0}, {"classes": "none", "cfg": 3.0}):
        plain = pipeline.generate(**asked, seeds=1, **SAMPLING)
        same(pipeline.generate(**asked, seeds=1, cfg_scales=2, **SAMPLING), plain)


def test_previews_and_timings_go_on(pipeline, mixed):
    previews = list(pipeline.stream(CLASSES, seeds=SEEDS, **MIXED, **SAMPLING))
    assert [preview.scale for preview in previews] == list(range(7))
    np.testing.assert_array_equal(previews[-1].images, mixed.images)
    np.testing.assert_array_equal(previews[3].tokens, mixed.tokens[:, : pipeline.config.scale_offsets[4]])
    assert len(mixed.timings.scales) == 7
    assert min(mixed.timings.scales) > 0


def test_edits_keep_what_they_keep(pipeline, mixed):
    lower = np.arange(64)[:, None] >= np.full(64, 32)
    options = {"seeds": 4, "cfg": [4.0, 3.0], **SAMPLING}
    ended = pipeline.edit(mixed.images[:2], lower, ["parrot", "fox"], cfg_scales=[4, 6], **options)
    plain = pipeline.edit(mixed.images[:2], lower, ["parrot", "fox"], **options)
    start = pipeline.config.scale_offsets[4]
    np.testing.assert_array_equal(ended.tokens[:, :start], plain.tokens[:, :start])
    assert (ended.tokens != plain.tokens).any(axis=1).all()
    kept = ended.tokens == pipeline.encode(mixed.images[:2])
    assert kept[:, pipeline.config.scale_slice(6)].mean() >= 0.5
    for i in range(2):
        alone = pipeline.edit(
            mixed.images[i],
            lower,
            ["parrot", "fox"][i],
            seeds=4 + i,
            cfg=options["cfg"][i],
            cfg_scales=[4, 6][i],
            **SAMPLING,
        )
        same(alone, ended, slice(i, i + 1))


def test_given_tokens_are_taken_in_unguided_scales_too(pipeline, mixed):
    forced = pipeline.generate(CLASSES, seeds=99, **MIXED, **SAMPLING, forced=mixed.tokens)
    np.testing.assert_array_equal(forced.tokens, mixed.tokens)
    np.testing.assert_array_equal(forced.images, mixed.images)
    assert (forced.drawn != mixed.drawn).any()


@pytest.mark.slow
def test_smoothed_images_lose_their_guidance_too(demo_smooth_bundle):
    asked = {"classes": [88, 3, 12], "seeds": 4, "cfg": 3.0, "smooth": [True, False, True], "cfg_scales": [4, 4, 5]}
    with Pipeline.load(demo_smooth_bundle, form="stepwise", threads=2) as pipeline:
        batch = pipeline.generate(**asked)
        for i in range(3):
            own = {"smooth": asked["smooth"][i], "cfg_scales": asked["cfg_scales"][i]}
            same(pipeline.generate(asked["classes"][i], seeds=4 + i, cfg=3.0, **own), batch, slice(i, i + 1))


def test_the_fused_form_says_that_it_cannot(demo_both_bundle):
    with Pipeline.load(demo_both_bundle, form="fused", threads=2, check="never") as fused:
        with pytest.raises(UsageError, match="cfg_scales needs the stepwise form: --form stepwise"):
            fused.generate([3, 4], cfg_scales=[0, 6])
        plain = fused.generate([3, 4], cfg=[1.0, 0.0])
        same(fused.generate([3, 4], cfg=[1.0, 0.0], cfg_scales=[7, 2]), plain)  # nothing that it could not do


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "cfg_scales must be 0 or more, got -1"),
        (1.5, "cfg_scales must be a whole number, got 1.5"),
        ([1, 2, 3], r"cfg_scales needs one value, or one per image \(2\)"),
        ("all", "cfg_scales must be a number, or one per image"),
    ],
)
def test_what_cannot_be_is_refused(value, message, pipeline):
    with pytest.raises(UsageError, match=message):
        pipeline.generate([1, 2], cfg_scales=value)


# --- what is computed -----------------------------------------------------------------------------------------------


@pytest.fixture
def backend():
    return RecordingBackend()


@pytest.fixture(params=["fp32", "fp16"])
def recorded(request, backend):
    bundle = Bundle.open(request.getfixturevalue(f"demo_{request.param}_bundle"), verify=False)
    return Pipeline(bundle, backend)


def rows_of_scales(backend):
    rows = [step.inputs["x"].shape[0] for step in backend.of("run", "step")]
    backend.log.clear()
    return rows


def test_rows_that_nothing_reads_are_not_computed(recorded, backend):
    for cfg, cfg_scales, rows in (
        (1.0, 0, [6] * 7),
        (1.0, 5, [6] * 5 + [3] * 2),
        (1.0, 99, [6] * 7),
        ([1.0, 0.0, 2.0], 1, [5] + [3] * 6),
        ([1.0, 0.0, 2.0], [2, 5, 6], [5, 5, 4, 4, 4, 4, 3]),
        (0.0, 3, [3] * 7),
    ):
        recorded.generate([3, 4, 5], cfg=cfg, cfg_scales=cfg_scales)
        assert rows_of_scales(backend) == rows


def test_guidance_is_0_from_there_on(recorded, backend):
    recorded.generate([3, 4], cfg=[3.0, 6.0], cfg_scales=[4, 0])
    steps = backend.of("run", "step")
    ramp = np.arange(7)[:, None] / 6 * np.float32([[3.0, 6.0]])
    ramp[4:, 0] = 0
    np.testing.assert_allclose(np.stack([step.inputs["guidance"].array for step in steps]), ramp, rtol=1e-6)
    assert [step.inputs["uncond_row"].array.tolist() for step in steps] == [[2, 3]] * 4 + [[0, 2]] * 3
    assert [step.inputs["image_row"].array.tolist() for step in steps] == [[0, 1, 0, 1]] * 4 + [[0, 1, 1]] * 3


def test_what_stays_moves_together(recorded, backend):
    """Keys, values and inputs of the rows that stay, from where they were; all of it in the memory of the others."""
    recorded.generate([3, 4, 5], cfg=1.0)
    steps = {step.inputs["x"].shape[1]: step for step in backend.of("run", "step")}
    allocated = len(backend.of("buffer"))
    last = backend.of("run", "step")[-1]
    lengths, offsets = recorded.config.scale_lengths, recorded.config.scale_offsets
    marks = {}
    for name, buffer in last.inputs.items():
        if name.startswith("past_"):
            buffer.array[...] = np.random.default_rng(len(name)).integers(100, size=buffer.array.shape)
            marks[name] = buffer.array.copy()
    x = steps[lengths[4]].inputs["x"].array
    x[...] = np.arange(6)[:, None, None]
    backend.log.clear()
    recorded.generate([3, 4, 5], cfg=1.0, cfg_scales=[4, 0, 4])
    stay = [0, 1, 2, 4]
    narrow = backend.of("run", "step")[4]
    for name, before in marks.items():
        buffer = narrow.inputs[name]
        assert buffer.address == last.inputs[name].address
        np.testing.assert_array_equal(buffer.array, before[: offsets[4], stay])
    assert narrow.inputs["x"].array[:, 0, 0].tolist() == stay
    assert narrow.inputs["x"].address == x.ctypes.data
    passing = last.inputs["past_k_0"].array
    made = backend.of("buffer")
    assert allocated > len(made) == 4 + 2, "AdaLN vectors of two graphs, three places, and where the rows pass through"
    assert max(event.size for event in made) <= passing.nbytes


def test_new_keys_and_values_are_written_right_behind_the_cached_ones(recorded, backend):
    config = recorded.config
    recorded.generate([3, 4], cfg_scales=3)
    item = 2 if recorded.bundle.precision == "fp16" else 4
    row = 2 * config.transformer.heads * config.transformer.head_dim * item
    for scale, step in list(enumerate(backend.of("run", "step")))[3:]:
        past, new = step.inputs["past_v_1"], step.outputs["new_v_1"]
        assert (past.shape[:2], new.shape[:2]) == ((config.scale_offsets[scale], 2), (config.scale_lengths[scale], 2))
        assert scale == config.num_scales - 1 or new.address == past.address + config.scale_offsets[scale] * row


def test_the_host_writes_before_the_first_scale_and_reads_after_the_last(recorded, backend):
    recorded.generate([3, 4], cfg_scales=[3, 5])
    kinds = [event.what for event in backend.log]
    first = next(k for k, event in enumerate(backend.log) if (event.what, event.graph) == ("run", "step"))
    assert set(kinds[first:]) == {"run", "gather", "read"}
    assert kinds[first:].index("read") > max(k for k, what in enumerate(kinds[first:]) if what == "gather")


def test_a_second_image_binds_and_allocates_nothing(recorded, backend):
    recorded.generate([3, 4], seeds=1, cfg_scales=[3, 5])
    for again in ({"cfg_scales": [3, 5]}, {"cfg_scales": [5, 3]}, {"cfg_scales": 0}, {"cfg_scales": [3, 5]}):
        backend.log.clear()
        recorded.generate([3, 4], seeds=2, **again)
        assert not backend.of("bind")
        assert not backend.of("buffer")


# --- rows of the transformer ----------------------------------------------------------------------------------------


def test_rows_that_stay_keep_their_order():
    rows = Rows.of(np.array([5, 6, 7]), np.float32([2, 0, 1]), 171)
    read = rows.read(np.array([False, True, True]))
    assert read.tolist() == [True, True, True, False, True]
    fewer = rows.only(np.flatnonzero(read))
    assert fewer.labels.tolist() == [5, 6, 7, 171]
    assert fewer.cond_row.tolist() == [0, 1, 2]
    assert fewer.uncond_row.tolist() == [0, 1, 3]
    assert fewer.image_row.tolist() == [0, 1, 2, 2]
    for array in vars(fewer).values():
        assert array.dtype == np.int64
