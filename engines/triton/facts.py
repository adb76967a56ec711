"""What a model's configuration says of its bundle, for the unary model and for clients: the manifest, without files."""

from __future__ import annotations

import json

from engines.bundle.manifest import Manifest
from engines.errors import BundleError

FACTS = "manifest"
"""The parameter of config.pbtxt."""


def pack_facts(manifest: Manifest) -> str:
    """The manifest as one line of JSON, without what is long or tells of the machine that built the bundle."""
    return json.dumps(manifest.to_dict() | {"graphs": {}, "plans": [], "provenance": {}})


def unpack_facts(text: str, source: str) -> Manifest:
    """What `pack_facts` gave. Raises `BundleError`; `source` says where the text is from."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{source} says nothing of a bundle: write the repository again") from error
    return Manifest.from_dict(document, source)
