"""What the Hugging Face `tokenizers` library believes about Unicode: classes, case, normalization.

The data is measured by tests/campaigns/unicode_tables.py. A class is an ascending tuple of inclusive ranges.
"""

from __future__ import annotations

import base64
import functools
import json
import zlib
from collections.abc import Iterable
from typing import Any

from .unicode_tables import PACKED

Ranges = tuple[tuple[int, int], ...]
LAST = 0x10FFFF


@functools.cache
def tables() -> dict[str, Any]:
    """The tables as the generator wrote them."""
    loaded: dict[str, Any] = json.loads(zlib.decompress(base64.b85decode(PACKED)))
    return loaded


def union(sets: Iterable[Ranges]) -> Ranges:
    """All code points of all sets."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for ranges in sets for pair in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """All code points that are not in `ranges`, which is ascending and disjoint."""
    result, start = [], 0
    for first, last in ranges:
        if first > start:
            result.append((start, first - 1))
        start = last + 1
    if start <= LAST:
        result.append((start, LAST))
    return tuple(result)


@functools.cache
def named(name: str) -> Ranges | None:
    r"""A class by name: a general category ("Lu", "L"), an escape (r"\s"), "numeric", "punctuation", "whitespace"."""
    classes: dict[str, list[int]] = tables()["classes"]
    if name in classes:
        flat = classes[name]
        return tuple(zip(flat[::2], flat[1::2], strict=True))
    members = [named(other) for other in classes if len(other) == 2 and other[0] == name and other.isalpha()]
    return union(member for member in members if member is not None) if members else None


def folded(letter: str) -> Ranges:
    """What the ASCII letter matches when case does not count."""
    flat: list[int] = tables()["folds"][letter.lower()]
    return tuple(zip(flat[::2], flat[1::2], strict=True))
