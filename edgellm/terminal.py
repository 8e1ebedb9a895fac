"""Text that came from somewhere else, made safe to show."""

from __future__ import annotations

_KEPT = {"\n", "\t"}


def printable(text: str) -> str:
    """Removes what would let text command a terminal: C0 and C1 controls except newline and tab, and the Unicode
    direction overrides that reorder what stands around them. Lone surrogates cannot be written; they become U+FFFD.
    """
    return "".join(
        "\ufffd" if 0xD800 <= ord(character) < 0xE000 else character for character in text if _harmless(character)
    )


def one_line(text: str, limit: int = 400) -> str:
    """Printable text on one line, at most `limit` characters: for error messages."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def size(n_bytes: float) -> str:
    """A number of bytes for people, in decimal units: "8.4 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def _harmless(character: str) -> bool:
    code = ord(character)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return character in _KEPT
    return not (0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069)
