"""An SVG file of matplotlib as part of a page: colours that follow the page, ids of its own, an alternative text."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from var_export.report.palette import LIGHT

LARGEST = 1.35  # CSS pixels of one unit of a drawing, on a wide page
_ROOT = re.compile(r'.*<svg [^>]*viewBox="0 0 (\S+) (\S+)"[^>]*>', re.DOTALL)
# A style would hold for the whole page.
_UNWANTED = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_LINK = re.compile(r'(?:xlink:)?(href="|url\()#([^")]+)')
_ID = re.compile(r' id="([^"]+)"')
_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_COLOUR = re.compile(f": ({'|'.join(_VARIABLES)})")


def inline(svg: str, name: str, alternative: str) -> Markup:
    """A drawing of matplotlib's, in colours of `palette.LIGHT`, as an element of a page.

    All its ids begin with `name`, which is one of its kind on the page; `alternative` says what it shows, in words.
    """
    root = _ROOT.match(svg)
    assert root is not None
    width, height = (float(size) for size in root.groups())
    inside = _UNWANTED.sub("", svg[root.end() :])
    wanted = {found[2] for found in _LINK.finditer(inside)}
    inside = _ID.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in wanted else "", inside)
    inside = _LINK.sub(rf"\1#{name}-\2", inside)
    inside = _COLOUR.sub(lambda found: f": {_VARIABLES[found[1]]}", inside)
    return Markup(
        f'<svg class="drawing" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alternative)}" '
        f'style="max-width: {LARGEST * width / 16:.1f}rem">{inside}'  # 16 CSS pixels
    )
