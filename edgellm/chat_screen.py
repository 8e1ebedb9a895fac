"""A conversation at a terminal: lines that can be edited, and answers as markdown while they come.

Imported only where both ends are a terminal; rich and prompt_toolkit take a moment to load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_REFRESH_HZ = 12
_MARGIN = 2  # rows that stay free below an answer that grows


class Prompt:
    """Reads what the user says. Enter sends; Alt-Enter or a backslash before Enter begins a new line.

    commands: completed with Tab. history: a file that only the user can read, or None.
    """

    def __init__(self, commands: Sequence[str], history: Path | None) -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            history=_history(history),
            key_bindings=_keys(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )

    def read(self) -> str:
        """Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C, both where nothing was typed."""
        return self._session.prompt()


def _history(file: Path | None) -> History:
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            return FileHistory(str(file))
        except OSError:
            pass  # a home that cannot be written to: then for this time only
    return InMemoryHistory()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what Enter was while the terminal did not belong to the prompt
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


class AnswerView:
    """An answer that grows. What is complete is printed for good; only the block under way is drawn again and again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # what is not printed for good yet
        self._has_printed = False
        self._live = Live(
            Text("…", style="dim"),
            console=console,
            transient=True,
            refresh_per_second=_REFRESH_HZ,
            redirect_stderr=False,
        )

    def __enter__(self) -> AnswerView:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.update(Text(""))
        self._live.stop()
        self._print(self._text.strip("\n"))

    def add(self, piece: str) -> None:
        self._text += piece
        if cut := complete(self._text):
            block, self._text = self._text[:cut], self._text[cut:]
            self._live.update(_Tail(self._text))
            self._print(block.strip("\n"))
        else:
            self._live.update(_Tail(self._text))

    def _print(self, block: str) -> None:
        if block:
            if self._has_printed:
                self._console.print()
            self._console.print(markdown(block))
            self._has_printed = True


class _Tail:
    """The end of a text that may be taller than the screen."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(markdown(self._text), options.update(height=None), pad=False)
        rows = max(1, console.size.height - _MARGIN)
        for line in lines[-rows:]:
            yield from line
            yield Segment.line()


def complete(text: str) -> int:
    """How much of a markdown text is blocks that nothing can change any more: up to the last empty line outside of
    code that something unindented follows.
    """
    at = cut = 0
    fence, was_empty = "", False
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if fence:
            fence = "" if bare.startswith(fence) and set(bare) == set(fence) else fence
        else:
            if was_empty and bare and not line[0].isspace():
                cut = at
            if opened := _FENCE.match(line):
                fence = opened[1]
        was_empty = not bare
        at += len(line)
    return cut


def markdown(text: str) -> Markdown:
    """Text as markdown in which line breaks are kept, HTML is text, and links show where they lead."""
    shown = Markdown(text, hyperlinks=False)
    shown.parsed = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(text)
    for token in shown.parsed:
        for child in token.children or ():
            child.type = "hardbreak" if child.type == "softbreak" else child.type
    return shown


def show(console: Console, pieces: Iterable[str]) -> None:
    """Shows an answer while it comes."""
    with AnswerView(console) as view:
        for piece in pieces:
            view.add(piece)
