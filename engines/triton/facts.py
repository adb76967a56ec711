"""What a model's configuration says of its bundle, for the unary model and for clients: the manifest, without files."""

from __future__ import annotations

import json
from pathlib import Path

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import parse_manifest, read_manifest
from engines.errors import BundleError

FACTS = "manifest"
"""The parameter of config.pbtxt."""
_LEFT_OUT = ("graphs", "plans", "provenance")  # long, or of the machine that built it


def pack_facts(bundle: Bundle) -> str:
    """One line of JSON."""
    manifest = read_manifest(bundle.path)
    return json.dumps({key: value for key, value in manifest.items() if key not in _LEFT_OUT} | {"provenance": {}})


def unpack_facts(text: str, source: str) -> Bundle:
    """A bundle that can be asked, but has no files here. Raises `BundleError`; `source` says where the text is from."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{source} says nothing of a bundle: write the repository again") from error
    return Bundle(path=Path(source), **parse_manifest(manifest, Path(source)))
