"""Choices are read by the tables that they choose from, and importing them costs nothing."""

import subprocess
import sys

import numpy as np
import pytest
from support import need_torch

from calib.choose.ranges import choose_range
from calib.statistics import Statistics
from engines.backends.onnxruntime.providers import PROVIDERS
from engines.backends.tensorrt.library import FLAVOURS
from engines.backends.tensorrt.options import COMPATIBILITY_LEVELS
from engines.judging.thresholds import THRESHOLDS
from engines.sizing.cost import BYTES
from engines.sizing.models import official
from engines.sizing.workload import Workload
from engines.spec import choices, contract
from engines.triton.writing.stock import STOCK


def test_every_table_has_a_row_for_each_choice():
    assert tuple(THRESHOLDS) == choices.PRECISIONS
    assert tuple(contract.CACHE_DTYPES) == tuple(BYTES) == choices.FLOAT_PRECISIONS
    assert tuple(PROVIDERS) == choices.PROVIDERS
    assert tuple(COMPATIBILITY_LEVELS) == choices.HARDWARE_COMPATIBILITY
    assert tuple(FLAVOURS) == choices.PLAN_TARGETS
    assert set(STOCK) <= set(choices.TARGETS)
    assert set(choices.HIGH_PRECISIONS.values()) <= set(choices.FLOAT_PRECISIONS)


def test_what_is_traced_is_what_can_be_asked_for():
    need_torch()
    from var_export.graphs.precision import PRECISIONS

    assert tuple(PRECISIONS) == choices.FLOAT_PRECISIONS


def test_defaults_are_choices():
    workload = Workload(config=official("d16"))
    assert workload.precision in choices.PRECISIONS
    assert workload.form in choices.FORMS
    assert workload.chosen_level in choices.LEVELS


@pytest.mark.parametrize("form", choices.BUNDLE_FORMS)
def test_every_form_has_graphs(form):
    assert set(contract.graphs_of(form)) <= set(contract.GRAPHS)


@pytest.mark.parametrize("method", choices.RANGES)
def test_every_way_to_choose_a_range_is_there(method):
    statistics = Statistics()
    statistics.add(np.array([-1.0, 0.5, 2.0], np.float32))
    low, high = choose_range(statistics, method, symmetric=False)
    assert low <= 0 <= high


def test_the_module_loads_nothing_heavy():
    code = "import sys; from engines.spec import choices; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("engines")] == [
        "engines",
        "engines.spec",
        "engines.spec.choices",
    ]
    assert not {"numpy", "click"} & set(loaded)
