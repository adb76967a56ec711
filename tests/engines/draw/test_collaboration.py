"""Two models draw one image: the tokens of each are what it draws alone after the other's."""

import dataclasses
import json
import shlex
from functools import partial

import numpy as np
import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.cli.execute import ImageRun
from engines.cli.run import main
from engines.draw.collaboration import Collaboration, check_sizes, joint_manifest
from engines.draw.pipeline import Pipeline
from engines.draw.request import make_request
from engines.errors import CancelledError, UsageError
from engines.files.again import command_of, settings_of
from engines.pictures.images import load_picture
from engines.spec.choices import TOGETHER
from tests.bundles import shared_bundle

CLASSES, SEEDS, CFG = [88, 171, 5], [1, 2, 3], [2.0, 1.0, 0.0]
FROM = 4


def loads(path, **options):
    return partial(Pipeline.load, path, threads=1, check="never", **options)


@pytest.fixture(scope="module")
def alone(demo_fp32_bundle):
    with Pipeline.load(demo_fp32_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def pair(demo_fp32_bundle, demo_int8_bundle):
    """The demo model, whose fine scales are drawn in INT8: by other numbers, so with other tokens."""
    drafter, refiner = loads(demo_fp32_bundle), loads(demo_int8_bundle, form="stepwise")
    with Collaboration(drafter, refiner, refine_from=FROM) as both:
        yield both


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("refine_from", [1, 6])
def test_a_model_refines_itself(alone, demo_fp32_bundle, refine_from, sequential):
    load = loads(demo_fp32_bundle, max_batch=2)
    with Collaboration(load, load, refine_from=refine_from, sequential=sequential) as both:
        assert both.max_batch == (TOGETHER if sequential else 2)
        ours, theirs = (source.generate(CLASSES, seeds=SEEDS, cfg=CFG) for source in (both, alone))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.images, theirs.images)


@pytest.mark.parametrize("cfg_scales", [2, 4, [5, 0, 1]])
def test_guidance_may_end_in_either(alone, demo_fp32_bundle, cfg_scales):
    load = loads(demo_fp32_bundle)
    asked = {"classes": [88, 3, 5], "seeds": SEEDS, "cfg": 3.0, "cfg_scales": cfg_scales}
    with Collaboration(load, load, refine_from=4) as both:
        ours, theirs = both.generate(**asked), alone.generate(**asked)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.images, theirs.images)


def test_each_scale_is_of_the_model_that_draws_it(alone, pair, demo_int8_bundle):
    ours = pair.generate(CLASSES, seeds=SEEDS, cfg=CFG)
    theirs = alone.generate(CLASSES, seeds=SEEDS, cfg=CFG)
    start = alone.config.scale_offsets[FROM]
    np.testing.assert_array_equal(ours.tokens[:, :start], theirs.tokens[:, :start])
    mask = np.arange(alone.config.num_tokens) < start
    with loads(demo_int8_bundle, form="stepwise")() as refiner:
        wanted = refiner.generate(CLASSES, seeds=SEEDS, cfg=CFG, forced=(theirs.tokens, mask))
        np.testing.assert_array_equal(ours.images, wanted.images)
        assert (ours.tokens != refiner.generate(CLASSES, seeds=SEEDS, cfg=CFG).tokens).any()
    assert (ours.tokens != theirs.tokens).any()
    assert len(ours.timings.scales) == alone.config.num_scales
    assert ours.timings.total > sum(ours.timings.scales)
    last = list(pair.stream(CLASSES, seeds=SEEDS, cfg=CFG, preview_scales=[2, 5]))
    assert [preview.scale for preview in last] == [2, 5, 6]
    np.testing.assert_array_equal(last[-1].images, ours.images)


def test_what_is_kept_of_a_picture_is_kept_by_both(alone, pair, demo_int8_bundle):
    picture = alone.generate(3, seeds=1).images
    redrawn = np.arange(8)[None, :, None].repeat(8, 2) >= 4
    kept = pair.keeping(picture, redrawn)
    tokens, where = kept["forced"]
    drawn = pair.generate([88], seeds=[1], cfg=[2.0], **kept)
    np.testing.assert_array_equal(drawn.tokens[where], tokens[where])
    assert (drawn.tokens != tokens).any()
    np.testing.assert_array_equal(tokens, alone.encode(picture))
    with loads(demo_int8_bundle, form="stepwise")() as refiner:
        np.testing.assert_array_equal(pair.reconstruct(picture), refiner.reconstruct(picture))


def test_a_picture_says_who_drew_it(pair):
    drawn = pair.generate(88, cfg=2.0)
    (text,) = drawn.texts
    assert (text["precision"], text["refiner_precision"], text["refine_from"]) == ("fp32", "int8", str(FROM))
    assert "forced" not in text


def test_who_stops_is_asked_once_a_scale(pair):
    asked = []
    pair.generate(CLASSES, seeds=SEEDS, stop=lambda: asked.append(0))
    assert len(asked) == pair.bundle.config.num_scales
    for most in (2, 5):  # while the drafter draws, and the refiner
        asked.clear()
        with pytest.raises(CancelledError):
            pair.generate(CLASSES, seeds=SEEDS, stop=lambda most=most: asked.append(0) or len(asked) > most)
        assert len(asked) == most + 1


def test_sequential_models_are_never_both_in_memory(demo_fp32_bundle):
    held, most = [], []

    class Counted(Pipeline):
        def close(self):
            held.remove(self)
            super().close()

    def load(name):
        pipeline = Counted.load(demo_fp32_bundle, threads=1, check="never")
        held.append(pipeline)
        most.append((name, len(held)))
        return pipeline

    with Collaboration(partial(load, "large"), partial(load, "small"), refine_from=3, sequential=True) as both:
        both.describe_runtime()
        for _ in range(2):
            both.generate(CLASSES, seeds=SEEDS)
    assert most == [("large", 1), ("small", 1)] * 2
    assert held == []
    with Collaboration(partial(load, "large"), partial(load, "small"), refine_from=3):
        assert len(held) == 2
    assert held == []


def test_what_does_not_fit_is_refused(pair, demo_fp32_bundle):
    demo, tiny = loads(demo_fp32_bundle), loads(shared_bundle("tiny-fp32"))
    for scale in (0, 7):
        with pytest.raises(UsageError, match=f"refine_from must be a scale from 1 to 6, got {scale}"):
            Collaboration(demo, demo, refine_from=scale)
    with pytest.raises(UsageError, match=r"cannot refine .*: its number of classes is 5, not 171"):
        Collaboration(demo, tiny, refine_from=2)
    others = (loads(shared_bundle(name), form="stepwise") for name in ("tiny-overflow", "tiny-unbiased"))
    with pytest.raises(UsageError, match="they were built with different VQ-VAEs"):
        Collaboration(*others, refine_from=1)
    smooth = loads(shared_bundle("demo-smooth"), form="stepwise")
    with (
        Collaboration(smooth, demo, refine_from=2) as both,
        pytest.raises(UsageError, match="another model cannot refine it"),
    ):
        both.generate(88, smooth=True)
    fused = loads(shared_bundle("demo-both"), form="fused")
    for models in ((fused, demo), (demo, fused)):
        with pytest.raises(UsageError, match="is loaded in the fused form, and two models need the scales one by one"):
            Collaboration(*models, refine_from=2)


def test_what_does_not_fit_is_refused_each_time_it_is_loaded():
    others = (loads(shared_bundle(name), form="stepwise") for name in ("tiny-overflow", "tiny-unbiased"))
    with Collaboration(*others, refine_from=1, sequential=True) as both:
        for _ in range(2):
            with pytest.raises(UsageError, match="they were built with different VQ-VAEs"):
                both.generate(0)


def test_a_stream_is_checked_before_it_begins(pair):
    with pytest.raises(UsageError, match="no such class"):
        pair.stream("no such class")
    with pytest.raises(UsageError, match="preview_scales must lie in 0 to 6"):
        pair.stream(88, preview_scales=[99])
    *_, last = pair.stream(88)
    assert last.timings.total > sum(last.timings.scales[:FROM]) > 0


def test_the_shorter_list_of_likely_tokens_holds_for_both(demo_fp32_bundle):
    drafter = Bundle.open(demo_fp32_bundle, verify=False).manifest
    refiner = dataclasses.replace(drafter, max_top_k=10)
    assert (drafter.max_top_k, joint_manifest(drafter, refiner).max_top_k) == (900, 10)
    assert make_request(joint_manifest(drafter, refiner), 88, seeds=0).sampling["top_k"] == [10]
    check_sizes(drafter, refiner, 6)
    with pytest.raises(UsageError, match="refine_from must be a scale from 1 to 6, got 7"):
        check_sizes(drafter, refiner, 7)


def test_var_run_refines(demo_fp32_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = main([*map(str, args)])
        return code, *capsys.readouterr()

    models = ("--bundle", demo_fp32_bundle, "--refine", DEMO_BUNDLE, "--refine-from", FROM)
    code, out, _ = call("parrot", "--count", 2, *models, "--sequential", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["settings"]["refiner"], document["settings"]["refine_from"]) == ("var-emoji-demo", str(FROM))
    assert call("parrot", "--seed", 1, *models, "-o", "one.png", "--preview")[0] == 0
    assert np.array_equal(load_picture(tmp_path / "one.png"), load_picture(tmp_path / document["files"][1]))
    text = settings_of(tmp_path / "one.png")
    words = shlex.split(command_of(text))
    assert words[-6:] == ["--refine", str(DEMO_BUNDLE), "--refine-from", str(FROM), "--bundle", "BUNDLE"]
    assert call(*words[1:-1], demo_fp32_bundle, "-o", "two.png")[0] == 0
    assert settings_of(tmp_path / "two.png")["key"] == text["key"]
    assert call("edit", "one.png", "--box", "0,0.5,1,1", "--class", "fox", *models, "-o", "three.png")[0] == 0
    for args, line in (
        (("--refine", DEMO_BUNDLE), "--refine needs --refine-from"),
        (("--refine-from", 3), "--refine-from needs --refine"),
        (("--sequential",), "--sequential needs --refine"),
        ((*models, "--form", "fused"), "--refine needs the scales one by one: leave --form fused out"),
        (("--refine", DEMO_BUNDLE, "--url", "triton://x"), "--url and --refine cannot be combined"),
        (
            ("--refine", shared_bundle("tiny-fp32"), "--refine-from", 2),
            "tiny cannot refine var-emoji-demo: its number of classes is 5, not 171",
        ),
    ):
        code, _, err = call("parrot", *args)
        assert (code, err.splitlines()[-1]) == (2, f"Error: {line}")


@pytest.mark.parametrize("sequential", [(), ("--sequential",)])
def test_two_models_tell_how_far_they_are(sequential, demo_fp32_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told, tell = [], ImageRun._tell
    monkeypatch.setattr(ImageRun, "_tell", lambda self, done: (told.append(done), tell(self, done)))
    models = ("--bundle", demo_fp32_bundle, "--refine", DEMO_BUNDLE, "--refine-from", FROM)
    assert main(["parrot", "--count", "3", "--batch", "2", *map(str, models), *sequential]) == 0
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 3)
    assert len(set(told)) == 1 + 2 * Bundle.open(DEMO_BUNDLE).config.num_scales  # of two parts
