"""What the tests of plans share: a model that is quickly described, and looks into a bundle."""

import json

import pytest
from support import tiny_config

from engines.errors import BundleError

CONFIG = tiny_config()
GRAPHS = ("cond", "step", "fused", "decode", "encode", "accumulate")
EMULATED = {"model": (CONFIG, "fp16"), "empty": True}
"""Makes an emulated machine that knows the model of these bundles."""


def manifest(path):
    return json.loads((path / "manifest.json").read_text())


def edit(path, change):
    """Apply `change` to the manifest in place."""
    value = manifest(path)
    change(value)
    (path / "manifest.json").write_text(json.dumps(value))


def files(path):
    """Everything in the bundle and around it, hidden or not."""
    return sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*"))


def refused(run, *words, kind=BundleError):
    """The message with which `run` fails; it is one line and says these words."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message
