"""Writes the character maps that SentencePiece compiles into a tokenizer, so that tests need no model of others."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping


def build(images: Mapping[str, str]) -> str:
    """A `precompiled_charsmap`, base64: a double array (github.com/s-yata/darts-clone) of the keys, then the images."""
    texts, places = bytearray(), {}
    for key, image in sorted(images.items()):
        places[key.encode()] = len(texts)
        texts += image.encode() + b"\0"
    units = [0] * 256
    used = [False] * 256
    taken = {0}

    def grow(n: int) -> None:
        while len(units) < n:
            units.extend([0] * 256)
            used.extend([False] * 256)

    def place(at: int, keys: list[bytes], depth: int, start: int) -> None:
        """Gives the node at `at`, which stands for the first `depth` bytes of `keys`, its children."""
        ends = [key for key in keys if len(key) == depth]
        labels = sorted({key[depth] for key in keys if len(key) > depth})
        base = start
        while True:
            grow(base + 512)
            wanted = [*labels, *([0] if ends else [])]
            if base not in taken and not any(used[base ^ label] for label in wanted):
                break
            base += 1
        taken.add(base)
        offset = at ^ base
        assert offset < 1 << 21, "a map of this size needs the other form of offsets"
        units[at] |= offset << 10 | (1 << 8 if ends else 0)
        for label in wanted:
            used[base ^ label] = True
        if ends:
            units[base] = 1 << 31 | places[ends[0]]
        for label in labels:
            units[base ^ label] = label
        for label in labels:
            place(base ^ label, [key for key in keys if len(key) > depth and key[depth] == label], depth + 1, base)

    used[0] = True
    place(0, sorted(places), 0, 1)
    blob = struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(texts)
    return base64.b64encode(blob).decode()
