"""The table of sampling options: one row reaches graphs, golden runs, requests to a server and both command lines."""

import dataclasses
import json

import pytest

from engines.bundle.bundle import DEMO_BUNDLE
from engines.bundle.manifest import MANIFEST, Manifest, sealed
from engines.cli.run import run
from engines.errors import UsageError
from engines.spec import contract
from engines.spec.golden_run import GOLDEN_ARRAYS
from engines.spec.sampling import OPTIONS, RECOMMENDED, Sampling, SamplingOptions
from engines.triton.wire import INPUTS

NAMES = [option.name for option in OPTIONS]


def test_keywords_are_the_fields():
    assert list(SamplingOptions.__annotations__) == NAMES == [field.name for field in dataclasses.fields(Sampling)]


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_every_room_has_every_option(option):
    fused = {spec.name: (spec.dtype, spec.dims) for spec in contract.FUSED.inputs}
    assert fused.get(option.name) == (None if option.by_loop else (option.dtype, ("B",)))
    step = {spec.name for spec in contract.STEP.inputs}
    assert (option.name in step) != (option.per_scale or option.by_loop)
    assert (option.name in Sampling().to_dict()) != option.by_loop
    assert (option.name in GOLDEN_ARRAYS) == (option in RECOMMENDED)
    assert option.name in {tensor.name for tensor in INPUTS}
    assert option.flag in {flag for parameter in run.commands["draw"].params for flag in parameter.opts}


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_defaults_and_ends_of_the_range_can_be(option):
    default = getattr(Sampling(), option.name)
    assert option.holds(default)
    for end in (option.low, option.high):
        if abs(end) < 1e9:
            assert option.holds(getattr(Sampling(**{option.name: type(default)(end)}), option.name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cfg": -0.5}, "sampling.cfg must lie in 0 to 1000, got -0.5"),
        ({"top_k": -1}, "sampling.top_k must be 0 or more, got -1"),
        ({"temperature": 0.0}, "sampling.temperature must be 0.0001 or more, got 0.0; .* use top_k 1"),
        ({"top_p": float("nan")}, "sampling.top_p must be of type float, got nan"),
        ({"top_k": 1.0}, "sampling.top_k must be of type int"),
        ({"cfg_scales": -1}, "sampling.cfg_scales must be 0 or more, got -1"),
        ({"smooth": 1}, "sampling.smooth must be of type bool"),
    ],
)
def test_values_that_cannot_be_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Sampling(**values)


def test_what_people_read():
    assert Sampling(top_k=900).fitted(64).describe() == "temperature 1, top-k 64, top-p 0.95"


def test_an_option_that_is_none_is_a_type_error(pipeline_request):
    with pytest.raises(
        TypeError, match="topp is no sampling option: they are cfg, temperature, top_k, top_p, smooth, cfg_scales"
    ):
        pipeline_request(topp=0.5)


@pytest.fixture
def pipeline_request():
    from engines.draw.request import make_request

    return lambda **options: make_request(Manifest.read(DEMO_BUNDLE), [3], seeds=0, **options)


def test_what_the_loop_alone_obeys_is_no_part_of_any_bundle():
    """The manifest of a bundle that was built before there was such an option is written to the byte as it was."""
    assert [option.name for option in OPTIONS if option.by_loop] == ["cfg_scales"]
    assert list(Sampling().to_dict()) == ["cfg", "temperature", "top_k", "top_p", "smooth"]
    manifest = json.loads((DEMO_BUNDLE / MANIFEST).read_text(encoding="utf-8"))
    assert json.dumps(sealed(Manifest.read(DEMO_BUNDLE).to_dict())) == json.dumps(manifest)
