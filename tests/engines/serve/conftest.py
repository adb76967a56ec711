"""A server of two models in a process of its own, and the official client of OpenAI for it."""

import importlib.util

import pytest

from tests.bundles import shared_bundle
from tests.serving import serving

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "openai", "httpx")
if not all(map(importlib.util.find_spec, NEEDED)):  # as where only the device's half is tested
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def bundles():
    """FP32 and INT8 of the demo: two models of a server."""
    return shared_bundle("demo-fp32"), shared_bundle("demo-int8")


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
