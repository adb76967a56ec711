"""Bundles whose files are links, as hub caches lay them out: whatever copies or changes one takes what they lead to."""

import numpy as np
import pytest

from calib.choose.options import QuantisationOptions
from calib.graphs.changed import ChangedGraphs
from calib.observe.collect import Requests, collect
from calib.quantise import quantize_bundle
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.bundle.writer import withdraw_plans
from engines.draw.pipeline import Pipeline
from tests.support import as_links


def drawn(bundle, beside):
    with (
        ChangedGraphs(bundle, emulated=True, beside=beside) as graphs,
        Pipeline(bundle, OnnxRuntimeBackend(threads=1, sessions=graphs.open)) as pipeline,
    ):
        return pipeline.generate(88, seeds=1).images


def test_rounding_is_emulated(tmp_path):
    linked = Bundle.open(as_links(DEMO_BUNDLE, tmp_path))
    np.testing.assert_array_equal(drawn(linked, tmp_path), drawn(Bundle.open(DEMO_BUNDLE), tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_int8_is_made_of_it(base, tmp_path):
    made = []
    for name in ("plain", "linked"):
        source = base if name == "plain" else Bundle.open(as_links(base.path, tmp_path))
        calibration = collect(source, Requests.spread(source.config, 2), resume=tmp_path / name, threads=1)
        options = QuantisationOptions(form="both")
        made.append(
            quantize_bundle(source, tmp_path / f"{name}-int8", options, lambda c=calibration: c, threads=1).bundle
        )
    assert made[0].files == made[1].files
    assert not any(file.is_symlink() for file in made[1].path.iterdir())


def test_a_changed_manifest_leaves_what_it_was_a_link_to(tmp_path):
    folder = as_links(DEMO_BUNDLE, tmp_path)
    manifest = (folder / "manifest.json").resolve()
    before = manifest.read_bytes()
    withdraw_plans(folder, "none")
    assert manifest.read_bytes() == before
    assert not (folder / "manifest.json").is_symlink()
    Bundle.open(folder)
