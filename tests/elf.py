"""As much of an ELF file as tests of the program ask about."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

LOAD, DYNAMIC, INTERPRETER, TLS, GNU_STACK, GNU_RELRO = 1, 2, 3, 7, 0x6474E551, 0x6474E552


class Elf:
    """A file of either word size (System V ABI, chapters 4 and 5)."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        assert self.data[:4] == b"\x7fELF"
        self.wide = self.data[4] == 2
        self.kind, self.machine = struct.unpack_from("<HH", self.data, 16)
        offset = struct.unpack_from("<Q" if self.wide else "<I", self.data, 32 if self.wide else 28)[0]
        size, count = struct.unpack_from("<HH", self.data, 54 if self.wide else 42)
        self.segments = [self._segment(offset + i * size) for i in range(count)]

    def _segment(self, at: int) -> dict[str, int]:
        if self.wide:
            names, values = (
                "kind flags offset address _ bytes memory align",
                struct.unpack_from("<IIQQQQQQ", self.data, at),
            )
        else:
            names, values = (
                "kind offset address _ bytes memory flags align",
                struct.unpack_from("<IIIIIIII", self.data, at),
            )
        return dict(zip(names.split(), values, strict=True))

    def of_kind(self, kind: int) -> list[dict[str, int]]:
        return [segment for segment in self.segments if segment["kind"] == kind]

    def at_address(self, address: int) -> int:
        """File offset of a virtual address."""
        for segment in self.of_kind(LOAD):
            if segment["address"] <= address < segment["address"] + segment["bytes"]:
                return segment["offset"] + address - segment["address"]
        raise AssertionError(f"address {address:#x} is in no segment")

    def dynamic(self) -> Iterator[tuple[int, int]]:
        form = "<qQ" if self.wide else "<iI"
        for segment in self.of_kind(DYNAMIC):
            for at in range(segment["offset"], segment["offset"] + segment["bytes"], struct.calcsize(form)):
                tag, value = struct.unpack_from(form, self.data, at)
                if tag == 0:
                    return
                yield tag, value

    def text(self, offset: int) -> str:
        """A string of the dynamic string table."""
        start = self.at_address(next(value for tag, value in self.dynamic() if tag == 5)) + offset
        return self.data[start : self.data.index(b"\0", start)].decode()

    def needed(self) -> set[str]:
        return {self.text(value) for tag, value in self.dynamic() if tag == 1}

    def versions(self) -> set[str]:
        """Symbol versions it needs ("GLIBC_2.17"), from DT_VERNEED."""
        found = set()
        starts = [self.at_address(value) for tag, value in self.dynamic() if tag == 0x6FFFFFFE]
        for at in starts:
            while True:
                _, count, _, first, following = struct.unpack_from("<HHIII", self.data, at)
                entry = at + first
                for _ in range(count):
                    _, _, _, name, further = struct.unpack_from("<IHHII", self.data, entry)
                    found.add(self.text(name))
                    entry += further
                if not following:
                    break
                at += following
        return found

    def imports(self) -> set[tuple[str, int]]:
        """(name, type of relocation) of what a 64-bit file takes from its libraries."""
        tags = dict(self.dynamic())
        found = set()
        for start, size in ((tags[7], tags[8]), (tags[23], tags[2])):  # DT_RELA, DT_JMPREL
            for at in range(self.at_address(start), self.at_address(start) + size, 24):
                _, kind, symbol = struct.unpack_from("<QII", self.data, at)
                if symbol:
                    name = struct.unpack_from("<I", self.data, self.at_address(tags[6]) + 24 * symbol)[0]
                    found.add((self.text(name), kind))
        return found
