"""What to tell who named something else than a bundle: what lies there, or what was probably meant."""

from __future__ import annotations

import difflib
from pathlib import Path

from engines.spec.choices import CHECKPOINT_SUFFIXES

_SHOWN = 3  # names in a message
_DEPTH = 3  # folders between a bundle and its plans' files


def what_else(place: Path, manifest: str) -> str:
    """What to do about a path that is no bundle, for the message of an error.

    Args: place: the path; manifest: the name of the file that makes a folder a bundle.
    """
    checkpoint = place.suffix.lower() in CHECKPOINT_SUFFIXES
    if place.is_file():
        for folder in list(place.parents)[:_DEPTH]:
            if (folder / manifest).is_file():
                return f"{place} is not a bundle, but a file of one: name the folder, {folder}"
        if checkpoint:
            return f"{place} is a checkpoint: var-export build {place} makes a bundle of it"
        return f"{place} is not a bundle: a bundle is a folder with a {manifest}"
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir())
        inside = [str(place / name) for name in names if (place / name / manifest).is_file()]
        if inside:
            return f"{place} is a folder of bundles: name one of them, such as {', '.join(inside[:_SHOWN])}"
        if any(name.endswith(".onnx") for name in names):
            return f"{place} is not a bundle: its {manifest} is missing; copy the whole folder, or build it again"
        if any(name.endswith(CHECKPOINT_SUFFIXES) for name in names):
            return f"{place} is a folder with a checkpoint, not a bundle: var-export build {place} makes one of it"
        return f"{place} is not a bundle: a bundle is a folder with a {manifest}"
    beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    close = [str(place.parent / name) for name in difflib.get_close_matches(place.name, beside, n=_SHOWN)]
    meant = f": did you mean {' or '.join(close)}?" if close else ""
    if checkpoint:
        return f"there is no file {place}{meant or '; bundles are made of checkpoints: var-export build CHECKPOINT'}"
    if not meant and not place.is_absolute() and len(place.parts) == 2 and not place.parent.exists():
        meant = (
            f"; of the Hugging Face Hub, name a checkpoint to build from, as hf://{place.as_posix()}/FILE, "
            "or a folder with a bundle, as hf://OWNER/NAME/FOLDER"
        )
    listed = "; var-export list shows those that are here, var-export build makes one"
    return f"there is no bundle at {place}{meant or listed}"
