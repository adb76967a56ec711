"""Many images on many devices: hours, and who is slower, the devices or the driver."""

import pytest

from engines.errors import UsageError
from engines.sizing import models
from engines.sizing.estimate import Estimate
from engines.sizing.job import JobEstimate, parse_workers
from engines.sizing.workload import Workload


def job(workers, images=50_000, model="d16"):
    count, device = parse_workers(workers)
    return JobEstimate(Estimate(Workload(config=models.official(model), images=8), device), images, count)


def test_more_workers_take_less_until_the_driver_binds():
    one, eight, many = job("1xl4"), job("8xl4"), job("5000xl4")
    assert eight.drawing_seconds == pytest.approx(one.drawing_seconds / 8)
    assert one.seconds == pytest.approx(50_000 / one.each.images_per_s)
    assert (eight.bound_by, many.bound_by) == (eight.each.bound_by, "driver")
    assert many.seconds == many.driver_seconds == one.driver_seconds > 0
    assert many.to_dict()["bound_hours"] == pytest.approx(many.driver_seconds / 3600)


def test_larger_images_cost_the_driver_more():
    assert job("1xl4", model="d36").driver_seconds > job("1xl4").driver_seconds
    assert job("1xl4", images=100).driver_seconds == pytest.approx(job("1xl4").driver_seconds / 500)


@pytest.mark.parametrize("text", ["l4", "0xl4", "8x", "x8", "-1xl4", "8 l4", "8xcpu", "8xnothing"])
def test_what_are_no_workers(text):
    with pytest.raises(UsageError):
        parse_workers(text)
