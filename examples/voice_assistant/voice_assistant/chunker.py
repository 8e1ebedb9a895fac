"""Text as it is generated, cut into pieces that can be spoken, the first as early as possible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ABBREVIATIONS = frozenset("mr mrs ms dr prof st vs etc e.g i.e no approx jr sr a.m p.m".split())
_MARKDOWN = re.compile(r"[*_`#>]+|^\s*[-+]\s+", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"[.!?…]+[\"')\]]*(?=\s)|\n+")
_PAUSE = re.compile(r"[,;:](?=\s)")
FIRST_PAUSE_WORDS = 5
"""After so many words, the first piece may end at a comma."""


def spoken(text: str) -> str:
    """What is said of a text: no Markdown, single blanks."""
    return " ".join(_MARKDOWN.sub("", _LINK.sub(r"\1", text)).split())


def pieces(tokens: Iterable[str]) -> Iterator[str]:
    """Sentences of a stream of tokens, each as soon as it is complete, ready to be spoken. None is empty.

    A full stop ends a sentence only before a blank, and not after an abbreviation or a single letter: "3.5 degrees",
    "Dr. No" and "J. Smith" stay whole.
    """
    buffer, first = "", True
    for token in tokens:
        buffer += token
        while (cut := _cut(buffer, first)) is not None:
            piece, buffer = spoken(buffer[:cut]), buffer[cut:]
            if piece:
                first = False
                yield piece
    if piece := spoken(buffer):
        yield piece


def _cut(text: str, first: bool) -> int | None:
    for match in _END.finditer(text):
        word = text[: match.start()].split()[-1:] or [""]
        plain = word[0].lower().strip("(\"'")
        single = match[0].startswith(".") and (plain in _ABBREVIATIONS or (len(plain) == 1 and plain.isalpha()))
        if not single and text[: match.end()].strip():
            return match.end()
    if first:
        for match in _PAUSE.finditer(text):
            if len(text[: match.start()].split()) >= FIRST_PAUSE_WORDS:
                return match.end()
    return None
