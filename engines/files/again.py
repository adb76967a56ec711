"""What makes a picture again, from the text inside of it: a command of `var-run`, or Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engines.bundle.advice import what_else
from engines.bundle.bundle import DEMO_BUNDLE, place_of, standing_bundles
from engines.bundle.labels import NONE
from engines.bundle.manifest import MANIFEST, Manifest
from engines.draw.collaboration import REFINE_FROM
from engines.draw.request import FORCED
from engines.errors import UsageError
from engines.files.jobs import KEY
from engines.foreign import parse_json
from engines.pictures.images import read_picture_text
from engines.spec.choices import FITS, OPENVINO, PRECISION_HINTS, PROVIDERS
from engines.spec.sampling import OPTIONS, RECOMMENDED, Sampling, SamplingOption
from engines.words import printable

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
    for option, value in _told(text) if "seed" in text else ():
        words += [option.flag] if option.kind == "bool" else [option.flag, _values(value)]
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


def python_of(text: Mapping[str, str]) -> str:
    """The same in Python, for an image that was drawn; empty for pictures made otherwise, as edits are."""
    if FORCED in text or "edited" in text or not text.keys() >= {"class", "seed"}:
        return ""
    wanted = text["class"]
    asked = [repr(wanted) if wanted == NONE else wanted, f"seeds={text['seed']}"]
    asked += [f"{option.name}={value if option.kind == 'bool' else _values(value)}" for option, value in _told(text)]
    place = _bundle_of(text.get("build_key")) or "BUNDLE"
    return f"""from engines import Pipeline

with Pipeline.load({str(place)!r}) as pipeline:
    result = pipeline.generate({", ".join(asked)})
    result.save("image.png")
"""


def area_of(
    *,
    box: Sequence[str] = (),
    files: Mapping[str, str | Path | None],
    objects: Sequence[str] = (),
    score: float | None = None,
    grow: float = 0.0,
    outpaint: bool = False,
    fit: str = FITS[0],
    composite: bool = True,
) -> str:
    """The part of a picture that was redrawn, as options of `var-run edit`; `files` are those it has, by flag."""
    words = [word for each in box for word in ("--box", each)]
    for flag, file in files.items():
        words += [] if file is None else [flag, str(file)]
    words += [word for name in objects for word in ("--object", name)]
    words += [] if score is None else ["--score", f"{score:g}"]
    words += ["--grow", f"{grow:g}"] if grow else []
    words += ["--outpaint"] if outpaint else []
    words += [] if fit == FITS[0] else ["--fit", fit]
    return printable(shlex.join([*words, *([] if composite else ["--no-composite"])]))


def _told(text: Mapping[str, str]) -> Iterator[tuple[SamplingOption, str]]:
    """The sampling options that have to be named: what bundles recommend, and of the others what is not usual."""
    for option in OPTIONS:
        value = text.get(option.name, "")
        if value and (option in RECOMMENDED or value != str(getattr(Sampling(), option.name))):
            yield option, value


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
