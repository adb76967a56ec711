import pytest
from support import need_torch


@pytest.fixture(scope="session", autouse=True)
def exports_are_remembered():
    """All below here may export graphs; see `tests.traces`."""
    need_torch()
