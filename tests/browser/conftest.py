"""One bundle of the demo model, and one browser, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.chromium import started
from tests.server import Server, compile_demo

PATIENCE_MS = 300_000


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_demo(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    server = Server(bundle)
    yield server
    assert server.stop() == 0


@pytest.fixture(
    scope="module"
)  # Playwright's event loop runs as long as it does, and other files' tests have their own
def browser() -> Iterator[Browser]:
    """A browser for which evil.example is this machine, as an attacker's name server would have it, and which does not
    itself keep foreign pages away from this machine, as older ones do not.
    """
    switches = ("--host-resolver-rules=MAP evil.example 127.0.0.1", "--disable-features=LocalNetworkAccessChecks")
    with started(*switches) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page; what goes wrong in it fails the test."""
    mistakes: list[str] = []
    with browser.new_context(viewport={"width": 1000, "height": 700}) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        yield page
        assert mistakes == []
