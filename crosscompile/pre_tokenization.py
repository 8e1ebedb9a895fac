"""Pre-tokenizers of tokenizer.json, as the steps of tokenizer.bin that cut text into words (runtime_c/FORMAT.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import pattern, unicode
from .errors import refuse
from .normalization import Writer, flatten, pattern_of
from .pattern import NONE

# Steps; normalizer steps are numbered in normalization.py.
PIECES, PREFIX_SPACE, METASPACE, STAND_INS = 32, 33, 34, 35
BEHAVIORS = {"Isolated": 0, "Removed": 1, "Contiguous": 2, "MergedWithPrevious": 3, "MergedWithNext": 4}
SCHEMES = {"never": 0, "always": 1, "first": 2}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def add_pieces(writer: Writer, node: pattern.Node, behavior: str, invert: bool = False) -> None:
    if behavior not in BEHAVIORS:
        raise refuse(f"split behavior {behavior!r}")
    writer.step(PIECES, writer.program.add(node), BEHAVIORS[behavior], int(invert))


def add_class_pieces(writer: Writer, name: str, behavior: str) -> None:
    ranges = unicode.named(name)
    assert ranges is not None
    add_pieces(writer, pattern.Set(ranges), behavior)


def words_and_marks() -> pattern.Node:
    r"""The Whitespace pre-tokenizer's \w+|[^\w\s]+ with Rust's \w."""
    word, space = unicode.named("word"), unicode.named("whitespace")
    assert word is not None
    assert space is not None
    other = unicode.complement(unicode.union([word, space]))
    return pattern.Choice(tuple(pattern.Repeat(pattern.Set(ranges), 1, NONE, False) for ranges in (word, other)))


def add_metaspace(writer: Writer, step: Mapping[str, Any]) -> None:
    replacement = step.get("replacement", "▁")
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    if scheme not in SCHEMES:
        raise refuse(f"Metaspace prepend_scheme {scheme!r}")
    writer.step(METASPACE, *writer.string(replacement), SCHEMES[scheme])
    if step.get("split", True):
        add_pieces(writer, pattern.exactly(replacement), "MergedWithNext")


def add_pre_tokenizers(writer: Writer, node: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Appends the pre-tokenizer's steps. Returns whether words become bytes, and whether steps follow that see each
    byte as its stand-in (Falcon's split runs of digits)."""
    byte_level = False
    steps = flatten(node, "pretokenizers")
    for step in steps:
        kind = step["type"]
        if byte_level and kind in ("ByteLevel", "Metaspace"):
            raise refuse(f"a {kind} pre-tokenizer after ByteLevel")
        if kind == "Split":
            add_pieces(writer, pattern_of(step["pattern"]), step["behavior"], bool(step.get("invert", False)))
        elif kind == "ByteLevel":
            byte_level = True
            if step.get("add_prefix_space", True):
                writer.step(PREFIX_SPACE)
            if step.get("use_regex", True):
                add_pieces(writer, pattern.parse(GPT2), "Isolated")
            if step is not steps[-1]:
                writer.step(STAND_INS)
        elif kind == "Metaspace":
            add_metaspace(writer, step)
        elif kind == "Digits":
            add_class_pieces(writer, "numeric", "Isolated" if step.get("individual_digits") else "Contiguous")
        elif kind == "Punctuation":
            add_class_pieces(writer, "punctuation", step.get("behavior", "Isolated"))
        elif kind == "WhitespaceSplit":
            add_class_pieces(writer, "whitespace", "Removed")
        elif kind == "Whitespace":
            add_pieces(writer, words_and_marks(), "Removed", invert=True)
        else:
            raise refuse(f"pre-tokenizer {kind}")
    return byte_level, byte_level and steps[-1]["type"] != "ByteLevel"
