"""The float bundle that a quantised one is made from, where another one of its checkpoint was given.

Where a checkpoint lies on this machine is kept in the user's cache folder when a bundle is built from it, under
the digest of its content. No bundle says it: a bundle is copied to others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cli.common import tell
from engines.errors import BundleError, UsageError
from engines.spec.choices import STEPWISE
from engines.storage import cache_folder, write_json
from var_export.cli.common import CheckpointParts

if TYPE_CHECKING:
    from calib.choose.options import QuantisationOptions
    from engines.bundle.bundle import Bundle
    from engines.bundle.manifest import Manifest
    from var_export.checkpoint.load import Checkpoint


def find_base(given: Bundle, how: QuantisationOptions, folders: Sequence[Path]) -> Path | None:
    """The given bundle, or the newest in `folders` of the same model that fits `how`; says which it takes.

    None where there is none.
    """
    from calib.quantise import check_base
    from engines.bundle.bundle import place_of, standing_bundles
    from engines.bundle.manifest import Manifest

    with contextlib.suppress(UsageError):
        check_base(given, how)
        return given.path
    wanted = (given.golden_key, given.smooth, given.labels, how.base_precision)
    for path in (path for folder in folders for path in standing_bundles(folder)):
        with contextlib.suppress(BundleError):
            found = Manifest.read(place_of(path))
            if (found.golden_key, found.smooth, found.labels, found.precision) == wanted and STEPWISE in found.forms:
                tell(f"taking {path}, the {found.precision.upper()} bundle of the same model")
                return path
    return None


@dataclass(frozen=True)
class Origin:
    """The files that a checkpoint is read from."""

    checkpoint: str | None
    """None for the embedded demo."""
    parts: CheckpointParts


def remember(checkpoint: Checkpoint, origin: Origin) -> None:
    """Keep where a checkpoint was read from; it is not kept where nothing can be written."""
    file, parts = _record(checkpoint.sha256), origin.parts
    if file is not None:
        located: dict[str, Any] = {name: _absolute(getattr(parts, name)) for name in ("vae", "config")}
        with contextlib.suppress(UsageError):
            write_json(file, {"checkpoint": _absolute(origin.checkpoint), **vars(parts), **located})


def origin_of(given: Manifest) -> Origin | None:
    """Where the checkpoint of a bundle lies; None where that is not known."""
    from engines.bundle.bundle import DEMO_BUNDLE
    from engines.bundle.manifest import Manifest
    from engines.foreign import MALFORMED, read_json

    with contextlib.suppress(BundleError):
        if given.checkpoint_sha256 == Manifest.read(DEMO_BUNDLE).checkpoint_sha256:
            return Origin(None, CheckpointParts())
    file = _record(given.checkpoint_sha256)
    try:
        known = {} if file is None else read_json(file)
        return Origin(known.pop("checkpoint"), CheckpointParts(**known))
    except MALFORMED:  # a UsageError too
        return None


def as_in(given: Manifest, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a bundle's labels and settings. Raises `UsageError` where the bundle is of another one."""
    if checkpoint.sha256 != given.checkpoint_sha256:
        raise UsageError(f"the checkpoint has changed since {given.name} was built from it: build from it anew")
    return replace(checkpoint, labels=given.labels, sampling=given.sampling)


def _record(sha256: str | None) -> Path | None:
    """The file that keeps where a checkpoint lies; None where nothing can be kept of it."""
    folder = cache_folder()
    if folder is None or sha256 is None or not sha256.isalnum():
        return None
    return folder / "checkpoints" / f"{sha256}.json"


def _absolute(name: str | None) -> str | None:
    from engines.hub import is_hub_name

    there = name is not None and not is_hub_name(name) and Path(name).exists()  # else it stands for the demo
    return str(Path(name or "").absolute()) if there else name
