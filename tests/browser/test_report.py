"""The report of `edgellm bench` in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from edgellm import bench_report
from tests.browser.chromium import violations
from tests.unit.test_bench import document


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 360])
def test_it_is_accessible_and_nothing_is_cut_off(page: Page, tmp_path: Path, scheme: Any, width: int) -> None:
    file = tmp_path / "report.html"
    bench_report.write(document(), file)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(file.as_uri())
    assert violations(page) == ""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    beyond = """() => [...document.querySelectorAll('svg')].flatMap(plot => [...plot.querySelectorAll('text')]
        .filter(text => text.getBoundingClientRect().right > plot.getBoundingClientRect().right + 1)
        .map(text => text.textContent))"""
    assert page.evaluate(beyond) == []
