"""The chat page in a real browser, against the real runtime with the demo model."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.chromium import violations
from tests.browser.conftest import PATIENCE_MS
from tests.server import NO_END, SYSTEM, Server

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "runtime_c/serve/page"
LOCKED = "The front door is locked."
MARKDOWN = """\
Some **bold**, *slanted* and `code`, see https://example.org/a_b.

# A heading

1. one
2. two
   - inner

```python
x = "**not bold**"  # <b>
```

| a | b |
|---|---|
| 1 | <i>2</i> |

<img src=x onerror="document.title='taken'"><script>document.title='taken'</script> [a](javascript:alert(1))
"""

expect.set_options(timeout=PATIENCE_MS)


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").press_sequentially(text)
    page.keyboard.press("Enter")


def answered(page: Page) -> str:
    """Waits for the end of the answer; the last one's text."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return page.locator("article.assistant > div").last.inner_text().strip()


def set_up(page: Page, server: Server, system: str = SYSTEM, temperature: str = "0") -> None:
    page.goto(server.url)
    expect(page.locator("#version")).to_have_text(re.compile("^[0-9a-f]{12}$"))
    page.get_by_text("Settings of this conversation").click()
    page.get_by_label("System prompt").fill(system)
    page.get_by_label("Temperature").fill(temperature)
    page.get_by_text("Settings of this conversation").click()


def talk_long(page: Page) -> None:
    """Makes answers of the small model as long as one likes, and as slow as those of a large one."""

    def ask_for_more(route: Route) -> None:
        asked = {**json.loads(route.request.post_data or "{}"), "logit_bias": NO_END}
        route.continue_(post_data=json.dumps(asked))

    page.route("**/v1/chat/completions", ask_for_more)
    client = page.context.new_cdp_session(page)
    client.send("Network.enable")
    conditions = {"offline": False, "latency": 0, "downloadThroughput": 3000, "uploadThroughput": -1}
    client.send("Network.emulateNetworkConditions", conditions)


def remember(page: Page, messages: list[dict[str, Any]]) -> None:
    """Puts a conversation into the page's history, as the page itself would have."""
    talk = {"id": "kept", "title": "kept", "system": "", "temperature": "", "skip": 0, "changed": 1}
    text = json.dumps({**talk, "messages": messages})
    page.evaluate("text => localStorage.setItem('edgellm/kept', text)", text)
    page.reload()


def test_what_is_served_is_the_source_and_is_small(server: Server) -> None:
    headers = {"Accept": "text/html,*/*", "Accept-Encoding": "gzip, br"}
    status, fields, body = server.request("GET", "/", headers=headers)
    assert (status, fields["Content-Encoding"], fields["Content-Type"]) == (200, "gzip", "text/html; charset=utf-8")
    assert len(body) < 15_000
    source = (SOURCE / "chat.html").read_text()
    shown = gzip.decompress(body).decode()
    style, stripped = re.compile(r"<style>.*?</style>", re.DOTALL), {line.strip() for line in source.splitlines()}
    assert set(style.sub("", shown).splitlines()) <= stripped | {""}
    bare = [re.sub(r"/\*.*?\*/|\s|;(?=\s*})", "", style.findall(text)[0]) for text in (shown, source)]
    assert bare[0] == bare[1]
    assert shown.count("innerHTML") == 0
    assert "unsafe" not in fields["Content-Security-Policy"]
    step = [sys.executable, SOURCE / "embed.py", SOURCE / "chat.html"]
    twice = [subprocess.run(step, capture_output=True, check=True) for _ in range(2)]
    assert twice[0].stdout == twice[1].stdout
    for plain in ({}, {"Accept": "text/html"}, {"Accept-Encoding": "gzip"}):  # programs get a line of text
        assert server.request("GET", "/", headers=plain)[2] == b"edgellm-rt is running\n"


def test_a_question_is_typed_and_answered_and_still_there_after_a_reload(page: Page, server: Server) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    set_up(page, server)
    expect(page).to_have_title(server.ready["name"])
    health = json.loads(server.request("GET", "/health")[2])
    assert page.locator("#version").inner_text() == health["sha256"][:12]
    ask(page, "is the front door locked")
    assert answered(page) == LOCKED
    note = page.locator("article.assistant footer").last.inner_text()
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s · context \d+ % full", note), note
    expect(page.get_by_label("Message")).to_be_focused()
    page.reload()
    assert answered(page) == LOCKED
    expect(page.locator("article.user > div")).to_have_text("is the front door locked")
    ask(page, "turn on the kitchen light")  # the second turn sees the first, and the settings were kept
    assert '"turn_on"' in answered(page)
    assert {url.removeprefix(server.url).split("?")[0] for url in requests if not url.startswith("data:")} == {
        "/", "/health", "/v1/models", "/api/board", "/v1/chat/completions",
    }  # fmt: skip


def test_an_answer_streams_and_can_be_stopped(page: Page, server: Server) -> None:
    page.add_init_script(
        "addEventListener('DOMContentLoaded', () => { window.heard = [];"
        "new MutationObserver(() => heard.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), {childList: true}); });"
    )
    set_up(page, server)
    talk_long(page)
    ask(page, "tell me everything")
    busy = page.locator("article.busy > div")
    expect(busy).to_have_text(re.compile(r"\S"))
    before = busy.inner_text().rstrip()
    expect(busy).not_to_have_text(before)
    page.get_by_role("button", name="Stop").click()
    text = answered(page)
    assert len(text) > len(before)
    expect(page.locator("article.assistant footer")).to_contain_text("· stopped")
    said = page.evaluate("heard")  # a screen reader hears the answer once, not token by token
    assert said[0] == "Answering"
    assert len(said) == 2
    assert said[1].startswith("Answer: ")
    page.reload()
    expect(page.locator("article.assistant footer")).to_contain_text("· stopped")
    assert page.locator("article.assistant > div").inner_text().strip() == text


def test_stopping_tells_the_board_and_gives_the_question_back(page: Page, bundle: Path) -> None:
    server = Server(bundle, "--sessions", "1", "--waiting", "200")
    body = json.dumps({"prompt": [5], "n": 16, "max_tokens": 1000, "stream": True, "logit_bias": NO_END})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        set_up(page, server)
        with ExitStack() as others:
            for _ in range(10):  # 160 answers stand before the page's
                other = others.enter_context(server.connect())
                other.sendall((head + body).encode())
            server.wait_for("running", 1)
            page.get_by_label("Message").fill("which lights are on")
            page.keyboard.press("Enter")
            page.keyboard.press("Escape")
            server.wait_for("aborted_total", 1)
        expect(page.get_by_label("Message")).to_have_value("which lights are on")
        expect(page.locator("article")).to_have_count(0)
        page.keyboard.press("Enter")
        assert "Lights on" in answered(page)
    finally:
        assert server.stop() == 0


def test_several_conversations_are_kept_apart_and_can_be_deleted(page: Page, server: Server) -> None:
    set_up(page, server)
    ask(page, "is the front door locked")
    answered(page)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("article")).to_have_count(0)
    ask(page, "which lights are on")
    answered(page)
    entries = page.get_by_role("navigation").locator(".open")
    expect(entries).to_have_text(["which lights are on", "is the front door locked"])
    entries.nth(1).click()
    assert answered(page) == LOCKED
    page.get_by_role("button", name="Answer again").click()
    assert answered(page) == LOCKED
    expect(page.locator("article")).to_have_count(2)
    page.get_by_role("button", name="Delete is the front door locked").click()
    expect(entries).to_have_text(["which lights are on"])
    page.get_by_role("button", name="Undo").click()
    expect(entries).to_have_count(2)
    page.get_by_role("button", name="Delete is the front door locked").click()
    page.reload()
    expect(entries).to_have_text(["which lights are on"])


def test_markdown_becomes_elements_and_never_markup(page: Page, server: Server) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    page.goto(server.url)
    remember(page, [{"role": "user", "content": "<b>hi</b>"}, {"role": "assistant", "content": MARKDOWN}])
    answer = page.locator("article.assistant > div").first
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator("em")).to_have_text("slanted")
    expect(answer.locator("h3")).to_have_text("A heading")
    expect(answer.locator("ol > li")).to_have_count(2)
    expect(answer.locator("ol ul > li")).to_have_text("inner")
    expect(answer.locator("pre code")).to_have_text('x = "**not bold**"  # <b>')
    expect(answer.locator("td")).to_have_text(["1", "<i>2</i>"])
    expect(answer.locator("a")).to_have_count(1)
    expect(answer.locator("a")).to_have_attribute("href", "https://example.org/a_b")
    expect(answer.locator("img, script, b, i")).to_have_count(0)
    expect(page.locator("article.user > div")).to_have_text("<b>hi</b>")
    expect(page).to_have_title(server.ready["name"])
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == 'x = "**not bold**"  # <b>'


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 320])
def test_it_is_accessible(page: Page, server: Server, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 640})
    set_up(page, server)
    assert violations(page) == ""
    remember(page, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": MARKDOWN, "note": "4 tokens"}])
    expect(page.locator("article")).to_have_count(2)
    page.get_by_text("Settings of this conversation").click()
    assert violations(page) == ""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", background))) > 200) == (scheme == "light")
    if width < 500:
        expect(page.get_by_role("navigation")).to_be_hidden()
        menu = page.get_by_role("button", name="Conversations", exact=True)
        expect(menu).to_have_attribute("aria-expanded", "false")
        menu.click()
        expect(menu).to_have_attribute("aria-expanded", "true")
        expect(page.get_by_role("navigation")).to_be_visible()
        assert violations(page) == ""
        menu.click()
    page.reload()
    page.keyboard.press("Shift+Tab")
    for landmark in ("banner", "navigation", "main"):
        assert page.get_by_role(landmark, include_hidden=True).count() == 1  # type: ignore[arg-type]


def test_the_check_finds_what_is_wrong(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.evaluate("document.querySelector('#form label').remove()")
    page.evaluate("document.querySelector('#ask').removeAttribute('placeholder')")
    assert "label" in violations(page)


def test_it_works_with_the_keyboard_alone(page: Page, server: Server) -> None:
    page.goto(server.url)
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.get_by_label("Message")).to_have_value("one\ntwo")
    page.get_by_role("link", name="Skip to the message").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message")).to_be_focused()
    seen = []
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"log", "new"} <= set(seen)


def test_sensors_are_shown_where_they_are(page: Page, server: Server) -> None:
    page.goto(server.url)
    board = json.loads(server.request("GET", "/api/board")[2])
    assert board.keys() == {"temperature_c", "clock_hz", "max_clock_hz", "throttling"}
    rows = page.get_by_role("list", name="Board").locator("li")
    for key, index, absent in (("temperature_c", 0, "no thermometer"), ("clock_hz", 1, "clock unknown"),
                               ("throttling", 2, "throttling unknown")):  # fmt: skip
        if board[key] is None:
            expect(rows.nth(index)).to_have_text(absent)
        else:
            expect(rows.nth(index)).not_to_have_text(absent)
    throttling = {"now": ["under-voltage"], "since_boot": ["under-voltage", "throttled"]}
    hot = {"temperature_c": 84.25, "clock_hz": 1.5e9, "max_clock_hz": 2.4e9, "throttling": throttling}
    page.route("**/api/board", lambda route: route.fulfill(json=hot))  # a board that this machine is not
    page.reload()
    expect(rows).to_have_text(["84.3 °C", "1.50 GHz", "under-voltage"])
    expect(page.locator("#board .alarm")).to_have_count(2)


# ---- what goes wrong ----


def test_a_busy_server_is_explained_and_asked_again(page: Page, bundle: Path) -> None:
    server = Server(bundle)
    try:
        set_up(page, server)
        with ExitStack() as others:
            alert = page.get_by_role("alert")
            while not alert.is_visible():  # a connection that the browser had in reserve serves one more question
                others.enter_context(server.connect())
                if server.request("GET", "/health")[0] == 503:  # no more may come, and the page's used ones gave way
                    ask(page, "is the front door locked")
                    expect(page.get_by_role("button", name="Send")).to_be_visible()
            expect(alert).to_contain_text("The board is busy: too many connections")
            assert violations(page) == ""
        page.get_by_role("button", name="Try again").click()
        assert answered(page) == LOCKED
        expect(page.get_by_role("alert")).to_be_hidden()
    finally:
        assert server.stop() == 0


def test_a_server_that_is_gone_and_comes_back(page: Page, bundle: Path) -> None:
    server = Server(bundle)
    set_up(page, server)
    server.stop()
    ask(page, "is the front door locked")
    expect(page.get_by_role("alert")).to_contain_text("edgellm serve status")
    expect(page.get_by_label("Message")).to_have_value("is the front door locked")
    server = Server(bundle, "--port", str(server.port))
    try:
        page.get_by_role("button", name="Try again").click()
        assert answered(page) == LOCKED
    finally:
        assert server.stop() == 0


def test_a_full_context_is_explained_and_the_oldest_part_left_out(page: Page, server: Server) -> None:
    long = "the kitchen light is on and the desk lamp is off. " * 70
    set_up(page, server)
    remember(page, [{"role": role, "content": long} for role in ("user", "assistant", "user", "assistant")])
    page.get_by_label("Message").fill("is the front door locked")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not fit any more")
    shorten = page.get_by_role("button", name="Leave out the oldest part")
    while shorten.is_visible():
        shorten.click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    answered(page)
    expect(page.locator("article.assistant")).to_have_count(3)
    expect(page.get_by_text("The model no longer sees what stands above.")).to_be_visible()


def test_a_token_is_asked_for(page: Page, bundle: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-enough-token\n")
    token.chmod(0o600)
    server = Server(bundle, "--token-file", str(token))
    try:
        status, fields, _ = server.request("GET", "/v1/models")
        assert (status, fields["WWW-Authenticate"]) == (401, 'Bearer realm="edgellm"')
        page.goto(server.url)
        door = page.get_by_role("dialog", name="This server wants its token")
        expect(door).to_be_visible()
        assert violations(page) == ""
        door.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(door.get_by_label("Token")).to_have_value("")  # it is asked again: hidden in between for a moment only
        expect(door).to_be_visible()
        door.get_by_label("Token").fill("a-long-enough-token")
        page.keyboard.press("Enter")
        expect(door).to_be_hidden()
        expect(page.get_by_role("list", name="Board")).not_to_contain_text("not reached")
        ask(page, "hello")
        assert answered(page) != ""
        assert page.evaluate("localStorage.getItem('edgellm-token')") is None
        page.reload()
        expect(page.get_by_role("list", name="Board")).not_to_contain_text("not reached")
    finally:
        assert server.stop() == 0


# ---- foreign pages ----


def foreign(browser: Browser, address: str, script: Callable[[], str]) -> Any:
    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/foreign", lambda route: route.fulfill(body="<h1>evil</h1>", content_type="text/html"))
        page.goto(address + "/foreign")
        return page.evaluate(script())


@pytest.mark.parametrize("options", [(), ("--listen", "0.0.0.0", "--open")])
def test_a_foreign_page_cannot_use_the_server(browser: Browser, bundle: Path, options: tuple[str, ...]) -> None:
    """Neither across origins (CSRF: a simple request needs no leave), nor with a name that points here (rebinding)."""
    server = Server(bundle, *options)
    post = """async () => { const answer = await fetch('%s/v1/completions', {method: 'POST', mode: '%s',
        body: '{"prompt": "x", "max_tokens": 5}'}); return answer.status; }"""
    try:
        across = foreign(browser, "http://attacker.example", lambda: post % (server.url, "no-cors"))
        assert across == 0  # what came back cannot be read
        name = f"http://evil.example:{server.port}"
        assert foreign(browser, name, lambda: post % (name, "same-origin")) == 403
        assert foreign(browser, server.url, lambda: post % (server.url, "same-origin")) == 200  # its own page may
        assert server.metric("answers_total") == 1
        framed = f"""async () => {{ const frame = document.createElement('iframe'); frame.src = '{server.url}';
            const loaded = new Promise(done => {{ frame.onload = done; }}); document.body.append(frame); await loaded;
            return frame.contentDocument === null; }}"""
        assert foreign(browser, "http://attacker.example", lambda: framed) is True
    finally:
        assert server.stop() == 0
