"""What the tests of pages share: names that need escaping, noise, and a reader of pages."""

from html.parser import HTMLParser

import numpy as np

NASTY = ('<b>&amp; "it\'s"</b>', "$\\frac{$", "\N{PARTY POPPER}", "owl", "<script>alert(1)</script>")
LINKS = ("src", "href", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href", "cite")
VOID = {"meta", "link", "img", "br", "wbr"}


class Reader(HTMLParser):
    """What a page refers to, and its elements."""

    def __init__(self, file):
        super().__init__(convert_charrefs=True)
        self.tags, self.links, self.ids, self.text, self.open, self.images = [], [], [], [], [], []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "wbr":
            self.text.append(" ")
        attributes = dict(attrs)
        self.links += [value for name, value in attributes.items() if name in LINKS]
        self.ids += [value for name, value in attributes.items() if name == "id"]
        if tag == "img":
            self.images.append(attributes)
        assert not any(name.startswith("on") for name in attributes), attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def noise(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
