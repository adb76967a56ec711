"""A server of two models in a process of its own, and the official client of OpenAI for it."""

import pytest

from tests.serving import bundles as bundles  # a fixture
from tests.serving import lacking, serving

if lacking("openai"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def server(bundles):
    """The address of a server of two models."""
    with serving(*bundles, "--check", "never", "--allow-origin", "https://page.example") as (_, address):
        yield address


@pytest.fixture(scope="module")
def client(server):
    import openai

    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as found:
        yield found
