"""The command that makes a picture of `var-run` again, from the text inside of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from engines.bundle.advice import what_else
from engines.bundle.bundle import DEMO_BUNDLE, place_of, standing_bundles
from engines.bundle.manifest import MANIFEST, Manifest
from engines.draw.collaboration import REFINE_FROM
from engines.draw.request import FORCED
from engines.errors import UsageError
from engines.files.jobs import KEY
from engines.foreign import parse_json
from engines.pictures.images import read_picture_text
from engines.spec.choices import OPENVINO, PRECISION_HINTS, PROVIDERS
from engines.spec.sampling import OPTIONS, RECOMMENDED, Sampling

AREA = "area"
"""The text that holds which part of a picture was redrawn, as options of a command line."""
_ADDRESS = "triton://HOST:8001"


def settings_of(picture: Path) -> dict[str, str]:
    """What a picture says of how it was made. Raises `UsageError` where it is none of `var-run`'s."""
    text = read_picture_text(picture)
    if text is None:
        raise UsageError(f"{picture} is no whole picture, and {what_else(picture, MANIFEST)}")
    if not text.keys() & {KEY, "build_key"}:
        raise UsageError(
            f"{picture} holds no settings of var-run: they are lost where another program writes a picture"
        )
    return text


def command_of(text: Mapping[str, str]) -> str | None:
    """The command that makes a picture again with these settings, for a POSIX shell; None where there is none.

    Names in capitals stand for what it cannot know: where a bundle is that is not under `bundles/`, or a server.
    """
    if FORCED in text:
        return None
    words = ["var-run", *_subject(text)]
    for option in OPTIONS if "seed" in text else ():
        value = text.get(option.name, "")
        if option.kind == "bool":
            words += [option.flag] if value == "True" else []
        elif value and (option in RECOMMENDED or value != str(getattr(Sampling(), option.name))):
            words += [option.flag, _values(value)]
    if text.get("form") == "fused":
        words += ["--form", "fused"]
    if text.get("provider") == "triton":
        return shlex.join([*words, "--url", _ADDRESS])
    runtime, *settings = text.get("provider", "").split() or [""]
    if runtime == OPENVINO:
        words += ["--backend", OPENVINO]
        for setting in settings:
            words += ["--precision-hint" if setting in PRECISION_HINTS else "--device", setting]
    if text.get("provider") in PROVIDERS[1:]:  # else the CPU, or plans, which are taken where they fit
        words += ["--provider", text["provider"]]
    if REFINE_FROM in text:
        refiner = _bundle_of(text.get("refiner_key")) or "REFINER"
        words += ["--refine", str(refiner), "--refine-from", text[REFINE_FROM]]
    return shlex.join([*words, "--bundle", str(_bundle_of(text.get("build_key")) or "BUNDLE")])


def _subject(text: Mapping[str, str]) -> list[str]:
    """What is drawn, or redrawn, or decoded."""
    if "image" in text:
        return ["reconstruct", text["image"]]
    if "tokens" in text:
        return ["decode", text["tokens"], *(["--grid"] if "images" in text else [])]
    words = []
    if "edited" in text:
        words += ["edit", text["edited"], *shlex.split(text.get(AREA, ""))]
    classes = text.get("class") or _values(text.get("classes", ""))
    words += ["--class", classes, "--seed", text.get("seed", "0")]
    return [*words, "--count", text.get("count", "1"), "--grid"] if "images" in text else words


def _values(text: str) -> str:
    """A value, or a JSON list of some, as an option takes it: `[1.0, 2.0]` is `1,2`."""
    try:
        values = parse_json(text)
    except ValueError:
        return text
    listed = values if isinstance(values, list) else [values]
    return ",".join(f"{value:.9g}" if isinstance(value, float) else str(value) for value in listed)


def _bundle_of(build_key: str | None) -> Path | None:
    """A bundle here that a picture was made with."""
    for bundle in (*standing_bundles(), DEMO_BUNDLE):
        try:
            if Manifest.read(place_of(bundle)).build_key == build_key:
                return bundle
        except UsageError:
            continue
    return None
