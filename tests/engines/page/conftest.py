"""A server of two models with its page, and a browser that looks at it."""

from contextlib import contextmanager

import pytest

from tests.serving import bundles as bundles  # a fixture
from tests.serving import lacking, serving

if lacking("gradio"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def server(bundles):
    """The address of a server of two models, with a page."""
    with serving(*bundles, "--check", "never", page=True) as (_, address):
        yield address


class Look:
    """One page in a browser: what it asked for, and what it complained about."""

    def __init__(self, page):
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, address):
        self.page.goto(address)
        self.page.wait_for_selector("#draw")
        return self

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def press(self, button, status, text):
        """Press a button, and wait until a line of status holds `text`."""
        self.page.click(f"#{button}")
        self.says(status, text)

    def says(self, status, text):
        self.page.wait_for_function(
            "([place, text]) => document.querySelector(place)?.innerText.includes(text)",
            arg=[f"#{status}", text],
            timeout=60_000,
        )

    def images(self, part):
        """Addresses of the images in a part of the page, once they are there."""
        self.page.wait_for_selector(f"#{part} img")
        return self.page.eval_on_selector_all(f"#{part} img", "all => all.map(one => one.src)")


@pytest.fixture
def looking(chromium):
    """Opens pages, each in a context of its own."""
    contexts = []

    @contextmanager
    def look(address, width=1280, scheme="light", **options):
        context = chromium.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme, **options)
        contexts.append(context)
        yield Look(context.new_page()).open(address)

    yield look
    for context in contexts:
        context.close()
