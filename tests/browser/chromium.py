"""A real browser without a window: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Chromium on this machine; EDGELLM_BROWSER names another one."""
    named = os.environ.get("EDGELLM_BROWSER")
    return named or next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def started(*arguments: str) -> Iterator[Browser]:
    """A running browser. Skips the test where there is none and .ci/setup could get none."""
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(PROGRAMS)}, and EDGELLM_BROWSER names none")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses to run as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*root, *arguments], timeout=300_000)
        yield browser
        browser.close()


def violations(page: Page, tags: Sequence[str] = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")) -> str:
    """What axe-core holds against the page as it is now, as text; empty if nothing."""
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": list(tags)}})
    return str(found.generate_report()) if found.violations_count else ""
