"""A server in a process of its own, as `var-export serve` starts it, and what its clients do with answers."""

import base64
import importlib.util
import io
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.bundles import shared_bundle

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx")
MODULES = {"var-export": "var_export.cli.main", "var-run": "engines.cli.run"}


def lacking(*more):
    """Whether a package is missing that tests of a server need, as where only the device's half is tested."""
    return not all(map(importlib.util.find_spec, (*_NEEDED, *more)))


@pytest.fixture(scope="session")
def bundles():
    """FP32 and INT8 of the demo: two models of a server."""
    return shared_bundle("demo-fp32"), shared_bundle("demo-int8")


@contextmanager
def serving(*arguments, env=None, page=False, program="var-export"):
    """The process and its address; it is told to stop at the end, and has to."""
    start = f"import sys; from {MODULES[program]} import main; sys.exit(main())"
    command = [sys.executable, "-c", start]
    if program == "var-export":
        command += ["serve", *([] if page else ["--no-page"])]
    command += [*map(str, arguments), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    lines = []
    for line in process.stderr:
        lines.append(line)
        found = re.search(r"serving .* on (http://\S+)/v1", line)
        if found:
            break
    else:
        process.wait()
        raise AssertionError("".join(lines))
    try:
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stderr.close()


def pixels(datum):
    """The pixels (h, w, 3) of an image in a response, or in an event of a stream."""
    with Image.open(io.BytesIO(base64.b64decode(datum.b64_json))) as image:
        return np.asarray(image.convert("RGB"))


def eventually(condition, seconds=10.0):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return found
