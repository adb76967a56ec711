"""The colours of pages and charts, in light and dark.

Text has 4.5:1 or more against `page` and `surface`, lines and marks of charts 3:1 (WCAG 2.2, 1.4.3 and 1.4.11); a test
computes it. Charts are drawn in the light colours, which are then replaced by variables: no two of them are the same.
"""

from __future__ import annotations

LIGHT = {
    "page": "#ffffff",
    "surface": "#f4f6f8",
    "text": "#1a1f25",
    "muted": "#57616c",
    "line": "#d3d9e0",
    "grid": "#e4e8ec",
    "good": "#126a2d",
    "bad": "#b1241c",
    "link": "#1b55c0",
    "s1": "#2159c9",
    "s2": "#bd5309",
    "s3": "#11775a",
    "s4": "#8637b5",
    "s5": "#a4284e",
    "s6": "#6a6c14",
    "s7": "#4b5768",
}
DARK = {
    "page": "#0f1317",
    "surface": "#171c22",
    "text": "#e8edf2",
    "muted": "#a1acb8",
    "line": "#36404a",
    "grid": "#262e36",
    "good": "#66d486",
    "bad": "#ff8b80",
    "link": "#8ab6ff",
    "s1": "#84b2ff",
    "s2": "#ffad6e",
    "s3": "#5ed3ae",
    "s4": "#d3a0ff",
    "s5": "#ff92b2",
    "s6": "#d3d76c",
    "s7": "#b5c1ce",
}
SERIES = tuple(LIGHT[name] for name in LIGHT if name[0] == "s" and name[1:].isdigit())
"""Colours of a chart's curves, points and bars, in this order."""
