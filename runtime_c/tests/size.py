"""Prints how many bytes of the stripped aarch64 program come from which part, against the budget."""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

from crosscompile.errors import CompileError
from crosscompile.runtime import AGENT_FLAGS, COMPILE_FLAGS, build_runtime, compiler, run_compiler, sources
from crosscompile.target import target_of_tier

BUDGET_BYTES = 270_000
AGENT_BUDGET_BYTES = 40_000
PARTS = (
    ("RPC agent", lambda path: path.parent.name == "rpc" or path.name == "rpc.c"),
    ("program", lambda path: path.parent.name == "cli"),
    ("tokenizer", lambda path: path.name.startswith(("tokenizer", "unicode", "utf8", "stream"))),
    ("chat template", lambda path: path.name.startswith("template")),
    ("sampler", lambda path: path.name == "sampler.c"),
    ("bundle and JSON", lambda path: path.stem in BUNDLE),
    ("execution", lambda path: True),
)
BUNDLE = ("bundle", "manifest", "json", "sha256", "safetensors", "object", "elf", "file", "region", "status", "model")


def allocated_bytes(path: Path) -> int:
    """Bytes of an ELF64 object's sections that end up in memory and in the file."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    total = 0
    for i in range(count):
        kind, flags = struct.unpack_from("<IQ", data, offset + i * size + 4)
        if flags & 2 and kind != 8:  # SHF_ALLOC, not SHT_NOBITS
            total += int(struct.unpack_from("<Q", data, offset + i * size + 32)[0])
    return total


def main() -> int:
    target = target_of_tier("armv8-neon")
    sums = {name: 0 for name, _ in PARTS}
    with tempfile.TemporaryDirectory() as work:
        for path in sources():
            if path.suffix == ".c":
                flags = [*COMPILE_FLAGS, *AGENT_FLAGS]
                run_compiler([*compiler(target), *flags, "-c", str(path), "-o", "part.o"], Path(work))
                name = next(name for name, belongs in PARTS if belongs(path))
                sums[name] += allocated_bytes(Path(work) / "part.o")
    total = build_runtime(target).stat().st_size
    agent = total - build_runtime(target, agent=False).stat().st_size
    static = build_runtime(target, "musl").stat().st_size
    for name, n_bytes in sums.items():
        print(f"{name:16} {n_bytes:9,}")
    print(f"{'linked, stripped':16} {total:9,}   budget {BUDGET_BYTES:,}: {100 * total / BUDGET_BYTES:.0f} %")
    part = f"budget {AGENT_BUDGET_BYTES:,}: {100 * agent / AGENT_BUDGET_BYTES:.0f} %"
    print(f"{'... of it agent':16} {agent:9,}   {part}")
    print(f"{'static (musl)':16} {static:9,}")
    return int(total > BUDGET_BYTES or agent > AGENT_BUDGET_BYTES)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CompileError as error:
        sys.exit(str(error))
