"""What NVIDIA's Python bindings really offer, version by version, where there is neither a GPU nor NVIDIA's libraries.

    install.py    fetches the bindings of a version and makes them importable; `python -m tests.bindings` too
    dump.py       prints what a module offers as JSON, in a process of its own
    api.py        that JSON as classes, names and signatures
    source.py     our code as syntax trees with scopes
    infer.py      what an expression of our code is: an object of the vendor's, one of ours, or neither;
                  with values.py, types_of.py and calls.py
    scan.py       holds every use of the vendor's API in our code against one version

Names, enum members and signatures are real. Behaviour is not: behind the bindings stand libraries that do nothing.
"""

import pytest

from tests.bindings.api import Api
from tests.bindings.install import PINS, Unavailable, load
from tests.bindings.scan import scan

TENSORRT = tuple(pin for pin in PINS if PINS[pin].product != "cuda")
CUDA = tuple(pin for pin in PINS if PINS[pin].product == "cuda")


def api(pin: str) -> Api:
    """A version by its key in `PINS`; a skip of the test where this machine cannot have it."""
    try:
        return load(PINS[pin])
    except Unavailable as reason:
        pytest.skip(str(reason))


__all__ = ["CUDA", "PINS", "TENSORRT", "Api", "api", "scan"]
