"""Mutated GGUF files: each is read, or refused with one line that names the file.

    python -m tests.campaigns.gguf --n 2000 --seed 1

Headers of small files (every architecture of tests/data/gguf, and a vocabulary of each kind) get flipped bits, other
numbers, texts and types, and are cut, joined and repeated. Loading, and reading a little of every tensor, must end
within LIMIT_S, in MEMORY_BYTES more than was in use before, and without any error but crosscompile's own. Stops at
the first that does not, and keeps it.
"""

from __future__ import annotations

import argparse
import lzma
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from crosscompile import checkpoint
from crosscompile.errors import CompileError
from tests.gguf_writing import write_vocabulary
from tests.oracle.gguf_checkpoints import FILES

LIMIT_S = 20.0
"""Generous: the machine may do other things."""
MEMORY_BYTES = 1 << 30
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63),
    (1 << 64) - 1,
)


def originals(folder: Path) -> list[bytes]:
    """Files to begin with."""
    found = [lzma.decompress(path.read_bytes()) for path in sorted(FILES.glob("*.gguf.xz"))]
    for kind in ("gpt2", "llama"):
        file = folder / f"{kind}.gguf"
        write_vocabulary(file, kind)
        found += [file.read_bytes()] * 4
        file.unlink()
    return found


def header_bytes(data: bytes) -> int:
    """Roughly where the data begins: behind the last tensor's name."""
    return min(data.rfind(b".weight") + 64, len(data))


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    end = header_bytes(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 12))):
        at = rng.randrange(end)
        kind = rng.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind in (2, 3):
            code, size = rng.choice((("<I", 4), ("<Q", 8)))
            at = min(at, len(changed) - size)
            value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            changed[at : at + size] = struct.pack(code, value)
        elif kind == 4:
            changed[at : at + rng.randint(1, 40)] = b""
        elif kind == 5:
            n = rng.randint(1, 60)
            changed[at:at] = changed[at : at + n]
        elif kind == 6:
            other = rng.randrange(end)
            n = rng.randint(1, 24)
            changed[at : at + n] = changed[other : other + n]
        else:
            del changed[rng.randrange(len(changed)) :]
        end = max(min(end, len(changed) - 8), 1)
        if len(changed) < 16:
            break
    return bytes(changed)


def judge(file: Path) -> str:
    """What became of it: "read", or the error's type. Raises whatever it should not have raised."""
    started = time.monotonic()
    try:
        source = checkpoint.load(file)
        for name in source.tensors:
            source.info(name)
            source.read(name, slice(0, 2))
            source.integers(name, slice(0, 2))
        outcome = "read"
    except CompileError as error:
        text = str(error)
        assert "\n" not in text, text
        assert str(file) in text, text
        outcome = type(error).__name__
    took = time.monotonic() - started
    assert took < LIMIT_S, f"{took:.1f} s"
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=2000, help="files")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        beginnings = originals(Path(folder))
        file = Path(folder) / "fuzzed.gguf"
        file.write_bytes(beginnings[0])
        judge(file)  # imports what is imported late
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        for index in range(arguments.n):
            data = mutated(rng.choice(beginnings), rng)
            file.write_bytes(data)
            try:
                outcomes[judge(file)] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"gguf-{arguments.seed}-{index}.gguf"
                kept.write_bytes(data)
                print(f"file {index} of seed {arguments.seed}, kept as {kept}:")
                raise
    shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{arguments.n} GGUF files: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
