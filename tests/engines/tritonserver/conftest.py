"""A real Triton server over the embedded demo model; without one, tests that need it are skipped with the reason."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # triton_server, triton_calls

import triton_server
from triton_server import Server

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.triton.writing.pbtxt import Serving
from engines.triton.writing.repository import plan_python, write

QUEUE = 16
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


@pytest.fixture(scope="session")
def needs_triton():
    reason = triton_server.missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The demo bundle, in batches of up to 8, with a short queue."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write(plan_python(Bundle.open(DEMO_BUNDLE), Serving(queue_size=QUEUE)), folder)
    return folder


@pytest.fixture(scope="session")
def server(needs_triton, repository, tmp_path_factory):
    """Shared: leave it as you found it."""
    with Server(repository, tmp_path_factory.mktemp("server"), *EXPLICIT) as running:
        yield running


@pytest.fixture(scope="session")
def local():
    """What the server must equal."""
    with Pipeline.load(DEMO_BUNDLE) as pipeline:
        yield pipeline
