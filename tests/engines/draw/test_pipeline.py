import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support import demo_reference, need_torch

from engines.backends.onnxruntime.runner import OnnxRuntimeEngine
from engines.draw.pipeline import Pipeline
from engines.draw.request import make_request
from engines.errors import BackendError, BundleError, UsageError, VarExportError
from engines.files.again import command_of, settings_of
from engines.pictures.images import load_picture
from engines.spec.uniforms import uniforms
from tests.bundles import shared_bundle

CLASSES = [88, 3, 171, 100, 3, 12, 170]  # 171 is no class
SEEDS = [5, 0, 2**64 - 1, 7, 7, 123456789, 1]
MIXED = {
    "cfg": [1.0, 4.0, 2.0, 0.0, 1.5, 0.0, 3.0],
    "temperature": [1.0, 0.8, 1.2, 1.0, 0.5, 2.0, 1.0],
    "top_k": [20, 900, 1, 0, 5, 0, 300],
    "top_p": [0.4, 0.95, 0.0, 0.0, 1.0, 0.0, 0.5],
}


@pytest.fixture(scope="module")
def pipeline(demo_fp32_bundle):
    with Pipeline.load(demo_fp32_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def mixed(pipeline):
    """Seven images of different settings, drawn in one batch."""
    return pipeline.generate(CLASSES, seeds=SEEDS, **MIXED)


@pytest.fixture(scope="module")
def base(pipeline):
    return pipeline.generate([88, 3], seeds=[1, 2], cfg=[1.0, 0.0], top_k=100, top_p=0.9)


BASE = {"classes": [88, 3], "seeds": [1, 2], "cfg": [1.0, 0.0], "top_k": 100, "top_p": 0.9}


def pick(settings, indices):
    return {name: [values[i] for i in indices] for name, values in settings.items()}


def same(result, other, part=slice(None)):
    np.testing.assert_array_equal(result.tokens, other.tokens[part])
    np.testing.assert_array_equal(result.images, other.images[part])


@pytest.mark.parametrize(("most", "parts"), [(7, [7]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_a_cpu_decodes_as_many_images_at_once_as_pay(mixed, demo_fp32_bundle, monkeypatch, most, parts):
    monkeypatch.setattr("engines.backends.host_buffer._PIXELS", most * 64 * 64)
    bound, bind = [], OnnxRuntimeEngine.bind

    def seen(engine, inputs, outputs):
        bound.append((engine.name, *[outputs[name].shape[0] for name in ("image", "tokens") if name in outputs]))
        return bind(engine, inputs, outputs)

    monkeypatch.setattr(OnnxRuntimeEngine, "bind", seen)
    with Pipeline.load(demo_fp32_bundle, threads=2, check="never") as pipeline:
        same(pipeline.generate(CLASSES, seeds=SEEDS, **MIXED), mixed)
        assert [each[1] for each in bound if each[0] == "decode"] == 2 * parts  # the loop's two feature maps take turns
        bound.clear()
        pipeline.encode(mixed.images)
        assert [count for name, count in bound] == parts


# --- what an image depends on ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shapes_and_types(pipeline, mixed):
    config = pipeline.config
    assert mixed.images.shape == (7, 64, 64, 3)
    assert mixed.images.dtype == np.uint8
    assert mixed.tokens.shape == (7, config.num_tokens)
    assert mixed.tokens.dtype == np.int64
    assert 0 <= mixed.tokens.min() <= mixed.tokens.max() < config.vae.vocab_size
    assert mixed.classes.tolist() == CLASSES
    assert mixed.seeds.tolist() == SEEDS
    assert len(mixed.timings.scales) == config.num_scales
    assert mixed.timings.total >= sum(mixed.timings.scales) + mixed.timings.decode > 0
    np.testing.assert_array_equal(mixed.drawn, mixed.tokens)


@pytest.mark.parametrize("i", range(7))
def test_an_image_is_the_same_alone_and_in_any_batch(i, pipeline, mixed):
    same(pipeline.generate(CLASSES[i], seeds=SEEDS[i], **pick(MIXED, [i])), mixed, slice(i, i + 1))


def test_order_does_not_matter(pipeline, mixed):
    order = [4, 0, 6, 2, 5, 1, 3]
    again = pipeline.generate([CLASSES[i] for i in order], seeds=[SEEDS[i] for i in order], **pick(MIXED, order))
    same(again, mixed, order)


@pytest.mark.slow
@pytest.mark.parametrize("max_batch", [1, 3, 7])
def test_batches_that_are_split_are_the_same(max_batch, demo_fp32_bundle, mixed):
    with Pipeline.load(demo_fp32_bundle, threads=2, max_batch=max_batch) as pipeline:
        same(pipeline.generate(CLASSES, seeds=SEEDS, **MIXED), mixed)


def test_the_number_of_threads_does_not_matter(demo_fp32_bundle, mixed):
    with Pipeline.load(demo_fp32_bundle, threads=1) as pipeline:
        np.testing.assert_array_equal(pipeline.generate(CLASSES, seeds=SEEDS, **MIXED).tokens, mixed.tokens)


def test_a_second_run_is_the_same(pipeline, mixed):
    same(pipeline.generate(CLASSES, seeds=SEEDS, **MIXED), mixed)


@pytest.mark.slow
def test_one_seed_counts_up(pipeline):
    counted = pipeline.generate([3, 3, 3], seeds=41, top_p=0)
    assert counted.seeds.tolist() == [41, 42, 43]
    same(counted, pipeline.generate([3, 3, 3], seeds=[41, 42, 43], top_p=0))
    same(pipeline.generate(3, seeds=42, top_p=0), counted, slice(1, 2))
    assert (counted.tokens[0] != counted.tokens[1]).any()
    np.testing.assert_array_equal(pipeline.generate([3]).seeds, [0])


def test_a_setting_for_all_is_that_setting_for_each(pipeline):
    shared = pipeline.generate([3, 4], cfg=2.0, temperature=0.9, top_k=50, top_p=0.5)
    same(pipeline.generate([3, 4], cfg=[2.0] * 2, temperature=[0.9] * 2, top_k=[50] * 2, top_p=np.full(2, 0.5)), shared)


def test_the_bundle_recommends_what_is_not_given(pipeline):
    recommended = pipeline.sampling
    assert (recommended.cfg, recommended.top_k, recommended.top_p, recommended.temperature) == (1.0, 20, 0.5, 1.0)
    same(pipeline.generate([88, 3]), pipeline.generate([88, 3], cfg=1.0, top_k=20, top_p=0.5, temperature=1.0))


@pytest.mark.slow
def test_each_setting_has_an_effect(pipeline):
    plain = pipeline.generate(88, cfg=1.0, top_k=100, top_p=0.9).tokens
    for change in ({"cfg": 4.0}, {"cfg": 0.0}, {"top_k": 3}, {"top_p": 0.1}, {"temperature": 0.1}):
        assert (pipeline.generate(88, **{"cfg": 1.0, "top_k": 100, "top_p": 0.9} | change).tokens != plain).any(), (
            change
        )


@pytest.mark.slow
def test_classes_may_be_names_numbers_or_arrays(pipeline):
    label = pipeline.labels[88]
    wanted = pipeline.generate([88])
    for classes in (88, label, [label], label.upper(), (88,), np.array([88]), np.int64(88)):
        same(pipeline.generate(classes), wanted)
    same(pipeline.generate("none"), pipeline.generate(171))


def test_no_class_is_the_same_with_any_guidance(pipeline):
    same(pipeline.generate(171, cfg=4.0), pipeline.generate(171, cfg=0.0))


@pytest.mark.slow
def test_the_reference_draws_the_same(pipeline, mixed):
    """FP32 on the CPU: another order of summation, and the same tokens."""
    torch, some = need_torch(), [0, 1, 2, 3]
    settings = {name: torch.tensor(values) for name, values in pick(MIXED, some).items()}
    table = torch.from_numpy(uniforms([SEEDS[i] for i in some], pipeline.config.num_tokens))
    drawn = demo_reference().generate(torch.tensor([CLASSES[i] for i in some]), table, **settings, max_top_k=900)
    identical = (drawn.tokens.numpy() == mixed.tokens[some]).all(axis=1)
    assert identical.sum() >= 3, "a draw at the very edge of the CDF may flip one image on another CPU"
    off_by = np.abs(drawn.image.numpy()[identical].astype(int) - mixed.images[some][identical])
    assert off_by.max() <= 2


# --- forced tokens --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_forced_tokens_are_taken_everywhere(pipeline):
    tokens = np.random.RandomState(0).randint(0, 2048, (2, 155))
    result = pipeline.generate(**BASE, forced=tokens)
    np.testing.assert_array_equal(result.tokens, tokens)
    off_by = np.abs(result.images.astype(int) - pipeline.decode(tokens))
    assert off_by.max() <= 1


@pytest.mark.slow
def test_a_mask_leaves_the_other_places_to_the_sampler(pipeline, base):
    """Forcing what would have been drawn anyway changes nothing, wherever it is forced."""
    mask = np.random.RandomState(1).random_sample((2, 155)) < 0.5
    result = pipeline.generate(**BASE, forced=(base.tokens, mask))
    same(result, base)
    np.testing.assert_array_equal(result.drawn, base.drawn)


def test_other_tokens_at_masked_places_change_only_what_follows(pipeline, base):
    config = pipeline.config
    scale = 4
    here = config.scale_slice(scale)
    mask = np.zeros((2, 155), bool)
    mask[:, here.start : here.start + 6] = True
    tokens = np.where(mask, (base.tokens + 1) % 2048, -1)  # what is not masked does not matter
    result = pipeline.generate(**BASE, forced=(tokens, mask))
    np.testing.assert_array_equal(result.tokens[mask], tokens[mask])
    np.testing.assert_array_equal(result.tokens[:, : here.start], base.tokens[:, : here.start])
    # Tokens of one scale do not see each other, so the rest of the scale is drawn as before.
    np.testing.assert_array_equal(result.drawn[:, here], base.drawn[:, here])
    assert (result.tokens[:, here.stop :] != base.tokens[:, here.stop :]).any()


@pytest.mark.slow
def test_forced_images_may_stand_beside_free_ones(pipeline, base):
    mask = np.array([[True], [False]])
    tokens = np.random.RandomState(2).randint(0, 2048, 155)
    result = pipeline.generate(**BASE, forced=(tokens, mask))
    np.testing.assert_array_equal(result.tokens[0], tokens)
    np.testing.assert_array_equal(result.tokens[1], base.tokens[1])


@pytest.mark.slow
def test_nothing_stays_forced_afterwards(pipeline, base):
    pipeline.generate(**BASE, forced=np.zeros((2, 155), int))
    same(pipeline.generate(**BASE), base)


# --- previews, logits -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_previews_end_in_the_image_of_generate(pipeline, base):
    previews = list(pipeline.stream(**BASE))
    assert [preview.scale for preview in previews] == list(range(7))
    assert [preview.final for preview in previews] == [False] * 6 + [True]
    np.testing.assert_array_equal(previews[-1].images, base.images)
    np.testing.assert_array_equal(previews[-1].tokens, base.tokens)


@pytest.mark.slow
def test_previews_show_the_tokens_so_far(pipeline, base):
    torch, config, quantizer = need_torch(), pipeline.config, demo_reference().vae.quantize
    f_hat = torch.zeros(2, 16, 8, 8)
    for preview in pipeline.stream(**BASE):
        tokens = preview.tokens
        np.testing.assert_array_equal(tokens, base.tokens[:, : tokens.shape[1]])
        assert tokens.shape[1] == config.scale_slice(preview.scale).stop
        with torch.inference_mode():
            f_hat = f_hat + quantizer.contribution(
                torch.from_numpy(tokens[:, config.scale_slice(preview.scale)]), preview.scale
            )
        off_by = np.abs(preview.images.astype(int) - pipeline.decode_features(f_hat.numpy()))
        assert off_by.max() <= 1, f"scale {preview.scale}"


@pytest.mark.slow
def test_previews_keep_their_content_when_the_next_comes(pipeline):
    stream = pipeline.stream(88)
    first = next(stream)
    images, tokens = first.images.copy(), first.tokens.copy()
    list(stream)
    np.testing.assert_array_equal(first.images, images)
    np.testing.assert_array_equal(first.tokens, tokens)


@pytest.mark.slow
def test_preview_scales_choose(pipeline, base):
    previews = list(pipeline.stream(**BASE, preview_scales=[3, 0, 3]))
    assert [preview.scale for preview in previews] == [0, 3, 6]
    assert [preview.scale for preview in pipeline.stream(88, preview_scales=[])] == [6]
    np.testing.assert_array_equal(previews[-1].tokens, base.tokens)


@pytest.mark.parametrize("scales", [[7], [-1], [0, 99]])
def test_preview_scales_out_of_range_are_refused(scales, pipeline):
    with pytest.raises(UsageError, match="0 to 6"):
        pipeline.stream(88, preview_scales=scales)


def test_a_stream_is_refused_when_it_is_asked_for(pipeline):
    """Not when its first image is."""
    with pytest.raises(UsageError, match="top_p"):
        pipeline.stream(3, top_p=2)


@pytest.mark.slow
def test_a_stream_of_more_than_a_batch_is_drawn_batch_after_batch(pipeline):
    wanted = pipeline.generate([88, 3, 171] * 3, seeds=5)
    previews = list(pipeline.stream([88, 3, 171] * 3, seeds=5, preview_scales=[2]))
    assert [(preview.scale, preview.final, preview.which.tolist()) for preview in previews] == [
        (2, False, list(range(8))),
        (6, True, list(range(8))),
        (2, False, [8]),
        (6, True, [8]),
    ]
    finals = [preview for preview in previews if preview.final]
    np.testing.assert_array_equal(np.concatenate([preview.tokens for preview in finals]), wanted.tokens)
    assert all(preview.timings is not None for preview in finals)


@pytest.mark.slow
def test_one_class_stands_for_as_many_as_there_are_seeds(pipeline):
    wanted = pipeline.generate(["parrot"] * 3, seeds=[1, 9, 2], cfg=[0, 1, 2])
    same(pipeline.generate("parrot", seeds=[1, 9, 2], cfg=[0, 1, 2]), wanted)
    same(pipeline.generate(["parrot"], seeds=np.array([1, 9, 2]), cfg=[0, 1, 2]), wanted)
    assert repr(wanted).startswith("<Result: 3 images of 64 x 64, classes [88, 88, 88], seeds [1, 9, 2], ")
    pictures = wanted.pil()
    assert [picture.size for picture in pictures] == [(64, 64)] * 3
    np.testing.assert_array_equal(np.asarray(pictures[2]), wanted.images[2])
    *_, last = pipeline.stream("parrot", seeds=range(9))
    assert repr(last) == "<Preview: 1 image of 64 x 64 after scale 6, final>"


@pytest.mark.slow
def test_other_images_may_be_drawn_while_a_stream_waits(pipeline, base):
    waiting = pipeline.stream(**BASE)
    other = pipeline.stream(**BASE)
    got = [next(waiting)]
    same(pipeline.generate(**BASE), base)
    next(other)
    got += [next(waiting), next(waiting)]
    same(pipeline.generate(CLASSES[0], seeds=SEEDS[0]), pipeline.generate(CLASSES[0], seeds=SEEDS[0]))
    list(other)
    got += list(waiting)
    np.testing.assert_array_equal(got[-1].images, base.images)
    np.testing.assert_array_equal(got[-1].tokens, base.tokens)


@pytest.mark.slow
def test_logits_of_each_scale_are_shown(pipeline):
    seen = []

    def look(view):
        logits = view.read_logits()
        count = view.images.stop - view.images.start
        assert logits.shape == (count, pipeline.config.scale_lengths[view.scale], 2048)
        assert logits.dtype == np.float32
        seen.append((view.scale, view.images, logits.argmax(-1)))

    result = pipeline.generate([3] * 10, top_k=1, on_scale=look)
    assert [(scale, images.start, images.stop) for scale, images, _ in seen] == [
        (scale, start, stop) for start, stop in ((0, 8), (8, 10)) for scale in range(7)
    ]
    for scale, images, best in seen:
        np.testing.assert_array_equal(best, result.tokens[images, pipeline.config.scale_slice(scale)])


@pytest.mark.slow
def test_an_exception_of_the_caller_does_no_harm(pipeline, base):
    def fail(view):
        if view.scale == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pipeline.generate(**BASE, on_scale=fail)
    same(pipeline.generate(**BASE), base)


# --- images and tokens ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_decode_gives_the_image_of_the_tokens(pipeline, mixed):
    images = pipeline.decode(mixed.tokens)
    assert np.abs(images.astype(int) - mixed.images).max() <= 1
    same_type = pipeline.decode(mixed.tokens.astype(np.int32))
    np.testing.assert_array_equal(same_type, images)


@pytest.mark.slow
def test_encode_gives_tokens_that_show_the_image(pipeline, mixed):
    tokens = pipeline.encode(mixed.images)
    assert tokens.shape == (7, 155)
    assert tokens.dtype == np.int64
    again = pipeline.reconstruct(mixed.images)
    np.testing.assert_array_equal(again, pipeline.decode(tokens))
    error = np.mean((again.astype(float) - mixed.images) ** 2)
    assert 10 * np.log10(255**2 / error) > 20


@pytest.mark.slow
def test_more_images_than_a_batch_are_split(pipeline, mixed):
    many = np.concatenate([mixed.images] * 3)
    tokens = pipeline.encode(many)
    np.testing.assert_array_equal(tokens, np.concatenate([pipeline.encode(mixed.images)] * 3))
    assert pipeline.decode(tokens).shape == many.shape


def test_a_view_of_an_array_is_as_good_as_a_copy(pipeline, mixed):
    mirrored = mixed.images[:, :, ::-1]
    np.testing.assert_array_equal(pipeline.encode(mirrored), pipeline.encode(mirrored.copy()))


@pytest.mark.slow
def test_pictures_of_any_kind_and_size_are_encoded(pipeline, mixed, tmp_path):
    first, wide = mixed.images[0], np.pad(mixed.images[1], ((0, 0), (40, 40), (0, 0)))
    wanted = pipeline.encode(mixed.images[:2])
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for one in (first, Image.fromarray(first), [first], first[None]):
        np.testing.assert_array_equal(pipeline.encode(one), wanted[:1])
    np.testing.assert_array_equal(pipeline.encode([Image.fromarray(first), tmp_path / "wide.png"]), wanted)
    np.testing.assert_array_equal(pipeline.encode([str(tmp_path / "wide.png"), first]), wanted[::-1])
    assert pipeline.reconstruct(wide, fit="pad").shape == (1, 64, 64, 3)
    assert (pipeline.encode(wide, fit="stretch") != wanted[1:]).any()
    with pytest.raises(UsageError, match="fit must be crop, stretch, pad, got 'sideways'"):
        pipeline.encode(wide, fit="sideways")


@pytest.mark.slow
def test_a_result_saves_itself(pipeline, tmp_path):
    drawn = pipeline.generate(["parrot", "none"], seeds=[3, 4], cfg=[2, 0])
    paths = drawn.save(tmp_path / "new")
    assert [path.name for path in paths] == ["00000-parrot-3.png", "00001-none-4.png"]
    for path, image in zip(paths, drawn.images, strict=True):
        np.testing.assert_array_equal(load_picture(path), image)
    assert command_of(settings_of(paths[1])).startswith("var-run --class none --seed 4 --cfg 0")
    before = paths[0].stat().st_mtime_ns
    assert drawn.save(tmp_path / "new") == paths  # the same again
    other = pipeline.generate(["parrot", "none"], seeds=[3, 4])
    with pytest.raises(UsageError, match=r"00000-parrot-3.png exists and is another picture.*overwrite=True"):
        other.save(tmp_path / "new")
    assert paths[0].stat().st_mtime_ns == before
    half = pipeline.generate(["parrot", "none"], seeds=[3, 4], cfg=[2, 0], forced=other.tokens)
    with pytest.raises(UsageError, match="is another picture"):  # asked for alike, but for the tokens that were given
        half.save(tmp_path / "new")
    assert command_of(settings_of(half.save(tmp_path / "half")[0])) is None
    assert [path.name for path in drawn.save(tmp_path / "{seed:04d}.jpg")] == ["0003.jpg", "0004.jpg"]
    other.save(tmp_path / "new", overwrite=True)
    np.testing.assert_array_equal(load_picture(paths[0]), other.images[0])
    assert [path.name for path in drawn.save(tmp_path / "{class}-{seed}.webp")] == ["88-3.webp", "none-4.webp"]
    with pytest.raises(UsageError, match="is one file for several of 2 images"):
        drawn.save(tmp_path / "a.png")
    for pattern in ("{what}.png", "{}.png", "{class:d}.png", "{seed.x}.png", "{.png"):
        with pytest.raises(UsageError, match=r"is no pattern: the fields are \{index\}"):
            drawn.save(tmp_path / pattern)
    with pytest.raises(UsageError, match="bmp"):
        pipeline.generate(88).save(tmp_path / "a.bmp")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "uint8"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"uint8 \(h, w, 3\), or several, got uint8 \(3, 64, 64\)"),
        (np.zeros((64, 64), np.uint8), r"got uint8 \(64, 64\)"),
        (np.zeros((0, 64, 64, 3), np.uint8), "no image"),
        ([], "no image"),
        (np.zeros((2, 0, 64, 3), np.uint8), "got uint8"),
        ([np.zeros((64, 64, 3), np.uint8), 5], "images must be uint8"),
        ("absent.png", "cannot read absent.png"),
    ],
)
def test_images_that_cannot_be_encoded_are_refused(images, words, pipeline):
    for call in (pipeline.encode, pipeline.reconstruct):
        with pytest.raises(UsageError, match=words):
            call(images)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.zeros((1, 154), int), "155"),
        (np.zeros(155, int), "155"),
        (np.zeros((1, 155)), "integers"),
        (np.zeros((1, 155), bool), "integers"),
        (np.full((1, 155), 2048), "0 to 2047"),
        (np.full((1, 155), -1), "0 to 2047"),
        (np.zeros((0, 155), int), "no image"),
    ],
)
def test_tokens_that_cannot_be_decoded_are_refused(tokens, words, pipeline):
    with pytest.raises(UsageError, match=words):
        pipeline.decode(tokens)


@pytest.mark.parametrize("shape", [(1, 16, 8, 7), (1, 8, 8, 8), (16, 8, 8)])
def test_feature_maps_of_another_shape_are_refused(shape, pipeline):
    with pytest.raises(UsageError, match=r"\(B, 16, 8, 8\)"):
        pipeline.decode_features(np.zeros(shape, np.float32))


# --- life of a pipeline ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_closed_pipeline_says_so(demo_fp32_bundle, mixed):
    with Pipeline.load(demo_fp32_bundle, threads=1) as pipeline:
        pipeline.generate(3)
    pipeline.close()
    uses = {
        "generate": lambda: pipeline.generate(3),
        "stream": lambda: list(pipeline.stream(3)),
        "encode": lambda: pipeline.encode(mixed.images),
        "decode": lambda: pipeline.decode(mixed.tokens),
        "reconstruct": lambda: pipeline.reconstruct(mixed.images),
    }
    for use in uses.values():
        with pytest.raises(UsageError, match="closed"):
            use()


def test_closing_under_a_waiting_stream_ends_it_cleanly(demo_fp32_bundle):
    pipeline = Pipeline.load(demo_fp32_bundle, threads=1)
    stream = pipeline.stream(3)
    next(stream)
    pipeline.close()
    try:
        assert list(stream)[-1].final
    except VarExportError as error:
        assert "closed" in str(error)  # noqa: PT017  either is fine


@pytest.mark.slow
def test_several_threads_may_use_one_pipeline(pipeline):
    jobs = [([c], {"seeds": s, "cfg": g}) for c, s, g in zip(range(12), range(12), [0.0, 1.0, 4.0] * 4, strict=True)]
    jobs += [([c, c + 1], {"seeds": c, "top_k": 1 + c}) for c in range(60, 64)]
    alone = [pipeline.generate(classes, **options).tokens for classes, options in jobs]
    start = threading.Barrier(4)

    def run(job):
        if job < 4:
            start.wait(timeout=30)
        classes, options = jobs[job]
        return pipeline.generate(classes, **options).tokens

    with ThreadPoolExecutor(4) as pool:
        for wanted, got in zip(alone, pool.map(run, range(len(jobs))), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_threads_may_mix_all_verbs(pipeline, base, mixed):
    tokens = pipeline.encode(mixed.images)
    verbs = [
        lambda: np.testing.assert_array_equal(pipeline.encode(mixed.images), tokens),
        lambda: np.testing.assert_array_equal(list(pipeline.stream(**BASE))[-1].tokens, base.tokens),
        lambda: same(pipeline.generate(**BASE), base),
        lambda: pipeline.decode(tokens),
    ]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(verb) for verb in verbs * 2]:
            done.result()


@pytest.mark.slow
def test_two_pipelines_do_not_meet(demo_fp32_bundle, pipeline, base):
    with Pipeline.load(demo_fp32_bundle, threads=1) as other:
        waiting = other.stream(**BASE)
        next(waiting)
        same(pipeline.generate(**BASE), base)
        np.testing.assert_array_equal(list(waiting)[-1].tokens, base.tokens)
    same(pipeline.generate(**BASE), base)


def test_the_runtime_describes_itself(pipeline):
    facts = pipeline.describe_runtime()
    assert facts["backend"] == "onnxruntime"
    assert facts["provider"] == "CPUExecutionProvider"
    assert facts["form"] == "stepwise"
    assert facts["threads"] == 2


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "CPU", ""])
def test_a_provider_that_is_not_there_is_refused(provider, demo_fp32_bundle):
    with pytest.raises(BackendError, match="provider"):
        Pipeline.load(demo_fp32_bundle, provider=provider)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "abacus"}, BackendError, "onnxruntime"),
        ({"threads": 0}, BackendError, "1 or more"),
        ({"max_batch": 0}, UsageError, "1 or more"),
        ({"form": "fused"}, UsageError, "--form both"),
        ({"form": "sideways"}, UsageError, "stepwise"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, words, demo_fp32_bundle):
    with pytest.raises(error, match=words):
        Pipeline.load(demo_fp32_bundle, **options)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="there is no bundle"):
        Pipeline.load(tmp_path / "nothing")


# --- requests that cannot be ----------------------------------------------------------------------------------------

TOKENS = np.zeros((1, 155), int)
REFUSED = [
    ({"classes": []}, "at least one"),
    ({"classes": [172]}, "0 to 170"),
    ({"classes": [-1]}, "0"),
    ({"classes": "a dragon that nobody drew"}, "var-run classes"),
    ({"classes": "0-3"}, "4 classes where one is needed"),
    ({"classes": [1.5]}, "class"),
    ({"classes": [1, 2, 3], "seeds": [1, 2]}, "one seed per image"),
    ({"seeds": []}, "one seed per image"),
    ({"seeds": []}, "one seed per image"),
    ({"seeds": -1}, r"0 to 2\^64 - 1"),
    ({"seeds": 2**64}, r"0 to 2\^64 - 1"),
    ({"classes": [3, 3], "seeds": 2**64 - 1}, r"0 to 2\^64 - 1"),
    ({"seeds": 1.5}, "seed"),
    ({"seeds": [1.5]}, "seed"),
    ({"seeds": "one"}, "seed"),
    ({"cfg": -0.5}, "cfg must lie in 0 to 1000"),
    ({"cfg": 1e39}, "cfg must lie in 0 to 1000"),
    ({"cfg": float("nan")}, "cfg must be finite"),
    ({"cfg": float("inf")}, "cfg must be finite"),
    ({"cfg": 1e39}, "cfg"),
    ({"cfg": "strong"}, "cfg must be a number"),
    ({"cfg": [1.0, 2.0]}, r"cfg needs one value, or one per image \(1\)"),
    ({"cfg": [[1.0]]}, "cfg needs one value"),
    ({"cfg": []}, "cfg needs one value"),
    ({"temperature": 0}, "top_k 1"),
    ({"temperature": -1.0}, "use top_k 1"),
    ({"temperature": 1e-46}, "use top_k 1"),
    ({"temperature": float("nan")}, "finite"),
    ({"top_p": -0.1}, "0 to 1"),
    ({"top_p": 1.1}, "0 to 1"),
    ({"top_k": -1}, "0 or more"),
    ({"top_k": 1.5}, "whole number"),
    ({"top_k": 901}, "--max-top-k 901"),
    ({"top_k": 5000}, "--max-top-k 2048"),
    ({"top_k": 2**63}, "top_k"),
    ({"top_k": 0, "top_p": 0.5}, "--max-top-k 2048"),
    ({"forced": TOKENS[:, 1:]}, r"\(1, 155\)"),
    ({"forced": np.zeros((2, 155), int)}, r"\(1, 155\)"),
    ({"forced": TOKENS + 2048}, "0 to 2047"),
    ({"forced": TOKENS - 1}, "0 to 2047"),
    ({"forced": TOKENS + 0.5}, "integers"),
    ({"forced": (TOKENS, TOKENS)}, "mask.*must be bool"),
    ({"forced": (TOKENS, np.ones((1, 7), bool))}, r"\(1, 155\)"),
    ({"forced": (TOKENS,)}, "mask"),
    ({"forced": "everything"}, "integers"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), REFUSED, ids=lambda part: "-".join(part) if isinstance(part, dict) else ""
)
def test_a_request_that_cannot_be_is_refused_with_the_remedy(arguments, words, pipeline):
    for verb in (pipeline.generate, pipeline.stream):
        with pytest.raises(UsageError, match=words) as caught:
            verb(**{"classes": [3]} | arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_all_of_the_vocabulary_is_never_cut_to_the_sorted_list(pipeline):
    """top_p 1 keeps everything, like 0; the bundle sorts 900 of 2048 tokens only."""
    hot = {"temperature": 1e4, "top_k": 0}  # almost uniform over 2048 tokens
    everything = pipeline.generate([3] * 8, **hot, top_p=0.0).tokens
    try:
        nucleus_of_all = pipeline.generate([3] * 8, **hot, top_p=1.0)
    except UsageError as error:
        assert "top_p" in str(error)  # noqa: PT017  refusing is right, too
    else:
        assert len(np.unique(nucleus_of_all.tokens)) > 0.9 * len(np.unique(everything))
        seen = []
        pipeline.generate([3] * 8, **hot, top_p=1.0, on_scale=lambda view: seen.append(view.read_logits()))
        ranks = np.concatenate([(-x).argsort(-1).argsort(-1) for x in seen], axis=1)
        drawn = np.take_along_axis(ranks, nucleus_of_all.tokens[..., None], -1)
        assert (drawn >= 900).any()


@pytest.mark.slow
def test_a_temperature_near_0_is_greedy_or_refused(pipeline):
    greedy = pipeline.generate(88, top_k=1).tokens
    for temperature in (1e-3, 1e-30, 1e-38, 1e-40, 1e-44):
        try:
            tokens = pipeline.generate(88, temperature=temperature).tokens
        except UsageError as error:
            assert "temperature" in str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(tokens, greedy, f"{temperature}")


def test_huge_guidance_stays_finite_or_is_refused(pipeline):
    for cfg in (1e3, 1e10, 1e30):
        seen = []
        try:
            pipeline.generate(88, cfg=cfg, on_scale=lambda view, seen=seen: seen.append(view.read_logits()))
        except UsageError as error:
            assert "cfg" in str(error)  # noqa: PT017
        assert all(np.isfinite(logits).all() for logits in seen), f"{cfg}"


def test_requests_can_be_made_without_labels(pipeline):
    manifest = dataclasses.replace(pipeline.bundle.manifest, labels=None, max_top_k=10)
    request = make_request(manifest, [1, 2], seeds=0)
    assert request.sampling["top_k"].tolist() == [10, 10], "the recommended 20, cut to what the bundle sorts"
    with pytest.raises(UsageError, match="no labels"):
        make_request(manifest, "parrot", seeds=0)


# --- the fused form -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both():
    """The two forms of one tiny random model."""
    path = shared_bundle("tiny-fp32")
    with (
        Pipeline.load(path, form="stepwise", threads=1) as stepwise,
        Pipeline.load(path, form="fused", threads=1) as fused,
    ):
        yield stepwise, fused


FUSED = {
    "classes": [0, 3, 5, 1, 1],
    "seeds": [4, 5, 6, 7, 8],
    "cfg": [2.0, 0.0, 3.0, 0.5, 4.0],
    "top_k": [0, 5, 64, 1, 20],
    "top_p": [0.0, 0.0, 0.7, 0.0, 0.9],
    "temperature": [1.0, 0.5, 1.0, 1.0, 2.0],
}


@pytest.mark.slow
def test_fused_form_draws_what_the_stepwise_form_draws(both):
    stepwise, fused = (pipeline.generate(**FUSED) for pipeline in both)
    np.testing.assert_array_equal(fused.tokens, stepwise.tokens)
    np.testing.assert_array_equal(fused.drawn, stepwise.drawn)
    assert np.abs(fused.images.astype(int) - stepwise.images).max() <= 1
    assert len(fused.timings.scales) == 1


def test_fused_form_takes_forced_tokens(both):
    tokens = np.random.RandomState(0).randint(0, 64, (5, 30))
    mask = np.random.RandomState(1).random_sample((5, 30)) < 0.5
    stepwise, fused = (pipeline.generate(**FUSED, forced=(tokens, mask)) for pipeline in both)
    np.testing.assert_array_equal(fused.tokens[mask], tokens[mask])
    np.testing.assert_array_equal(fused.tokens, stepwise.tokens)
    np.testing.assert_array_equal(fused.drawn, stepwise.drawn)


def test_fused_form_is_the_same_in_any_batch(both):
    _, fused = both
    together = fused.generate(**FUSED)
    for i in range(5):
        same(fused.generate(**pick(FUSED, [i])), together, slice(i, i + 1))


def test_fused_form_encodes_and_decodes_too(both):
    stepwise, fused = both
    images = np.random.RandomState(2).randint(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fused.encode(images), stepwise.encode(images))
    np.testing.assert_array_equal(fused.reconstruct(images), stepwise.reconstruct(images))


def test_fused_form_says_what_it_cannot_show(both):
    _, fused = both
    with pytest.raises(UsageError, match="form='stepwise'"):
        fused.stream(0)
    with pytest.raises(UsageError, match="form='stepwise'"):
        fused.generate(0, on_scale=lambda view: None)
