import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from support import copy_bundle, refused, reseal, tiny_config

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import BuildFigures
from engines.draw.pipeline import Pipeline
from engines.draw.results import ScaleView
from engines.errors import NotFiniteError, VarExportError
from engines.fidelity.checks import verify
from engines.judging.figures import KINDS, judged_figures
from engines.judging.reports import Report
from engines.judging.similarity import psnr, ssim
from engines.judging.thresholds import THRESHOLDS, Thresholds
from tests.bundles import shared_bundle

# --- whole bundles --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return shared_bundle("tiny-fp32")


@pytest.fixture(scope="module")
def tiny_smooth():
    return shared_bundle("tiny-smooth")


@pytest.fixture
def folder(tiny, tmp_path):
    return copy_bundle(tiny, tmp_path / "bundle")


def checked(folder, form="stepwise", **options):
    with Pipeline.load(folder, form=form, threads=1, check="never", **options) as pipeline:
        return verify(pipeline, pipeline.bundle.golden)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_demo_passes(precision, request):
    report = checked(request.getfixturevalue(f"demo_{precision}_bundle"))
    assert report.passed, report.failures
    assert report.precision == precision
    assert report.images == 4
    assert report.total.tokens == 4 * 155
    assert [scale.tokens for scale in report.scales] == [4 * n * n for n in (1, 2, 3, 4, 5, 6, 8)]
    assert report.total.top1 >= 0.99
    assert report.free_identical >= 2
    assert report.image_ssim > 0.99
    if precision == "fp32":
        assert report.total.max_abs < 1e-3
        assert report.first_difference is None or report.free_identical < 4


@pytest.mark.slow
def test_the_two_forms_pass(tiny):
    assert checked(tiny).passed
    report = checked(tiny, "fused")
    assert report.passed
    assert report.draws >= 0.99
    logits, smoothing = ("max_logit_error", "kl", "top1"), ("heaviest", "smooth_psnr", "mixing_error")
    shown = [kind.name for kind in KINDS if kind.name not in (*logits, *smoothing)]
    assert [figure.kind.name for figure in report.figures()] == shown
    assert report.failed_parts == report.scales == ()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_what_the_engine_drew_is_shown(form, tiny):
    shown = []
    with Pipeline.load(tiny, form=form, threads=1) as pipeline:
        golden = pipeline.bundle.golden
        verify(pipeline, golden, on_runs=shown.append)
    (runs,) = shown
    assert np.array_equal(runs.forced.tokens, golden["tokens"])
    assert runs.forced.images.shape == runs.free.images.shape == golden["image"].shape
    assert runs.free.timings.total > 0


def test_every_threshold_is_checked(tiny_smooth):
    figures = checked(tiny_smooth).figures()
    names = [field.name for field in dataclasses.fields(Thresholds)]
    assert [figure.kind.name for figure in figures] == [kind.name for kind in KINDS] == names
    assert set(names) <= {field.name for field in dataclasses.fields(Report)}
    assert all(figure.kept and figure.bound == getattr(THRESHOLDS["fp32"], figure.kind.name) for figure in figures)
    for figure in figures:
        worse = figure.bound + 1 if figure.kind.sign == "<=" else figure.bound - 1
        assert not dataclasses.replace(figure, value=worse).kept
        assert not dataclasses.replace(figure, value=math.nan).kept
        assert dataclasses.replace(figure, value=figure.bound).kept


@pytest.mark.slow
def test_figures_do_not_depend_on_the_batch(tiny):
    one, many = checked(tiny, max_batch=1), checked(tiny, max_batch=3)
    assert one.total.tokens == many.total.tokens
    assert one.total.top1 == many.total.top1
    assert one.total.max_abs == pytest.approx(many.total.max_abs, abs=1e-4)
    assert one.free_tokens == many.free_tokens


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_reports_are_plain_json(form, tiny):
    text = json.dumps(checked(tiny, form).to_dict(), allow_nan=False)
    assert json.loads(text)["passed"] is True


def perturb(folder, graph, tensor, change):
    """Change the first number of one weight, as a bad copy or a wrong export would."""
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    found = next(item for item in model.graph.initializer if tensor in item.name)
    where = {item.key: item.value for item in found.external_data}
    weights = np.memmap(folder / "weights.bin", np.float32, "r+", int(where["offset"]), int(where["length"]) // 4)
    weights[0] = change(weights[0])
    weights.flush()
    del weights
    reseal(folder)  # so that nothing but the figures can tell


@pytest.mark.parametrize(
    ("graph", "tensor", "figure"),
    [
        ("step", "blocks.1.fc2.weight", "logit"),
        ("step", "head.weight", "logit"),
        ("cond", "linears.0.weight", "logit"),
        ("decode", "conv_out.weight", "decoder PSNR"),
        ("encode", "conv_out.weight", "encoder tokens"),
    ],
)
def test_one_wrong_weight_fails(graph, tensor, figure, folder):
    perturb(folder, graph, tensor, lambda weight: weight + 3)
    report = checked(folder)
    assert not report.passed
    assert any(figure in failure for failure in report.failures), report.failures
    assert all("must be" in failure for failure in report.failures)
    assert report.to_dict()["passed"] is False


@pytest.mark.parametrize("form", ["stepwise", "fused"])
@pytest.mark.parametrize(
    ("graph", "wrong", "figure"),
    [
        ("accumulate", "Neg", "error of the feature maps is 2"),
        ("decode", "BitwiseNot", "decoder PSNR"),
        ("encode", "Neg", "encoder tokens"),
    ],
)
def test_every_graph_that_runs_alone_is_judged(graph, wrong, figure, form, folder):
    """Another graph in its place, with every hash right: of both forms, though the fused one draws without them."""
    ir = pytest.importorskip("onnx_ir")
    model = ir.load(folder / f"{graph}.onnx")
    (output,) = model.graph.outputs
    name, output.name = output.name, f"{output.name}.right"
    node = ir.node(wrong, [output], name="wrong")
    last = node.outputs[0]
    last.name, last.dtype, last.shape = name, output.dtype, output.shape
    model.graph.append(node)
    model.graph.outputs[0] = last
    ir.save(model, folder / f"{graph}.onnx")
    reseal(folder)
    failures = checked(folder, form).failures
    assert any(figure in failure for failure in failures), failures


def test_one_wrong_weight_fails_the_fused_form(folder):
    perturb(folder, "decode", "conv_out.weight", lambda weight: weight + 3)
    report = checked(folder, "fused")
    assert any("image PSNR" in failure for failure in report.failures)


@pytest.mark.parametrize(
    ("graph", "tensor"), [("step", "head.weight"), ("step", "blocks.0.qkv"), ("cond", "class_emb")]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_fail(graph, tensor, value, folder):
    names = {"blocks.0.qkv": "blocks.0.attention.qkv.weight"}
    perturb(folder, graph, names.get(tensor, tensor), lambda weight: np.float32(value))
    if tensor == "class_emb":  # of class 0, which the golden run has to draw to notice
        assert 0 in Bundle.open(folder).golden["classes"]
    with np.errstate(all="ignore"):
        refused(lambda: checked(folder), "the logits of scale 0 are not finite", kind=NotFiniteError)


def test_the_golden_run_of_another_model_fails(folder):
    golden = dict(Bundle.open(folder).golden)
    rng = np.random.RandomState(0)
    golden["tokens"] = rng.randint(0, 64, golden["tokens"].shape)
    golden["top_logit"] = golden["top_logit"] + rng.standard_normal(golden["top_logit"].shape).astype(np.float32)
    np.savez(folder / "golden.npz", **golden)
    reseal(folder)
    report = checked(folder)
    assert not report.passed
    assert report.free_identical == 0
    assert report.first_difference == 0


def test_a_golden_run_without_all_its_arrays_is_an_error_of_ours(folder):
    golden = dict(Bundle.open(folder).golden)
    for name in ("tokens", "log_sum_exp", "encoded"):
        np.savez(folder / "golden.npz", **{key: value for key, value in golden.items() if key != name})
        reseal(folder)
        with pytest.raises(VarExportError, match=name):
            checked(folder)


# --- figures of logits ----------------------------------------------------------------------------------------------

CONFIG = tiny_config(patch_nums=(1, 2))
IMAGES, V = 3, 64


class Engine:
    """A pipeline whose logits are given."""

    config, form = CONFIG, "stepwise"
    bundle = SimpleNamespace(smooth=False, precision="fp32", recorded=lambda form: BuildFigures({}, {}))
    backend = SimpleNamespace(judged_as=lambda bundle: bundle.precision)

    def __init__(self, golden, logits):
        self.golden, self.logits = golden, logits

    def generate(self, classes, *, seeds, forced=None, on_scale=None, **settings):
        for scale in range(CONFIG.num_scales):
            if on_scale:
                part = self.logits[:, CONFIG.scale_slice(scale)]
                on_scale(ScaleView(scale, slice(0, IMAGES), SimpleNamespace(read=lambda part=part: part)))
        drawn = self.golden["tokens"].copy()
        drawn[0, 0] += 1  # one of fifteen differs
        return SimpleNamespace(tokens=drawn if forced is None else forced, drawn=drawn, images=self.golden["image"])

    def decode_features(self, f_hat):
        return self.golden["image"]

    def accumulate(self, tokens):
        return self.golden["f_hat"]

    def encode(self, images):
        return self.golden["encoded"]

    def decode(self, tokens):
        off = 64 if np.array_equal(tokens, self.golden["encoded"]) else 10
        return self.golden["image"] // 2 + np.uint8(off)


def made_golden(logits, kept):
    """The arrays of a reference run with these logits (B, T, V), `kept` entries of each."""
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :kept]
    rng = np.random.RandomState(5)
    return {
        "classes": np.arange(IMAGES),
        "seeds": np.arange(IMAGES).astype(np.uint64),
        **{name: np.ones(IMAGES, np.float32) for name in ("cfg", "temperature", "top_p")},
        "top_k": np.ones(IMAGES, np.int64),
        "tokens": rng.randint(0, V - 1, (IMAGES, 5)),
        "f_hat": np.zeros((IMAGES, 8, 2, 2), np.float32),
        "image": rng.randint(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8),
        "top_index": order.astype(np.int32),
        "top_logit": np.take_along_axis(logits, order, -1),
        "log_sum_exp": np.log(np.exp(logits.astype(np.float64)).sum(-1)),
        "encoded": rng.randint(0, V, (IMAGES, 5)),
    }


@pytest.mark.parametrize("kept", [V, 7])
@pytest.mark.parametrize("noise", [1e-3, 0.3, 3.0])
def test_logit_figures_are_what_they_are_defined_as(kept, noise):
    rng = np.random.RandomState(1)
    wanted = (rng.standard_normal((IMAGES, 5, V)) * 2).astype(np.float32)
    got = (wanted + rng.standard_normal(wanted.shape) * noise).astype(np.float32)
    golden = made_golden(wanted, kept)
    report = verify(Engine(golden, got), golden)

    def softmax(logits):
        e = np.exp(logits.astype(np.float64))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(wanted), softmax(got)
    kl, largest, cosines = [], 0.0, []
    for b in range(IMAGES):
        for t in range(5):
            top = golden["top_index"][b, t]
            events = [(p[b, t, i], q[b, t, i]) for i in top]
            if kept < V:
                events.append((1 - sum(a for a, _ in events), 1 - sum(c for _, c in events)))
            kl.append(sum(a * math.log(a / c) for a, c in events))
            largest = max(largest, np.abs(wanted[b, t, top] - got[b, t, top]).max())
            cosines.append(np.corrcoef(wanted[b, t, top], got[b, t, top])[0, 1])
    assert report.total.kl == pytest.approx(np.mean(kl), rel=1e-6, abs=1e-9)
    assert report.total.max_abs == pytest.approx(largest, rel=1e-6)
    assert report.total.cosine == pytest.approx(np.mean(cosines), rel=1e-6)
    assert report.total.top1 == pytest.approx((wanted.argmax(-1) == got.argmax(-1)).mean())
    assert report.scales[0].kl == pytest.approx(np.mean(kl[::5]), rel=1e-6, abs=1e-9), "the first of five tokens"
    assert report.total.draws == pytest.approx(14 / 15)
    assert report.free_tokens == pytest.approx(14 / 15)
    assert report.free_identical == 2
    assert report.first_difference == 0


def test_equal_logits_have_perfect_figures():
    logits = (np.random.RandomState(1).standard_normal((IMAGES, 5, V)) * 9).astype(np.float32)
    golden = made_golden(logits, 16)
    total = verify(Engine(golden, logits), golden).total
    assert total.max_abs == 0
    assert total.top1 == 1
    assert total.cosine == pytest.approx(1)
    assert total.kl == pytest.approx(0, abs=1e-12)


def test_one_logit_that_is_no_number_fails():
    logits = np.random.RandomState(1).standard_normal((IMAGES, 5, V)).astype(np.float32)
    golden = made_golden(logits, V)
    for value in (math.nan, math.inf, -math.inf):
        broken = logits.copy()
        broken[1, 4, golden["top_index"][1, 4, 3]] = value
        with np.errstate(all="ignore"):
            report = verify(Engine(golden, broken), golden)
        assert any("logit error" in failure for failure in report.failures), value


def test_a_failure_names_the_worst_scale():
    logits = np.random.RandomState(1).standard_normal((IMAGES, 5, V)).astype(np.float32)
    golden = made_golden(logits, V)
    broken = logits.copy()
    broken[:, 1:] *= 2
    failures = verify(Engine(golden, broken), golden).failures
    assert any("KL (worst at scale 1)" in failure for failure in failures)


def test_the_encoder_is_judged_by_what_its_tokens_look_like(monkeypatch):
    logits = np.random.RandomState(1).standard_normal((IMAGES, 5, V)).astype(np.float32)
    golden = made_golden(logits, V)
    assert verify(Engine(golden, logits), golden).reconstruction_loss == 0
    engine = Engine(golden, logits)
    monkeypatch.setattr(engine, "encode", lambda images: golden["encoded"] + 1)
    report = verify(engine, golden)
    wanted = [psnr(golden["image"] // 2 + np.uint8(off), golden["image"]) for off in (64, 10)]
    assert report.reconstruction_loss == pytest.approx(wanted[0] - wanted[1])
    assert (report.encoder_tokens, report.passed) == (0, False)
    assert any("encoder's reconstruction" in failure for failure in report.failures)


@pytest.mark.parametrize(
    ("name", "value", "bound", "texts"),
    [
        ("max_logit_error", 4.2e-5, 0.005, ("4.2e-05", "<= 0.005", "120 × smaller")),
        ("max_logit_error", 9.0, 0.005, ("9", "<= 0.005", "1,800 × too large")),
        ("max_logit_error", 0.0, 0.005, ("0", "<= 0.005", "exact")),
        ("max_logit_error", math.inf, 2.0, ("not finite", "<= 2", "")),
        ("mixing_error", 1.0, 0.0, ("1", "<= 0", "too large")),
        ("kl", 3e-7, 1e-6, ("3e-07", "<= 1e-06", "3.3 × smaller")),
        ("top1", 0.9935, 0.98, ("99.35%", ">= 98%", "1 in 154 differs")),
        ("top1", 0.9, 0.98, ("90.00%", ">= 98%", "-8.00 points")),
        ("draws", 1.0, 0.03, ("100.00%", ">= 3%", "none differs")),
        ("draws", 0.6, 0.03, ("60.00%", ">= 3%", "40% differ")),
        ("encoder_tokens", 0.2, 0.0, ("20.00%", "not judged", "")),
        ("image_psnr", 12.0, 60.0, ("12.0 dB", ">= 60 dB", "-48.0 dB")),
        ("decoder_psnr", math.inf, 60.0, ("identical pixels", ">= 60 dB", "")),
        ("reconstruction_loss", 0.3, 0.2, ("0.30", "<= 0.2", "-0.10 dB")),
    ],
)
def test_a_figure_in_plain_characters(name, value, bound, texts):
    (figure,) = judged_figures({name: value}, {name: bound})
    assert (figure.shown, figure.wanted, figure.margin) == texts


def test_thresholds_of_fp32_are_the_stricter():
    strict, loose = THRESHOLDS["fp32"], THRESHOLDS["fp16"]
    for name in ("max_logit_error", "kl", "reconstruction_loss"):
        assert getattr(strict, name) < getattr(loose, name)
    for name in ("top1", "draws", "decoder_psnr", "image_psnr", "encoder_tokens"):
        assert getattr(strict, name) > getattr(loose, name)


# --- figures of images ----------------------------------------------------------------------------------------------


def pictures(seed=0, shape=(2, 16, 12, 3)):
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def test_equal_images():
    images = pictures()
    assert psnr(images, images) == math.inf
    assert ssim(images, images) == pytest.approx(1)


@pytest.mark.parametrize("offset", [1, 5, 100])
def test_psnr_of_a_constant_offset(offset):
    dark = pictures() // 2
    assert psnr(dark, dark + np.uint8(offset)) == pytest.approx(20 * math.log10(255 / offset))
    assert psnr(dark + np.uint8(offset), dark) == pytest.approx(20 * math.log10(255 / offset)), "no wrap-around"


def test_psnr_of_black_and_white():
    black = np.zeros((1, 8, 8, 3), np.uint8)
    assert psnr(black, black + 255) == pytest.approx(0)


def test_psnr_is_over_all_images_at_once():
    a = np.zeros((2, 8, 8, 3), np.uint8)
    b = a.copy()
    b[1] = 10
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 50))


def ssim_directly(a, b, window=7):
    """The formula of Wang et al. (2004), window by window."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for image in range(a.shape[0]):
        for y in range(a.shape[1] - window + 1):
            for x in range(a.shape[2] - window + 1):
                for channel in range(3):
                    u = a[image, y : y + window, x : x + window, channel].astype(float).ravel()
                    v = b[image, y : y + window, x : x + window, channel].astype(float).ravel()
                    covariance = np.cov(u, v)
                    luminance = (2 * u.mean() * v.mean() + c1) / (u.mean() ** 2 + v.mean() ** 2 + c1)
                    contrast = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
                    values.append(luminance * contrast)
    return np.mean(values)


@pytest.mark.parametrize("kind", ["noise", "offset", "unrelated", "flat"])
def test_ssim_is_the_formula(kind):
    a = pictures(1)
    b = {
        "noise": np.clip(a.astype(int) + np.random.RandomState(2).randint(-20, 21, a.shape), 0, 255),
        "offset": np.clip(a.astype(int) + 30, 0, 255),
        "unrelated": pictures(3),
        "flat": np.full(a.shape, 128),
    }[kind].astype(np.uint8)
    assert ssim(a, b) == pytest.approx(ssim_directly(a, b), abs=1e-9)
    assert ssim(b, a) == pytest.approx(ssim(a, b))


def test_ssim_of_flat_images_is_the_luminance_term():
    a, b = np.full((1, 7, 7, 3), 100, np.uint8), np.full((1, 7, 7, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))


def test_with_a_gpus_rounding_the_encoders_tokens_are_not_judged():
    """d16 with random weights keeps 80 % of them in FP16, at no loss of the picture: one flip changes all finer."""
    shown = {"precision": "fp16", "images": 1, "draws": 1.0, "image_psnr": 50.0, "image_ssim": 1.0, "free_tokens": 1.0}
    shown |= {"free_identical": 1, "first_difference": None, "encoder_tokens": 0.8, "reconstruction_loss": 0.1}
    assert Report(**shown).failures == ["encoder tokens alike is 0.8, must be >= 0.9"]
    assert Report(**shown, emulated=True).passed
    assert not Report(**shown | {"reconstruction_loss": 0.3}, emulated=True).passed
