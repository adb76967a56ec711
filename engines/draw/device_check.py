"""A device judges itself before it draws: the first image of the golden run, held against what the reference computed.

A bundle that passed where it was built says little about another processor, provider, GPU or version of a runtime. So
the first load of a bundle here draws one golden image with the reference's tokens forced, and a miss is an error. The
verdict is kept in the user's cache folder under a digest of all that it depends on, and is not asked for again.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.draw.rerun import Engines, draw_again, logits_agreement, reconstruction_loss
from engines.errors import CheckFailedError, UsageError
from engines.judging.figures import JudgedFigure, judged_figures
from engines.judging.similarity import psnr
from engines.judging.thresholds import bounds
from engines.machine import machine
from engines.spec.choices import CHECKS, STEPWISE
from engines.storage import cache_folder, digest_of, write_json

log = logging.getLogger(__name__)
SECONDS = 5.0
"""What the scales of the golden image may take; the scale that runs then is the last one that is judged."""
DRAWING, ENCODING = "drawing", "encoding"
"""What is judged, each before its first use: the graphs that draw, and the encoder."""
_MEANS = ("kl", "top1")  # of scales, weighted by their tokens

Measured = Mapping[str, Sequence[float]]
"""Figures of the first golden image by name: a value of each scale that ran, or one for all."""


def measure(engines: Engines, what: str, *, seconds: float = math.inf) -> dict[str, list[float]]:
    """The figures of the first golden image; a PSNR of equal pixels is infinite."""
    golden = {name: array[:1] for name, array in engines.bundle.golden.items()}
    if what == ENCODING:
        return {"reconstruction_loss": [reconstruction_loss(engines, golden, engines.encode(golden["image"]))]}
    if engines.form != STEPWISE:
        drawn = draw_again(engines, golden, forced=golden["tokens"])
        alike = float((drawn.drawn == golden["tokens"]).mean())
        return {"draws": [alike], "image_psnr": [psnr(drawn.images, golden["image"])]}
    scales = logits_agreement(engines, golden, seconds=seconds)
    decoded = engines.decode_features(golden["f_hat"])
    return {
        "max_logit_error": [scale.max_abs for scale in scales],
        "kl": [scale.kl for scale in scales],
        "top1": [scale.top1 for scale in scales],
        "decoder_psnr": [psnr(decoded, golden["image"])],
    }


def judge(engines: Engines, measured: Measured) -> list[JudgedFigure]:
    """Figures of `measure` beside what they must be on any device."""
    recorded = engines.bundle.recorded(engines.form).first
    lengths = engines.config.scale_lengths

    def whole(name: str, values: Sequence[float], scales: int) -> float:
        if name in _MEANS:
            return float(np.average(values[:scales], weights=lengths[:scales]))
        return max(values[:scales], key=lambda value: (math.isnan(value), value))

    values = {name: whole(name, each, len(each)) for name, each in measured.items()}
    known = {name: whole(name, recorded[name], len(each)) for name, each in measured.items() if name in recorded}
    return judged_figures(values, bounds(engines.backend.judged_as(engines.bundle), known))


class DeviceCheck:
    """Judges the engines of one pipeline, each part before its first use."""

    def __init__(self, when: str, tell: Callable[[str], None] | None = None) -> None:
        """Args: when: one of `engines.spec.choices.CHECKS`; tell: called with a line before it takes its time,
        which is logged by default.

        Raises `UsageError`.
        """
        if when not in CHECKS:
            raise UsageError(f"check must be one of {', '.join(CHECKS)}, got {when!r:.60}")
        self._when, self._tell, self._judged = when, tell or log.info, set[str]()
        self._lock = threading.RLock()  # others wait for the verdict; what it takes to judge passes

    def require(self, engines: Engines, what: str) -> None:
        """Raises `CheckFailedError` where the engines miss what the reference computed; `what`: see `DRAWING`."""
        with self._lock:
            if self._when == "never" or what in self._judged:
                return
            self._judged.add(what)
            try:
                self._judge(engines, what)
            except BaseException:
                self._judged.discard(what)
                raise

    def _judge(self, engines: Engines, what: str) -> None:
        file = None if self._when == "always" else _verdict(engines, what)
        if file is not None and file.is_file():
            return
        once = "" if file is None else ", once"
        self._tell(f"holding this machine's {what} against the golden run of {engines.bundle.path}{once}")
        figures = judge(engines, measure(engines, what, seconds=SECONDS))
        missed = [str(figure) for figure in figures if not figure.kept]
        if missed:
            raise CheckFailedError(
                f"this machine does not compute what {engines.bundle.path} is to give: {'; '.join(missed)}. "
                f"{engines.backend.remedy(engines.bundle)}; to draw all the same: --check never"
            )
        if file is not None:
            try:
                write_json(file, {figure.kind.name: figure.shown for figure in figures})
            except UsageError as error:  # a home that cannot be written: asked again next time
                log.debug("the verdict is not kept: %s", error)


def _verdict(engines: Engines, what: str) -> Path | None:
    """The file that is there where these engines passed on this machine; None where there is no place for one."""
    here, runtime = machine(), engines.describe_runtime()
    key = {
        "bundle": engines.bundle.digest,
        "runtime": {name: value for name, value in runtime.items() if name not in ("threads", "nodes")},
        "machine": [here.cpu, here.system],
        "arithmetic": engines.backend.arithmetic(),
        "what": what,
    }
    folder = cache_folder()
    return None if folder is None else folder / "checks" / f"{digest_of(key)}.json"
