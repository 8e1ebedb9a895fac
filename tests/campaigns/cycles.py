"""Cycles of boards' cores by LLVM's models of them, ours and llama.cpp's, without the boards.

    python -m tests.campaigns.cycles [MODEL] [--weights w4a8,w8a8] [--cores cortex-a76,…] [--kinds prefill,decode]
                                     [--prompt 64,512] [--side edgellm] [--show 10]

An emulator runs both programs and says how often each block of instructions was executed; llvm-mca says how many cycles
a block takes when it follows itself, as inner loops do, with everything in the first cache. So memory is left out: what
a prompt takes, which is bound by instructions, is comparable; of decoding it says whether the core could keep up with
the memory. --show lists the blocks that take most, with --side of one side alone. MODEL: random:smollm2-135m.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crosscompile import checkpoint
from crosscompile.errors import CompileError
from edgellm import cache as caches
from edgellm import hub, virtual_parts
from edgellm.comparison import MATCHES
from edgellm.cross_peer import PROCESSORS, Processor
from edgellm.emulated_bench import DECODE, PREFILL, Counter, counter, loaded, sides
from edgellm.errors import EdgeError

PACKAGES = (
    *("llvm-19", "libllvm19", "libc6", "libgcc-s1", "libstdc++6", "libz3-4", "libzstd1", "zlib1g", "libxml2"),
    *("libedit2", "libtinfo6", "libffi8", "libbsd0", "libmd0", "libicu72", "liblzma5"),
)
_FOLDER = "usr/lib/llvm-19"
_COVERED = 0.992
"""Share of the instructions whose blocks are looked at; the others are taken to be like them."""
_TURNS = 100
_SAME = 10
"""Blocks that follow each other are one unless one is executed 1 / _SAME more often: emulators cut at pages, and the
first turn of a loop belongs to what was before it."""

Executed = dict[tuple[int, str], tuple[int, str]]
"""(Address, bytes in hexadecimal) of a block -> how often it was executed, and its symbol, or "-"."""
Blocks = dict[str, tuple[int, str]]
"""The same without addresses."""
Progress = virtual_parts.Progress


@dataclass(frozen=True)
class Core:
    """A core. processor: whose programs are emulated; model: LLVM's name; options: of llvm-mca."""

    name: str
    processor: Processor
    model: str
    options: tuple[str, ...] = ()


CORES: dict[str, Core] = {
    core.name: core
    for core in (
        # Neoverse N1 is Cortex-A76 with other caches. LLVM lets it dispatch three instructions; Arm's manual has four.
        Core("cortex-a76", PROCESSORS["cortex-a76"], "neoverse-n1", ("-dispatch=4",)),
        Core("cortex-a55", PROCESSORS["cortex-a76"], "cortex-a55"),
        Core("cortex-a72", PROCESSORS["cortex-a72"], "cortex-a72"),
        Core("cortex-a53", PROCESSORS["cortex-a72"], "cortex-a53"),
    )
}
"""Raspberry Pi 5, the small cores of its generation, Raspberry Pi 4, Raspberry Pi 3 and Zero 2 W."""


class Llvm:
    """Debian's llvm-mca and disassembler, fetched if need be and not installed."""

    def __init__(self, progress: Progress) -> None:
        folder = caches.root() / "peers"
        folder.mkdir(parents=True, exist_ok=True)
        self._instructions: dict[str, tuple[str, ...]] = {}
        self._root = virtual_parts.ensure_packages(folder, "llvm", PACKAGES, "fetching LLVM 19 (60 MB)", progress)

    def run(self, tool: str, options: Sequence[str], text: str) -> str:
        """What a tool prints for a text. RuntimeError if it fails."""
        command = [*loaded(self._root, f"{_FOLDER}/lib"), str(self._root / _FOLDER / "bin" / tool), "-triple=aarch64"]
        if tool == "llvm-mca":
            command[-1] = "-mtriple=aarch64"
        done = subprocess.run(
            [*command, "-mattr=+all", *options], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{tool}: {done.stderr.strip()[:300]}\n{text[:300]}")
        return done.stdout

    def instructions(self, code: str) -> tuple[str, ...]:
        """The instructions of a block."""
        if code not in self._instructions:
            text = " ".join(f"0x{code[i : i + 2]}" for i in range(0, len(code), 2))
            lines = (line.strip() for line in self.run("llvm-mc", ["-disassemble"], text).splitlines())
            self._instructions[code] = tuple(line for line in lines if line and not line.startswith("."))
        return self._instructions[code]

    def cycles(self, code: str, core: Core) -> float:
        """Of a block that is executed again and again."""
        lacking = "-skip-unsupported-instructions=lack-sched"  # a few that no inner loop has
        options = [f"-mcpu={core.model}", f"-iterations={_TURNS}", lacking, *core.options]
        said = self.run("llvm-mca", options, "\n".join(self.instructions(code)) + "\n")
        match = re.search(r"Total Cycles:\s+(\d+)", said)
        if match is None:
            raise RuntimeError(f"llvm-mca said no cycles: {said[:300]}")
        return int(match[1]) / _TURNS


def branches(word: str) -> bool:
    """Whether an AArch64 instruction, in hexadecimal as it lies in memory, ends a block by itself."""
    top = int.from_bytes(bytes.fromhex(word), "little") >> 24
    return top in (0x54, 0xD6) or top & 0x7E in (0x34, 0x36) or top & 0x7C == 0x14


def read(lines: Iterable[str]) -> Executed:
    """A file of runtime_c/probe/insns.c. The emulator may translate a block twice, each with a count of its own."""
    found: Executed = {}
    for line in lines:
        address, n, symbol, code = line.split()
        key = int(address, 16), code
        found[key] = (found.get(key, (0, ""))[0] + int(n), symbol)
    return found


def more(few: Executed, many: Executed) -> Executed:
    """What the second run executed more than the first. RuntimeError if code lay elsewhere there."""
    total = sum(n * len(key[1]) for key, (n, _) in few.items())
    elsewhere = sum(n * len(key[1]) for key, (n, _) in few.items() if key not in many)
    if elsewhere > 0.01 * total:
        raise RuntimeError("the two runs have code at different addresses")
    left = {key: (n - few.get(key, (0, ""))[0], symbol) for key, (n, symbol) in many.items()}
    return {key: each for key, each in left.items() if each[0] > 0}


def joined(executed: Executed) -> Blocks:
    """Blocks by their code, those that the emulator cut where there is no branch put together."""
    at: dict[int, tuple[int, str, str]] = {}
    for (place, code), (n, symbol) in executed.items():
        at[place] = max(at.get(place, (0, "", "")), (n, symbol, code))
    used: set[int] = set()
    found: Blocks = {}
    for place in sorted(at):
        if place in used:
            continue
        n, symbol, code = at[place]
        end = place + len(code) // 2
        while end in at and abs(at[end][0] - n) <= n // _SAME and not branches(code[-8:]):
            used.add(end)
            code += at[end][2]
            end = place + len(code) // 2
        found[code] = (found.get(code, (0, ""))[0] + n, symbol)
    return found


def executed(emulators: Counter, processor: Processor, command: Sequence[str]) -> Executed:
    """What a command executes."""
    with tempfile.NamedTemporaryFile("r", prefix="edgellm-blocks-") as file:
        emulators.count(processor, command, Path(file.name))
        return read(Path(file.name).read_text().splitlines())


@dataclass(frozen=True)
class Estimate:
    """Of some tokens: instructions and cycles, and the blocks that were looked at with their shares of the cycles."""

    instructions: float
    cycles: float
    blocks: tuple[tuple[float, float, str, str], ...]


def estimated(blocks: Blocks, core: Core, llvm: Llvm) -> Estimate:
    """blocks: (share, cycles, symbol, code), the largest first."""
    total = sum(n * len(code) // 8 for code, (n, _) in blocks.items())
    seen, cycles, listed = 0, 0.0, []
    for code, (n, symbol) in sorted(blocks.items(), key=lambda each: -each[1][0] * len(each[0])):
        if seen > _COVERED * total:
            break
        seen += n * len(code) // 8
        each = llvm.cycles(code, core)
        cycles += n * each
        listed.append((n * each, each, symbol, code))
    if not listed:
        raise RuntimeError("the longer run executed no more than the shorter one")
    listed.sort(reverse=True)
    return Estimate(total, cycles * total / seen, tuple((share / cycles, *rest) for share, *rest in listed))


def numbers(text: str) -> tuple[int, int]:
    """Two lengths, the shorter first."""
    low, high = (int(each) for each in text.split(","))
    if not 0 < low < high:
        raise argparse.ArgumentTypeError("the first must be the shorter one")
    return low, high


def main() -> int:
    parser = argparse.ArgumentParser(description="Cycles of boards' cores, by LLVM's models of them.")
    parser.add_argument("model", nargs="?", default="random:smollm2-135m", metavar="MODEL")
    parser.add_argument("--weights", default="w4a8", help=f"of {', '.join(MATCHES)}")
    parser.add_argument("--cores", default="cortex-a76,cortex-a72", help=f"of {', '.join(CORES)}")
    parser.add_argument("--kinds", default="prefill,decode", help="of prefill, decode")
    parser.add_argument(
        "--prompt", type=numbers, default=PREFILL, metavar="LOW,HIGH", help="two lengths; between them counts"
    )
    parser.add_argument("--side", choices=("edgellm", "peer"), help="of this side alone")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="the N blocks that take most")
    arguments = parser.parse_args()
    for option, known in (("weights", MATCHES), ("cores", CORES), ("kinds", ("prefill", "decode"))):
        for name in getattr(arguments, option).split(","):
            if name not in known:
                parser.error(f"--{option}: {name!r} is none of {', '.join(known)}")
    console = Console()

    def progress(what: str, *_: float) -> None:
        status.update(escape(what))

    table = Table("weights", "core", "kind", "side", "instructions", "cycles", "ratio", title=arguments.model)
    failed = ""
    try:
        with console.status("") as status:
            for row, found, llvm in rows(arguments, progress):
                table.add_row(*row)
                show(console, found, llvm, arguments.show)
    except (EdgeError, CompileError, RuntimeError) as error:
        failed = str(error)
    if table.rows:
        console.print(table)
    if failed:
        console.print(f"[red]{escape(failed)}[/red]")
    return 1 if failed else 0


def rows(
    arguments: argparse.Namespace, progress: Callable[..., None]
) -> Iterator[tuple[tuple[str, ...], Estimate, Llvm]]:
    """Rows of the table, each with what it was estimated from, as soon as they are known."""
    path, name = hub.resolve(arguments.model, progress)
    source, emulators, llvm = checkpoint.load(path), counter(progress), Llvm(progress)
    each = itertools.product(arguments.cores.split(","), arguments.weights.split(","), arguments.kinds.split(","))
    for core, label, kind in ((CORES[core], label, kind) for core, label, kind in each):
        low, high = {"prefill": arguments.prompt, "decode": DECODE}[kind]
        commands = sides(source, name, MATCHES[label], core.processor, progress).commands
        ours = None
        for side in [arguments.side] if arguments.side else commands:
            runs = (commands[side](n, 1) if kind == "prefill" else commands[side](1, n) for n in (low, high))
            few, many = (executed(emulators, core.processor, run) for run in runs)
            found = estimated(joined(more(few, many)), core, llvm)
            counted = (f"{total / (high - low) / 1e6:.2f} M" for total in (found.instructions, found.cycles))
            ratio = f"{found.cycles / ours:.2f}" if ours else ""
            ours = found.cycles
            yield (label, core.name, kind, side, *counted, ratio), found, llvm


def show(console: Console, found: Estimate, llvm: Llvm, most: int) -> None:
    """The blocks that take most."""
    for share, cycles, symbol, code in found.blocks[:most]:
        instructions = llvm.instructions(code)
        about = f"{100 * share:5.1f} %  {cycles:.1f} cycles, {len(instructions)} instructions"
        console.print(f"{about}  {symbol}: {instructions[0]} …".replace("\t", " "), highlight=False, markup=False)


if __name__ == "__main__":
    raise SystemExit(main())
