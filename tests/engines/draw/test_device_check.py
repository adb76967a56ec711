"""A device judges itself before it draws: once, by figures, with a verdict that is kept."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from support import copy_bundle, refused, reseal

from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw import device_check
from engines.draw.device_check import DRAWING, ENCODING, judge, measure
from engines.draw.pipeline import Pipeline
from engines.errors import CheckFailedError, UsageError
from engines.judging.thresholds import THRESHOLDS, bounds
from tests.bundles import shared_bundle


@pytest.fixture
def verdicts(tmp_path, monkeypatch):
    """A home of its own, and the kept verdicts in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache" / "var-export" / "checks").glob("*"))


@pytest.fixture
def measured(monkeypatch):
    """What was measured so far, in the order of the calls."""
    calls = []

    def watch(engines, what, **options):
        calls.append(what)
        return measure(engines, what, **options)

    monkeypatch.setattr(device_check, "measure", watch)
    return calls


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A bundle whose engines compute something else than its golden run holds, though every hash fits."""
    folder = copy_bundle(shared_bundle("tiny-fp32"), tmp_path_factory.mktemp("damaged") / "bundle")
    weights = np.fromfile(folder / "weights.bin", np.float32)
    (1.1 * weights).tofile(folder / "weights.bin")
    reseal(folder)
    return folder


def load(path=DEMO_BUNDLE, **options):
    return Pipeline.load(path, threads=1, **options)


def test_each_part_is_judged_once_before_its_first_use(verdicts, measured):
    image = Bundle.open(DEMO_BUNDLE).golden["image"]
    with load() as pipeline:
        assert measured == [DRAWING]
        pipeline.encode(image)
        pipeline.encode(image)
        assert measured == [DRAWING, ENCODING]
    assert len(verdicts()) == 2
    with load() as pipeline:
        pipeline.encode(image)
    assert len(measured) == 2
    figures = [json.loads(file.read_text()) for file in verdicts()]
    assert {name for document in figures for name in document} == {
        *("max_logit_error", "kl", "top1", "decoder_psnr", "reconstruction_loss")
    }


def test_always_and_never(verdicts, measured):
    for _ in range(2):
        load(check="always").close()
    assert measured == [DRAWING] * 2
    assert not verdicts()
    with load(check="never") as pipeline:
        pipeline.encode(Bundle.open(DEMO_BUNDLE).golden["image"])
    assert len(measured) == 2
    refused(lambda: load(check="sometimes"), "check must be one of once, always, never", kind=UsageError)


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_a_miss_is_an_error_with_the_figure_and_what_to_do(damaged, verdicts, form):
    message = refused(lambda: load(damaged, form=form), "must be", "--check never", kind=CheckFailedError)
    assert str(damaged) in message
    assert ("KL" in message) == (form == "stepwise")
    assert not verdicts()
    with load(damaged, form=form, check="never") as pipeline:
        assert pipeline.generate([0]).images.shape[0] == 1


def test_an_encoder_that_misses_does_not_encode(verdicts, monkeypatch):
    lost = {ENCODING: {"reconstruction_loss": [10.6]}}
    monkeypatch.setattr(device_check, "measure", lambda engines, what, **_: lost.get(what) or measure(engines, what))
    with load() as pipeline:
        for _ in range(2):  # asked again, refused again
            refused(
                lambda: pipeline.encode(Bundle.open(DEMO_BUNDLE).golden["image"]),
                "loss of the encoder's reconstruction in dB is 10.6, must be <= 0.2",
                kind=CheckFailedError,
            )


def test_another_runtime_bundle_or_form_is_judged_anew(verdicts, measured, monkeypatch):
    both = shared_bundle("tiny-fp32")
    for options in ({}, {"form": "fused"}):
        load(both, **options).close()
    load().close()
    assert measured == [DRAWING] * 3
    describe = OnnxRuntimeBackend.describe
    monkeypatch.setattr(OnnxRuntimeBackend, "describe", lambda self: describe(self) | {"onnxruntime": "9.9"})
    load().close()
    assert measured == [DRAWING] * 4
    assert len(verdicts()) == 4


def test_another_arithmetic_is_judged_anew_whatever_the_processor_is_called(verdicts, measured, monkeypatch):
    """As under emulation, where the name is the host's; or in a container that hides instructions."""
    load().close()
    here = OnnxRuntimeBackend(threads=1).arithmetic()["saturates"]
    monkeypatch.setattr(OnnxRuntimeBackend, "arithmetic", lambda self: {"saturates": not here})
    load().close()
    assert measured == [DRAWING] * 2
    assert len(verdicts()) == 2


def test_the_number_of_threads_decides_no_verdict(verdicts, measured):
    Pipeline.load(DEMO_BUNDLE, threads=1).close()
    Pipeline.load(DEMO_BUNDLE, threads=2).close()
    assert measured == [DRAWING]


@pytest.mark.parametrize("home", ["/dev/null/home", None])
def test_a_home_that_keeps_nothing_makes_no_noise(home, measured, monkeypatch, caplog, capfd):
    if home is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
    with caplog.at_level(logging.INFO, "engines"):
        for _ in range(2):
            load().close()
    assert measured == [DRAWING] * 2
    assert [record.levelname for record in caplog.records] == ["INFO"] * 2
    assert capfd.readouterr() == ("", "")


def test_who_asks_is_told_before_it_takes_its_time(verdicts):
    told = []
    for _ in range(2):
        load(tell=told.append).close()
    assert told == [f"holding this machine's drawing against the golden run of {DEMO_BUNDLE}, once"]


def test_long_scales_are_cut_short(verdicts):
    with load(check="never") as pipeline:
        whole, short = measure(pipeline, DRAWING), measure(pipeline, DRAWING, seconds=0)
        assert len(whole["kl"]) == pipeline.config.num_scales
        assert {name: values[:1] for name, values in whole.items()} == short
        assert all(figure.kept for figure in judge(pipeline, short))


def test_int8_is_held_to_what_its_build_measured():
    """A trained model is far better than the thresholds, which hold for random weights too: damage shows in between."""
    found = {"kl": 1.8e-3, "top1": 0.982, "decoder_psnr": 34.4, "image_psnr": 33.0, "reconstruction_loss": 0.3}
    closer, known = bounds("int8", found), dataclasses.asdict(THRESHOLDS["int8"])
    assert closer["kl"] == pytest.approx(3.7e-3)  # saturated products give 6.4e-3
    assert closer["top1"] == pytest.approx(0.954)
    assert (closer["decoder_psnr"], closer["image_psnr"]) == (pytest.approx(31.4), 30.0)
    assert closer["reconstruction_loss"] == pytest.approx(0.8)
    assert {name: bound for name, bound in closer.items() if bound == known[name]}.keys() == known.keys() - found.keys()
    assert bounds("int8", {"kl": 1.0, "top1": 0.1}) == known  # never further than the thresholds
    assert bounds("fp16", found) == dataclasses.asdict(THRESHOLDS["fp16"])


@pytest.mark.slow
def test_a_build_records_what_it_measured_and_the_bundle_is_judged_by_it():
    bundle = Bundle.open(shared_bundle("demo-int8"))
    assert set(bundle.figures) == {"stepwise", "fused"}
    first = bundle.recorded("stepwise").first
    assert len(first["kl"]) == bundle.config.num_scales
    assert bundle.recorded("fused").first.keys() == {"draws", "image_psnr", "reconstruction_loss"}
    with Pipeline(bundle, OnnxRuntimeBackend(threads=1)) as pipeline:
        here = measure(pipeline, DRAWING)
        assert here["kl"] == pytest.approx(first["kl"], rel=0.2, abs=1e-6)
        figures = {figure.kind.name: figure for figure in judge(pipeline, here)}
        assert figures["kl"].bound < THRESHOLDS["int8"].kl / 2
        assert all(figure.kept for figure in figures.values())
