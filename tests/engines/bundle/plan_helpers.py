"""What the tests of plans share: a model that is quickly described, and looks into a bundle."""

import functools
import json

import support
from support import tiny_config, write_manifest

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
    write_manifest(path, value)


def files(path):
    """Everything in the bundle and around it, hidden or not."""
    return sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*"))


refused = functools.partial(support.refused, kind=BundleError)
