"""Layers of a tiny model quantised alone, and the choice among them, on its golden run."""

import dataclasses
import math

import pytest

from calib.choose.options import QuantisationOptions
from calib.choose.selection import Bounds
from calib.judge import effects as sensitivity
from calib.judge.effects import MULTIPLY_ADDS, SECONDS, measure
from calib.judge.search import choose_ways
from calib.judge.variants import Variants
from calib.rewrite.integers import rewritten
from engines.errors import UsageError
from engines.spec.contract import DECODER, TRANSFORMER
from engines.spec.policy import EDGES, FLOAT, PER_BLOCK, PER_TOKEN, STATIC

pytestmark = pytest.mark.slow

SAVED = {PER_BLOCK: 1.0, PER_TOKEN: 2.0, STATIC: 3.0}


@pytest.fixture(scope="module")
def table(base, calibrated):
    return measure(base, calibrated, QuantisationOptions(), threads=1)


@pytest.fixture
def file(table, tmp_path):
    """The table, as it is kept, with other times: whether products this small save any is left to chance."""
    effects = [dataclasses.replace(effect, saved=SAVED[effect.way]) for effect in table.effects]
    dataclasses.replace(table, effects=effects).save(tmp_path / "s.json")
    return tmp_path / "s.json"


def figures(base, calibrated, part, ways):
    with Variants(base, threads=1) as variants:
        return variants.figures(part, dict(rewritten(variants.models(part), ways, calibrated, QuantisationOptions())))


def test_every_layer_and_way_is_there(table, ways):
    measured = {}
    for effect in table.effects:
        measured.setdefault(effect.layer, []).append(effect.way)
    assert set(measured) == {name for name in ways if name not in EDGES and name != "step/word_embed"}
    assert measured["step/blocks.0.fc2"] == [PER_BLOCK, PER_TOKEN, STATIC]
    assert measured["decode/conv_out"] == [STATIC]
    assert table.unit == SECONDS
    assert len({effect.saved for effect in table.effects}) > 5


def test_effects_are_those_of_one_layer(table, base, calibrated):
    effect = table.find("step/blocks.1.fc1", STATIC)
    alone = figures(base, calibrated, TRANSFORMER, {"step/blocks.1.fc1": STATIC})
    assert effect.kl == alone.total.kl > table.float_kl
    assert effect.top1 == alone.total.top1
    assert effect.psnr is None
    effect = table.find("decode/conv_out", STATIC)
    assert effect.psnr == figures(base, calibrated, DECODER, {"decode/conv_out": STATIC}).psnr
    assert (effect.kl, effect.top1) == (0, 1)


def test_finer_ranges_lose_less(table):
    """What the ways are for."""
    layers = [effect.layer for effect in table.effects if effect.way == STATIC and effect.part == TRANSFORMER]
    block, token, tensor = (sum(table.find(n, way).kl for n in layers) for way in (PER_BLOCK, PER_TOKEN, STATIC))
    assert block < token < tensor


def test_an_interrupted_measurement_goes_on(base, calibrated, table, tmp_path, monkeypatch):
    file = tmp_path / "s.json"
    half = dataclasses.replace(table, effects=table.effects[:-3])
    half.save(file)
    judged = []
    figures_of = Variants.figures
    monkeypatch.setattr(Variants, "figures", lambda self, *args: judged.append(args[0]) or figures_of(self, *args))
    again = measure(base, calibrated, QuantisationOptions(), file=file, threads=1)
    assert len(judged) == 3
    assert [e.layer for e in again.effects] == [e.layer for e in table.effects]
    measure(base, calibrated, QuantisationOptions(), file=file, threads=1)
    assert len(judged) == 3


def test_other_ranges_are_measured_anew(base, calibrated, table, file):
    from calib.choose.ranges import Ranges

    other = measure(base, calibrated, QuantisationOptions(ranges=Ranges(method="minmax")), file=file, parts=(DECODER,))
    assert other.key != table.key
    assert {effect.part for effect in other.effects} == {DECODER}


def test_for_tensorrt_work_stands_for_time(base, calibrated):
    """No GPU is there to time it."""
    options = QuantisationOptions(target="tensorrt")
    table = measure(base, calibrated, options, parts=(DECODER,), threads=1)
    assert table.unit == MULTIPLY_ADDS
    assert all(effect.way == STATIC and effect.saved >= 1 for effect in table.effects)


def test_a_bound_on_kl_is_kept_and_used(base, calibrated, ways, file):
    everything = choose_ways(base, ways, calibrated, options(kl=1e9), file=file, threads=1)
    most = figures(base, calibrated, TRANSFORMER, everything).total.kl
    bound = most / 3
    chosen = choose_ways(base, ways, calibrated, options(kl=bound), file=file, threads=1)
    assert figures(base, calibrated, TRANSFORMER, chosen).total.kl <= bound
    static = [sum(way == STATIC for way in some.values()) for some in (chosen, everything)]
    assert static[0] < static[1]  # what is not, is in a milder way or in float
    assert chosen != dict.fromkeys(chosen, FLOAT)
    assert {n: w for n, w in chosen.items() if n.startswith(("decode", "encode"))} == {
        n: w for n, w in ways.items() if n.startswith(("decode", "encode"))
    }


def test_a_bound_of_nothing_leaves_float(base, calibrated, ways, file):
    chosen = choose_ways(base, ways, calibrated, options(kl=1e-9), file=file, threads=1)
    assert {way for name, way in chosen.items() if name.startswith(("step", "cond"))} == {FLOAT}


def test_a_bound_that_float_misses_is_refused(base, calibrated, ways, file):
    """Its KL is that of another order of sums."""
    with pytest.raises(UsageError, match="cannot be kept"):
        choose_ways(base, ways, calibrated, options(kl=0.0), file=file, threads=1)


def test_a_bound_on_the_image_chooses_convolutions(base, calibrated, ways, file, table):
    whole = figures(base, calibrated, DECODER, {n: w for n, w in ways.items() if n.startswith("decode")}).psnr
    chosen = choose_ways(base, ways, calibrated, options(psnr=whole + 3), file=file, threads=1)
    decoder = {name: way for name, way in chosen.items() if name.startswith("decode")}
    assert figures(base, calibrated, DECODER, decoder).psnr >= whole + 3
    assert {STATIC, FLOAT} == set(decoder.values())
    assert {n: w for n, w in chosen.items() if not n.startswith("decode")} == {
        n: w for n, w in ways.items() if not n.startswith("decode")
    }


def test_layers_that_the_user_named_stay(base, calibrated, ways, file):
    ways = ways | {"step/blocks.0.fc1": STATIC, "step/blocks.0.fc2": FLOAT}
    named = dataclasses.replace(options(kl=1e9), include=("step/blocks.0.fc1",), exclude=("step/blocks.0.fc2",))
    chosen = choose_ways(base, ways, calibrated, named, file=file, threads=1)
    assert (chosen["step/blocks.0.fc1"], chosen["step/blocks.0.fc2"]) == (STATIC, FLOAT)
    strict = dataclasses.replace(named, bounds=Bounds(kl=1e-9))
    with pytest.raises(UsageError, match="--quantize"):
        choose_ways(base, ways, calibrated, strict, file=file, threads=1)


def test_a_calibration_that_lacks_a_layer_is_one_line(base, calibrated):
    tensors = {name: seen for name, seen in calibrated.tensors.items() if not name.startswith("step/blocks.1.fc1:")}
    with pytest.raises(UsageError, match=r"never reached step/blocks\.1\.fc1"):
        measure(base, dataclasses.replace(calibrated, tensors=tensors), QuantisationOptions(), threads=1)


def test_the_file_lies_beside_the_calibration(tmp_path):
    for options, name in {
        QuantisationOptions(target="tensorrt"): "tensorrt",
        QuantisationOptions(precision="int4"): "int4-onnxruntime",
    }.items():
        found = sensitivity.sensitivity_file(tmp_path / "m.calibration.json", options)
        assert found == tmp_path / f"m.calibration.sensitivity-{name}.json"


def test_nothing_is_left_behind(base, table):
    assert not [file for file in base.path.parent.iterdir() if file.name.startswith(".graphs")]


def options(**bounds):
    assert all(math.isfinite(bound) for bound in bounds.values())
    return QuantisationOptions(bounds=Bounds(**bounds))
