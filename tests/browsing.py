"""A real Chromium for tests of pages: the system's own, which no package of PyPI is."""

import os
import shutil

import pytest

FOUND = os.environ.get("VAR_EXPORT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def chromium():
    if FOUND is None:
        pytest.skip("no Chromium is installed: apt install chromium, or name one in VAR_EXPORT_CHROMIUM")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield browser
        browser.close()
