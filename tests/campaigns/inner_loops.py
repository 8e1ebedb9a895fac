"""The inner loop of every linear kernel of every tier: its instructions, how many per weight byte, and spills.

    python -m tests.campaigns.inner_loops [--tier dotprod] [--show]

A linear layer runs this loop once per column group, for a tile of tokens and row groups; nothing else of it matters.
A spill is an access to the stack inside the loop.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from crosscompile.codegen import compile_object
from crosscompile.kernels.build import divisor
from crosscompile.kernels.linear import default_knobs, quantized_linear, schedule
from crosscompile.packing import GROUP, Packing
from crosscompile.target import TIERS, Tier, target_of_tier

COLUMNS, ROW_GROUPS = 1536, 64
SCALE_BYTES = 2
_LABEL = re.compile(r"(\.LBB\w+):")
_STACK = re.compile(r"\(%[re][sb]p\)|\[sp\b")


@dataclass(frozen=True)
class Loop:
    """instructions of one pass over a tile: `tokens` tokens and one row group of `bytes` stored bytes."""

    tier: str
    kind: str
    tokens: int
    bytes: int
    instructions: tuple[str, ...]

    @property
    def spills(self) -> int:
        return sum(bool(_STACK.search(line)) for line in self.instructions)


def innermost(assembly: str, function: str) -> tuple[str, ...]:
    """The longest loop of a function that holds no other loop."""
    body = assembly[assembly.index(f"\n{function}:") :].partition(".Lfunc_end")[0]
    lines = [line.strip() for line in body.splitlines()]
    code = [s for s in lines if s and (_LABEL.match(s) or not s.startswith((".", "//", "#", "@")))]
    labels = {match[1]: i for i, s in enumerate(code) if (match := _LABEL.match(s))}
    longest: tuple[str, ...] = ()
    for i, line in enumerate(code):
        target = re.search(r"(\.LBB\w+)$", line)
        if not target or labels.get(target[1], i + 1) > i:
            continue
        loop = tuple(s for s in code[labels[target[1]] + 1 : i + 1] if not _LABEL.match(s))
        if len(loop) > len(longest) and not any(".LBB" in s for s in loop[:-1]):
            longest = loop
    return longest


def loop_of(tier: Tier, kind: str, n: int) -> Loop:
    """The inner loop of a linear layer for n rows."""
    packing = tier.packing(kind)
    rows = Packing.parse(packing).rows
    function = quantized_linear(n, rows * ROW_GROUPS, COLUMNS, tier, packing)
    library, _ = compile_object({"kernel": schedule(function, tier, packing)}, target_of_tier(tier.name))
    tokens = divisor(n, default_knobs(tier, packing, n).tokens)
    stored = rows * GROUP // (2 if kind == "w4" else 1) + rows * SCALE_BYTES
    return Loop(tier.name, kind, tokens, stored, innermost(library.inspect_source("asm"), "kernel"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Inner loops of the linear kernels.")
    parser.add_argument("--tier", choices=TIERS, help="only this one")
    parser.add_argument("--show", action="store_true", help="print the instructions too")
    arguments = parser.parse_args()
    table = Table("tier", "weights", "tokens", "instructions", "per weight byte", "per 256 products", "spills")
    for tier in TIERS.values():
        for kind in ("w4", "w8"):
            for n in (1, 64):
                if arguments.tier not in (None, tier.name):
                    continue
                loop = loop_of(tier, kind, n)
                count, products = len(loop.instructions), loop.tokens * tier.rows * GROUP
                each = f"{count / loop.bytes:.2f}" if n == 1 else ""
                cells = (count, each, f"{256 * count / products:.1f}", loop.spills)
                table.add_row(tier.name, kind, str(loop.tokens), *map(str, cells))
                if arguments.show:
                    print(f"{tier.name} {kind}, {loop.tokens} tokens", *loop.instructions, sep="\n    ")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
