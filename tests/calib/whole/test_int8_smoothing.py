"""INT8 of a bundle that was built with smoothing: it still smooths, and its check judges that."""

import pytest

from calib.choose.options import QuantisationOptions
from calib.observe.collect import Requests, collect
from calib.quantise import quantize_bundle
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.judging.similarity import psnr
from tests.bundles import shared_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = Bundle.open(shared_bundle("tiny-smooth"))
    calibration = collect(base, Requests.spread(base.config, 4), threads=1)
    out = tmp_path_factory.mktemp("int8") / "tiny-int8-smooth"
    return quantize_bundle(base, out, QuantisationOptions(form="both"), lambda: calibration, threads=1)


@pytest.mark.slow
def test_the_check_judges_what_it_mixes(made):
    assert made.bundle.smooth
    assert made.reports["stepwise"].heaviest > 0.85
    assert len(made.reports["stepwise"].mixing_errors) == made.bundle.config.num_scales
    assert made.reports["fused"].heaviest > 0.85


@pytest.mark.slow
def test_both_forms_smooth(made):
    request = {"classes": [0, 3, 5], "seeds": [1, 2, 3], "smooth": [True, False, True]}
    images = {}
    for form in ("stepwise", "fused"):
        with Pipeline.load(made.bundle.path, form=form, threads=1) as pipeline:
            images[form] = pipeline.generate(**request).images
            plain = pipeline.generate(**request | {"smooth": False}).images
        changed = (images[form] != plain).any(axis=(1, 2, 3))
        assert changed.tolist() == request["smooth"]
    assert psnr(images["stepwise"], images["fused"]) > 30
