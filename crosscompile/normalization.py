"""Normalizer steps of tokenizer.bin: their encoding, the tables they need, and the same steps in Python.

The Python side only normalizes added tokens at compile time; the board does the text.
"""

from __future__ import annotations

import base64
import struct
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import pattern, unicode
from .errors import TokenizerError, refuse

DECOMPOSE, COMPOSE, MAP, REPLACE, PREPEND, STRIP, CHARSMAP = range(1, 8)

GRAPHEMES = (
    *("CR", "LF", "Control", "Extend", "ZWJ", "Regional_Indicator", "Prepend", "SpacingMark"),
    *("L", "V", "T", "LV", "LVT", "Pictographic", "Consonant", "Linker", "Loose"),
)
"""What decides where grapheme clusters end, numbered from 1."""

Step = Callable[[str], str]


@dataclass
class Tables:
    """Sections MAPS (code point, first value, count), VALUES, MARKS (first, last, class), COMPOSE (a, b, composite),
    CHARSMAP (key, bytes, image, bytes: both in STRINGS) and GRAPHEMES (first, last, kind)."""

    maps: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    compose: list[int] = field(default_factory=list)
    charsmap: list[int] = field(default_factory=list)
    graphemes: list[int] = field(default_factory=list)
    spans: dict[tuple[str, ...], tuple[int, int]] = field(default_factory=dict)

    def span(self, *names: str) -> tuple[int, int]:
        """First entry and number of entries of the map made of the named tables."""
        if names not in self.spans:
            merged = {point: image for name in names for point, image in unicode.tables()[name]}
            first = len(self.maps) // 3
            for point, image in sorted(merged.items()):
                self.maps += [point, len(self.values), len(image)]
                self.values += image
            self.spans[names] = (first, len(merged))
        return self.spans[names]

    def add_marks(self) -> None:
        if not self.marks:
            rows = [
                (flat[i], flat[i + 1], int(value))
                for value, flat in unicode.tables()["marks"].items()
                for i in range(0, len(flat), 2)
            ]
            self.marks = [value for row in sorted(rows) for value in row]

    def add_compose(self) -> None:
        if not self.compose:
            self.compose = [value for row in unicode.tables()["compose"] for value in row]

    def add_graphemes(self) -> None:
        if not self.graphemes:
            rows = [
                (flat[i], flat[i + 1], kind)
                for name, flat in unicode.tables()["graphemes"].items()
                for kind in [GRAPHEMES.index(name) + 1]
                for i in range(0, len(flat), 2)
            ]
            self.graphemes = [value for row in sorted(rows) for value in row]


class Writer(Protocol):
    """What this module needs of the tokenizer's writer."""

    program: pattern.Program
    tables: Tables

    def string(self, text: str) -> tuple[int, int]: ...

    def step(self, kind: int, *arguments: int) -> None: ...


def flatten(node: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, sequences unrolled."""
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [step for member in node[members] for step in flatten(member, members)]
    return [node]


def pattern_of(node: Mapping[str, Any]) -> pattern.Node:
    """A Split or Replace pattern: {"String": …} or {"Regex": …}."""
    if "Regex" in node:
        return pattern.parse(node["Regex"])
    if not node.get("String"):
        raise refuse("an empty pattern")
    return pattern.exactly(node["String"])


def unicode_form(writer: Writer, form: str) -> Step:
    names = ("canonical", "compatible") if "K" in form else ("canonical",)
    writer.tables.add_marks()
    writer.step(DECOMPOSE, *writer.tables.span(*names))
    if form.endswith("C"):
        writer.tables.add_compose()
        writer.step(COMPOSE)
    return lambda text: unicodedata.normalize(form, text)  # type: ignore[arg-type]


def replace(writer: Writer, step: Mapping[str, Any], node: pattern.Node) -> Step:
    writer.step(REPLACE, writer.program.add(node), *writer.string(step["content"]))
    literal = step["pattern"].get("String")

    def apply(text: str) -> str:
        if literal is None:
            raise TokenizerError(
                "tokenizer.json: an added token marked `normalized` together with a Replace normalizer that has a "
                "regular expression is not supported. Mark the token as not normalized."
            )
        return text.replace(literal, step["content"])

    return apply


def strip(writer: Writer, left: bool, right: bool) -> Step:
    space = unicode.named("\\s")
    assert space is not None
    writer.step(STRIP, writer.program.class_of(space), int(left), int(right))
    return lambda text: text.strip() if left and right else text.lstrip() if left else text.rstrip() if right else text


LONGEST_KEY = 5
"""Bytes of a grapheme cluster that is still looked up as a whole, and more than any character has."""


def charsmap_images(blob: bytes) -> dict[bytes, str]:
    """What SentencePiece's double array maps: of keys that begin alike the shortest, for that one is taken.

    TokenizerError where it is damaged.
    """
    damaged = TokenizerError("tokenizer.json: the precompiled_charsmap is damaged. Download the file again.")
    size = struct.unpack("<I", blob[:4])[0] if len(blob) >= 4 else 0
    if size % 4 or not size or 4 + size > len(blob):
        raise damaged
    units, texts = struct.unpack(f"<{size // 4}I", blob[4 : 4 + size]), blob[4 + size :]
    images: dict[bytes, str] = {}
    seen = bytearray(len(units))  # a trie leads to each unit once; what leads there twice may go on for ever

    def follow(at: int, key: bytes) -> None:
        for byte in range(1, 256):
            child = at ^ byte
            if child >= len(units) or units[child] & 0x800000FF != byte:
                continue
            if seen[child]:
                raise damaged
            seen[child] = 1
            below = child ^ units[child] >> 10 << ((units[child] & 1 << 9) >> 6)
            if not units[child] >> 8 & 1:
                if len(key) + 1 < LONGEST_KEY:
                    follow(below, key + bytes([byte]))
                continue
            start = units[below] & 0x7FFFFFFF if below < len(units) else len(texts)
            if start >= len(texts):
                raise damaged
            images[key + bytes([byte])] = texts[start:].partition(b"\0")[0].decode()

    try:
        follow(units[0] >> 10 << ((units[0] & 1 << 9) >> 6), b"")
        for key in images:
            key.decode()
    except UnicodeDecodeError as error:
        raise damaged from error
    return images


def precompiled(writer: Writer, step: Mapping[str, Any]) -> Step:
    """SentencePiece's map of characters, as `tokenizers` applies it: to grapheme clusters of at most five bytes, by the
    shortest key that they begin with, and else to each character."""
    images = charsmap_images(base64.b64decode(step["precompiled_charsmap"], validate=True))
    writer.tables.add_graphemes()
    first = len(writer.tables.charsmap) // 4
    for key, image in sorted(images.items()):
        writer.tables.charsmap += [*writer.string(key.decode()), *writer.string(image)]
    writer.step(CHARSMAP, first, len(images))

    def apply(text: str) -> str:
        if not text.isascii() or "\r" in text:
            raise refuse(f"an added token {text!r} that is normalized by a precompiled_charsmap")
        return "".join(images.get(char.encode(), char) for char in text)

    return apply


def add(writer: Writer, step: Mapping[str, Any]) -> Step:
    """Appends one normalizer to the writer. Returns what it does to a string."""
    kind = step["type"]
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return unicode_form(writer, kind)
    if kind == "Lowercase":
        writer.step(MAP, *writer.tables.span("lowercase"))
        return lambda text: "".join(char.lower() for char in text)
    if kind == "Replace":
        return replace(writer, step, pattern_of(step["pattern"]))
    if kind == "Prepend":
        writer.step(PREPEND, *writer.string(step["prepend"]))
        return lambda text: step["prepend"] + text if text else text
    if kind == "Strip":
        return strip(writer, bool(step["strip_left"]), bool(step["strip_right"]))
    if kind == "StripAccents":
        accents = unicode.named("accents")
        assert accents is not None
        writer.step(REPLACE, writer.program.add(pattern.Set(accents)), *writer.string(""))
        return lambda text: "".join(c for c in text if not any(first <= ord(c) <= last for first, last in accents))
    if kind == "Precompiled":
        return precompiled(writer, step)
    raise refuse(f"normalizer {kind}")
