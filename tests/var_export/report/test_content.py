"""What each page says: the verdict first, and every figure that the command has."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from engines.bundle.bundle import Bundle
from engines.draw.results import Timings
from engines.errors import UsageError
from engines.fidelity.checks import Runs
from tests.bundles import shared_bundle
from tests.var_export.report.conftest import evidence_of
from tests.var_export.report.reading import NASTY, Reader, noise
from var_export.report.showcase import showcase
from var_export.report.verify import write_verify

pytestmark = pytest.mark.slow


def test_a_bundle_that_passes(pages, stepwise):
    words = Reader(pages.verify).words
    assert words.index("✓ Passed: all 9 figures keep the thresholds of FP32") < words.index("Pictures")
    assert "✗" not in words
    for part in (
        "4 images and 120 tokens by CPUExecutionProvider, stepwise, against the run of the PyTorch reference stored",
        "PyTorch reference",
        "Engine, same tokens",
        "Engine, drawn freely",
        "KL divergence, nats",
        "≤ 10⁻⁶",
        "≥ 99.9 %",
        "≥ 60 dB",
        "Logits per scale",
        "Agreement per scale",
        "Latency per scale",
        "128.0 MiB of the whole check",
        stepwise.bundle.build_key,
        str(stepwise.bundle.path),
        str(stepwise.machine),
        "onnxruntime",
        "var-export verify 'a bundle' --html page.html",
    ):
        assert part in words, part


def test_a_bundle_that_fails(pages):
    words = Reader(pages.failed).words
    verdict = words[words.index("✗ Failed") : words.index("Pictures")]
    assert "✗ Failed: 3 of 9 figures miss the thresholds of FP32" in verdict
    assert "Largest logit error is 9.00, must be at most 0.005" in verdict
    assert re.search(r"KL \(worst at scale \d\) is 0\.500, must be at most 10⁻⁶", verdict)
    assert "Image PSNR is 12.0 dB, must be at least 60 dB" in verdict
    assert "1,800 × too large" in words
    assert "-48.0 dB" in words
    table = words[words.index("Layers to blame") : words.index("Error per scale")]
    assert "fc1 KL 0.500 0.0100" in table
    assert "up.0 PSNR 12.0 50.0" in table


def test_missed_figures_are_marked_without_colour(pages):
    source = pages.failed.read_text()
    assert source.count('<tr class="missed">') == 3
    assert "0.500 ✗" in source
    assert '<tr class="missed">' not in pages.verify.read_text()


def test_a_figure_without_a_threshold_is_not_judged(stepwise, tmp_path):
    report = replace(stepwise.report, precision="int8", encoder_tokens=0.2)
    write_verify(tmp_path / "p.html", replace(stepwise, report=report))
    words = Reader(tmp_path / "p.html").words
    assert "all 8 figures keep the thresholds of INT8" in words
    assert "Encoder tokens alike 20.00 % not judged –" in words


def test_the_fused_form_has_what_it_shows(pages):
    words = Reader(pages.fused).words
    assert "✓ Passed: all 6 figures keep the thresholds of FP32" in words
    assert "fused graph" in words
    assert "Agreement per scale" in words
    assert "KL divergence" not in words


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_smoothing_is_judged_where_a_bundle_has_it(form, tmp_path):
    evidence = evidence_of(Bundle.open(shared_bundle("tiny-smooth")), form)
    write_verify(tmp_path / "p.html", evidence)
    words = Reader(tmp_path / "p.html").words
    assert f"all {12 if form == 'stepwise' else 8} figures keep the thresholds of FP32" in words
    assert "Smoothing's heaviest entries alike 100.00 % ≥ 99.9 %" in words
    assert "Smoothed image, PSNR" in words
    assert ("Smoothing's mixing error" in words) == (form == "stepwise")
    assert "can be smoothed" in words


def test_nothing_finite_breaks_no_page(stepwise, tmp_path):
    scales = [replace(scale, kl=math.nan, top1=math.nan) for scale in stepwise.report.scales]
    worst = {"kl": math.nan, "max_logit_error": math.inf, "top1": math.nan, "image_psnr": math.inf}
    report = replace(stepwise.report, scales=tuple(scales), **worst)
    write_verify(tmp_path / "p.html", replace(stepwise, report=report))
    words = Reader(tmp_path / "p.html").words
    assert "KL (worst at scale 0) is not a number, must be" in words
    assert "identical pixels" in words


def test_the_bench_page(pages):
    words = Reader(pages.bench).words
    for part in (
        "13.1 ms for 1 image with guidance 4, the median of 5 runs",
        "0.25 ×",
        "pair by pair 0.20 to 0.30",
        "256.0 MiB",
        "batch 1",
        "76.3 images/s",
        "PyTorch 2.0 (eager FP32, weights: random)",
    ):
        assert part in words, part
    assert "tokens alike" not in words  # of random weights, that would say nothing


def test_the_sensitivity_page(pages):
    words = Reader(pages.sensitivity).words
    for part in (
        "13 layers, each alone in INT8",
        "Transformer",
        "Decoder",
        "Encoder",
        "All 24 measurements",
        "30.0 dB",
    ):
        assert part in words, part
    source = pages.sensitivity.read_text().replace("<wbr>", "")
    worst = source.index("step/blocks.3.qkv")
    assert worst < source.index("step/blocks.0.qkv")
    assert "All 4 measurements" not in words  # all of them are shown


def test_of_many_images_the_worst_are_shown(stepwise):
    count, golden, runs = 20, dict(stepwise.golden), stepwise.runs
    for name, array in golden.items():
        golden[name] = np.repeat(array[:1], count, axis=0)
    golden["seeds"] = np.arange(count, dtype=np.uint64)
    golden["image"] = noise(count, 16)
    off = golden["image"].copy()
    for image in range(5, 13):
        off[image] ^= 1 << (image % 3)
    forced = replace(runs.forced, images=off)
    free = replace(runs.free, images=golden["image"], tokens=np.repeat(runs.free.tokens[:1], count, axis=0))
    shown = showcase(stepwise.bundle, golden, replace(runs, forced=forced, free=free))
    assert [each["how"].split(",")[0] for each in shown["comparisons"]] == [f"seed {n}" for n in range(5, 13)]
    assert shown["note"].startswith("The 8 of 20 images that differ most.")
    fewer = showcase(stepwise.bundle, golden, replace(runs, forced=forced, free=free), budget=12_000)
    assert len(fewer["comparisons"]) in (1, 2, 4)
    assert all("at most 4/255" in c["pictures"][2]["figures"] for c in fewer["comparisons"][:1])
    with pytest.raises(UsageError, match="not even one image"):
        showcase(stepwise.bundle, golden, replace(runs, forced=forced, free=free), budget=100)


def test_pictures_say_what_they_show(stepwise, failing):
    same = showcase(stepwise.bundle, stepwise.golden, stepwise.runs)
    labels = [int(label) for label in stepwise.golden["classes"]]
    assert [c["title"] for c in same["comparisons"]] == [f"{NASTY[label]} (class {label})" for label in labels]
    assert [p["caption"] for p in same["comparisons"][0]["pictures"]] == [
        "PyTorch reference", "Engine, same tokens", "Difference", "Engine, drawn freely",
    ]  # fmt: skip
    assert same["comparisons"][0]["pictures"][3]["figures"] == "the reference's tokens"
    inverted = showcase(failing.bundle, failing.golden, failing.runs)
    assert inverted["comparisons"][0]["pictures"][2]["caption"] == "Difference"
    assert "PSNR" in inverted["comparisons"][0]["pictures"][1]["figures"]


def test_each_scale_has_its_own_figures(stepwise, tmp_path):
    config, golden, runs = stepwise.bundle.config, stepwise.golden, stepwise.runs
    free, drawn = golden["tokens"].copy(), golden["tokens"].copy()
    free[:, config.scale_slice(2)] += 1
    drawn[:2, config.scale_slice(1)] += 1
    timings = Timings(cond=0.004, scales=[0.04 * (scale + 1) for scale in range(config.num_scales)], decode=1, total=2)
    changed = Runs(replace(runs.forced, drawn=drawn), replace(runs.free, tokens=free, timings=timings))
    write_verify(tmp_path / "p.html", replace(stepwise, runs=changed))
    words = Reader(tmp_path / "p.html").words
    sides, top1 = config.patch_nums, [scale.top1 for scale in stepwise.report.scales]
    assert top1[1] == top1[2] == 1
    assert f"{sides[1]}×{sides[1]} {sides[1] ** 2} 100.00 % 50.00 % 100.00 %" in words
    assert f"{sides[2]}×{sides[2]} {sides[2] ** 2} 100.00 % 100.00 % 0.00 %" in words
    assert f"cond 1.00 {1e3 * runs.forced.timings.cond / 4:.2f}" in words  # of 4 images
    assert f"{sides[1]}×{sides[1]} 20.0" in words
    assert "decode 250" in words
    assert "total 500" in words
    assert "Time per image 500 ms" in words
