"""INT8 with weights of 7 bits: what x86 without VNNI multiplies exactly with the kernels that it has."""

import numpy as np
import onnx_ir as ir
import pytest

from calib.choose.options import QuantisationOptions
from calib.graphs.layers import read_weight
from calib.quantise import quantize_bundle
from engines.backends.onnxruntime import runner
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline

LARGEST_SUM = 2**15 - 1
"""Of two products, in the kernels that add them in 16 bits."""


@pytest.fixture(scope="module")
def made(tiny_fp32, calibrated, tmp_path_factory):
    def make(*, reduce_range):
        out = tmp_path_factory.mktemp("int8") / "tiny"
        options = QuantisationOptions(form="both", level=3, reduce_range=reduce_range)
        return quantize_bundle(tiny_fp32, out, options, lambda: calibrated, threads=1).bundle

    return {reduce_range: make(reduce_range=reduce_range) for reduce_range in (True, False)}


def largest_weights(bundle: Bundle) -> dict[str, int]:
    """Of each quantised weight with a scale per channel, in the stepwise graphs."""
    found = {}
    for graph in ("cond", "step", "decode", "encode"):
        for name, value in ir.load(bundle.graph_path(graph)).graph.initializers.items():
            if value.dtype == ir.DataType.INT8 and name.endswith(".quantized"):
                found[f"{graph}/{name}"] = int(np.abs(read_weight(value).astype(np.int64)).max())
    return found


def test_pairs_of_products_fit_16_bits(made):
    reduced, whole = largest_weights(made[True]), largest_weights(made[False])
    assert reduced.keys() == whole.keys()
    assert len(reduced) > 20
    assert 2 * 255 * max(reduced.values()) <= LARGEST_SUM < 2 * 255 * max(whole.values())
    assert set(reduced.values()) <= {0, QuantisationOptions(reduce_range=True).largest_weight}


def test_only_whole_weights_take_exact_kernels(made, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "exact_products", lambda ort, options: asked.append(options))
    for reduce_range, bundle in made.items():
        assert bundle.manifest.reduced_range is reduce_range
        for form in bundle.forms:
            asked.clear()
            with Pipeline.load(bundle.path, form=form, threads=1, check="never") as pipeline:
                drawn = pipeline.generate([0, 3], seeds=1)
                assert drawn.images.any()
            assert bool(asked) is not reduce_range


def test_an_option_of_the_build_is_part_of_what_it_makes(made):
    assert made[True].build_key != made[False].build_key
    assert made[True].digest != made[False].digest
