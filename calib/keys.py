"""Which code decides what a cache holds: all of this project but a short list, so that no module is forgotten.

A bundle, a table of sensitivities and a figure of `var-export gpu-check` are kept under a key. The digest of the code
is a part of it: whoever changes a module that is not listed here has them made anew.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from engines.storage import source_digest

PACKAGES = ("var_export", "calib", "engines")
"""The whole of this project."""

_NO_FIGURE = (  # a page, a server, or what is done with a finished picture
    *("var_export/cli", "var_export/report", "var_export/gpu_check/report"),
    *("engines/page", "engines/serve", "engines/triton", "engines/joining", "engines/sizing"),
    *("engines/editing", "engines/files", "engines/fleet", "engines/evaluation", "var_export/inception"),
)
_NO_BYTE = (  # what looks at a finished bundle
    *("var_export/cli", "var_export/report", "var_export/gpu_check", "var_export/live", "var_export/inception"),
    *("engines/page", "engines/serve", "engines/triton", "engines/joining", "engines/editing", "engines/files"),
    *("engines/cli", "engines/host", "engines/machine", "engines/errors", "engines/evaluation", "engines/fleet"),
)
FIGURES = _NO_FIGURE
"""Code that decides no figure of `var-export gpu-check`."""
FLOAT_BUNDLE = (
    *_NO_BYTE,
    # Check the finished engines.
    *("calib/judge", "engines/draw", "engines/fidelity", "engines/judging", "engines/backends"),
    # Are of INT8 and INT4 alone.
    *(
        "engines/sizing",
        "calib/choose",
        "calib/observe/collect",
        "calib/rewrite",
        "calib/calibration",
        "calib/quantise",
        "calib/statistics",
    ),
)
"""Code that decides no byte of a bundle which is built from a checkpoint."""
QUANTISED_BUNDLE = (*_NO_BYTE, "var_export", "engines/backends/cuda", "engines/backends/tensorrt")
"""Code that decides no byte of a quantised bundle beside those of its base, whose key covers what it was built by."""


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package, which are named as they are imported."""
    return {name: importlib.metadata.version(name.replace("_", "-")) for name in packages}


def code_digest(without: tuple[str, ...]) -> str:
    """SHA-256 in hex of the project's code but `without`, one of the lists above."""
    return source_digest(PACKAGES, without)
