"""Every page in a real Chromium: on a telephone and a desktop, light and dark, and on paper."""

import itertools

import pytest

NAMES = ("verify", "failed", "fused", "bench", "sensitivity")
WIDTHS = {"telephone": 390, "desktop": 1280}
# Beyond the page's own edge, or cut off: what must not happen to anything that is shown.
OUTSIDE = """() => [...document.querySelectorAll("main *")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && !element.closest(".wide") && !element.closest("svg")
        && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(element => element.outerHTML.slice(0, 80))"""
HIDDEN = """() => [...document.querySelectorAll("details:not(.long) table")].filter(
    table => !table.checkVisibility({contentVisibilityAuto: true})
).map(table => table.outerHTML.slice(0, 80))"""
# Of charts: text that leaves its drawing, or lies on other text.
OVERLAPS = """() => [...document.querySelectorAll("svg.drawing")].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    const out = boxes.filter(([, b]) => b.left < frame.left - 2 || b.right > frame.right + 2).map(([t]) => t);
    boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && high > 4) out.push(t + " | " + u);
    }));
    return out;
})"""


@pytest.fixture
def visit(chromium):
    """Opens a file; the page, and what it asked for or complained about."""
    contexts = []

    def open_file(file, width, scheme):
        context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.as_uri())
        return page, requests, complaints

    yield open_file
    for context in contexts:
        context.close()


def test_every_page_everywhere(visit, pages):
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    for name in NAMES:
        file = getattr(pages, name)
        for where, width in WIDTHS.items():
            for scheme in ("light", "dark"):
                here = f"{name}, {where}, {scheme}"
                page, requests, complaints = visit(file, width, scheme)
                assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()], here
                assert complaints == [], here
                page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, here
                assert page.evaluate(OUTSIDE) == [], here
                assert page.evaluate(OVERLAPS) == [], here
                sizes = page.evaluate(
                    "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
                )
                assert all(size > 0 for size in sizes), here
                found = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
                assert found.violations_count == 0, f"{here}: {found.generate_report()}"


def test_dark_and_light_are_two(visit, pages):
    colours = {}
    for scheme in ("light", "dark"):
        page, _, _ = visit(pages.verify, 390, scheme)
        colours[scheme] = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('svg.drawing text')).fill]"
        )
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert all(a != b for a, b in zip(colours["light"], colours["dark"], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_on_paper(visit, pages, name):
    page, _, _ = visit(getattr(pages, name), 680, "dark")  # A4 without its margins, at 96 dpi
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate("[...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth + 1)")
    assert page.evaluate(HIDDEN) == []
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_styles_the_order_is_right(visit, pages):
    """Whoever listens hears the verdict first, and one heading of the first level."""
    page, _, _ = visit(pages.failed, 390, "light")
    headings = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert headings[0] == 1 == headings.count(1) and headings[1] == 2
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert page.evaluate("document.querySelector('main').innerText.trim().startsWith('✗ Failed')")
