"""Prints how many bytes of the stripped aarch64 program come from which part, against the budget."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from crosscompile.errors import CompileError
from crosscompile.runtime import (
    AGENT_FLAGS,
    AGENT_LINK_FLAGS,
    LINK_FLAGS,
    SERVER_FLAGS,
    SMALL_FLAGS,
    build_runtime,
    compile_flags,
    compiler,
    embed_page,
    is_small,
    run_compiler,
    sources,
)
from crosscompile.target import Target, target_of_tier

TRUST, TRUST_BUDGET_BYTES = "trust", 20_000  # signatures and encryption
AGENT_BUDGET_BYTES = 40_000
SERVER_BUDGET_BYTES = 110_000  # with the grammars; the chat page is to fit in here too
GRAMMAR = "grammars"
BUDGET_BYTES = 230_000 + AGENT_BUDGET_BYTES + SERVER_BUDGET_BYTES + TRUST_BUDGET_BYTES
PARTS = (
    ("server", lambda path: path.parent.name == "serve" or path.name in ("serve.c", "supervise.c", "supervisor.c")),
    ("RPC agent", lambda path: path.parent.name == "rpc" or path.name == "rpc.c"),
    (TRUST, lambda path: path.parent.name == "monocypher" or path.stem in TRUSTS),
    (GRAMMAR, lambda path: path.stem in GRAMMARS),
    ("program", lambda path: path.parent.name == "cli"),
    ("tokenizer", lambda path: path.name.startswith(("tokenizer", "unicode", "utf8", "stream"))),
    ("chat template", lambda path: path.name.startswith("template")),
    ("sampler", lambda path: path.name == "sampler.c"),
    ("bundle and JSON", lambda path: path.stem in BUNDLE),
    ("execution", lambda path: True),
)
GRAMMARS = (
    "grammar",
    "grammar_json",
    "grammar_number",
    "grammar_text",
    "pattern",
    "schema",
    "schema_choice",
    "schema_lists",
    "matcher",
    "ways",
    "vocabulary",
    "constrained",
)
TRUSTS = ("signature", "encrypted", "trust", "board_trust")
BUNDLE = ("bundle", "manifest", "json", "sha256", "safetensors", "object", "elf", "file", "region", "status", "model")


def sections(path: Path) -> dict[str, int]:
    """Bytes of an ELF64 object's sections, by name, that end up in memory and in the file."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count, names_at = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    names = data[headers[names_at][4] :]
    found: dict[str, int] = {}
    for name_at, kind, flags, _, _, n_bytes in headers:
        if flags & 2 and kind != 8:  # SHF_ALLOC, not SHT_NOBITS
            name = names[name_at : names.index(b"\0", name_at)].decode()
            found[name] = found.get(name, 0) + n_bytes
    return found


def parts(target: Target, work: Path) -> dict[str, int]:
    """Bytes of each part's sections that the linker keeps."""
    objects = {}
    embed_page(work)
    for index, path in enumerate(path for path in sources() if path.suffix == ".c"):
        objects[f"{index}.o"] = path
        run_compiler(
            [
                *(*compiler(target), *compile_flags(target), *AGENT_FLAGS, *SERVER_FLAGS),
                *(SMALL_FLAGS if is_small(path) else ()),
                *("-I.", "-c", str(path), "-o", f"{index}.o"),
            ],
            work,
        )
    flags = [*compile_flags(target), *LINK_FLAGS, *AGENT_LINK_FLAGS, "-Wl,--print-gc-sections"]
    link = [*compiler(target), *flags, *objects, "-lpthread", "-o", "out"]
    said = subprocess.run(link, cwd=work, capture_output=True, text=True, check=True)
    unused = set(re.findall(r"unused section (?:.*/)?(\d+\.o):\((.+)\)", said.stdout + said.stderr))
    if not unused:
        raise CompileError("the linker does not say which sections it leaves out")
    sums = {name: 0 for name, _ in PARTS}
    for name, path in objects.items():
        part = next(part for part, belongs in PARTS if belongs(path))
        sums[part] += sum(n for section, n in sections(work / name).items() if (name, section) not in unused)
    return sums


def main() -> int:
    target = target_of_tier("armv8-neon")
    with tempfile.TemporaryDirectory() as work:
        sums = parts(target, Path(work))
    total = build_runtime(target).stat().st_size
    agent = total - build_runtime(target, agent=False).stat().st_size
    server = total - build_runtime(target, server=False).stat().st_size
    static = build_runtime(target, "musl").stat().st_size
    for name, n_bytes in sums.items():
        budget = f"   budget {TRUST_BUDGET_BYTES:,}" if name == TRUST else ""
        print(f"{name:16} {n_bytes:9,}{budget}")
    print(f"{'linked, stripped':16} {total:9,}   budget {BUDGET_BYTES:,}: {100 * total / BUDGET_BYTES:.0f} %")
    part = f"budget {AGENT_BUDGET_BYTES:,}: {100 * agent / AGENT_BUDGET_BYTES:.0f} %"
    print(f"{'... of it agent':16} {agent:9,}   {part}")
    server += sums[GRAMMAR]
    part = f"budget {SERVER_BUDGET_BYTES:,}: {100 * server / SERVER_BUDGET_BYTES:.0f} %, with the grammars"
    print(f"{'... of it server':16} {server:9,}   {part}")
    print(f"{'static (musl)':16} {static:9,}")
    too_large = total > BUDGET_BYTES or agent > AGENT_BUDGET_BYTES or sums[TRUST] > TRUST_BUDGET_BYTES
    too_large = too_large or server > SERVER_BUDGET_BYTES
    return int(too_large)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CompileError as error:
        sys.exit(str(error))
