"What all tests share: tests marked `slow` run only with `pytest --slow`; `browser` is Chromium."
import shutil

import pytest


def pytest_addoption(parser): parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes, or compares with a large library; runs with --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="module")  # not longer: while it is open, asyncio.run fails in the tests of the same process
def browser():
    "Headless Chromium, driven by Playwright: `browser.new_page(viewport=dict(width=390, height=844))`."
    missing = "Playwright is not installed: pip install -e '.[dev]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=missing)
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None: pytest.skip("there is no Chromium: tools/chromium.sh installs it where it may")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield chromium
        chromium.close()
