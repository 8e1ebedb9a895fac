"""The README's pictures of the chat page: `python -m tests.browser.shots BUNDLE docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.chromium import started
from tests.server import SYSTEM, Server

SIZES = {"chat-light": ("light", 900, 520), "chat-dark": ("dark", 420, 520)}
QUESTIONS = ("which lights are on", "is the front door locked")


def main(bundle: Path, folder: Path) -> None:
    server = Server(bundle)
    try:
        with started() as browser:
            for name, (scheme, width, height) in SIZES.items():
                viewport = {"width": width, "height": height}
                page = browser.new_context(color_scheme=scheme, viewport=viewport).new_page()  # type: ignore[arg-type]
                page.goto(server.url)
                page.get_by_text("Settings of this conversation").click()
                page.get_by_label("System prompt").fill(SYSTEM)
                page.get_by_label("Temperature").fill("0")
                page.get_by_text("Settings of this conversation").click()
                for count, question in enumerate(QUESTIONS, 1):
                    page.get_by_label("Message").fill(question)
                    page.keyboard.press("Enter")
                    expect(page.locator("article.assistant:not(.busy)")).to_have_count(count, timeout=120_000)
                page.screenshot(path=folder / f"{name}.png")
    finally:
        server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
