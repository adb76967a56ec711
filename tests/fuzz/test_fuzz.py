"""Some 300 cases of `tests.fuzz`, in a child process for each class."""

from collections import Counter

import pytest

from tests.fuzz.running import results
from tests.fuzz.worker import FAULT, REFUSED
from tests.support import need_torch

COUNTS = {"bundles": 120, "checkpoints": 70, "requests": 80, "commands": 40}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_nothing_foreign_comes_of_what_is_odd(name):
    need_torch()
    found = list(results(name, 0, COUNTS[name]))
    assert [each["case"] for each in found] == list(range(COUNTS[name]))
    assert [each for each in found if each["outcome"] == FAULT] == []
    outcomes = Counter(each["outcome"] for each in found)
    assert outcomes[REFUSED] > COUNTS[name] // 10, outcomes  # the cases are odd enough
    assert len(outcomes) > 1, outcomes  # and some are honest enough to be looked at further
