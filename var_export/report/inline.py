"""An SVG file of matplotlib as part of a page: colours that follow the page, ids of its own, an alternative text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from markupsafe import Markup

from var_export.report.palette import LIGHT

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_UNWANTED = (f"{_SVG}metadata", f"{_SVG}style")  # a style would hold for the whole page
LARGEST = 1.35  # CSS pixels of one unit of a drawing, on a wide page
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_COLOUR = re.compile("|".join(_VARIABLES))


def inline(svg: str, name: str, alternative: str) -> Markup:
    """The drawing as an element of a page.

    Args:
        svg: as matplotlib writes it, in colours of `palette.LIGHT`.
        name: of the drawing, one of its kind on the page: its ids begin with it.
        alternative: what it shows, in words.

    """
    root = ElementTree.fromstring(svg)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _UNWANTED:
                parent.remove(child)
    elements = list(root.iter())
    wanted = {target for element in elements for target in _references(element)}
    for element in elements:
        element.tag = element.tag.removeprefix(_SVG)
        attributes = dict(element.attrib)
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                if value in wanted:
                    element.set(key, f"{name}-{value}")
            elif key == f"{_XLINK}href":
                element.set("href", f"#{name}-{value[1:]}")
            else:
                value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
                element.set(key, _COLOUR.sub(lambda found: _VARIABLES[found[0]], value))
    root.attrib.clear()
    root.attrib.update(
        {"class": "drawing", "viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": alternative}
    )
    root.set("style", f"max-width: {LARGEST * width / 16:.1f}rem")  # 16 CSS pixels
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(element: ElementTree.Element) -> list[str]:
    found = [target for value in element.attrib.values() for target in _REFERENCE.findall(value)]
    link = element.get(f"{_XLINK}href")
    return found if link is None else [*found, link[1:]]
