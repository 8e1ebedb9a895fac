"""The inner loop of every linear kernel of every tier: its instructions, how many per weight byte, and spills.

python -m tests.campaigns.inner_loops [--tier dotprod] [--show]
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from crosscompile.inner_loop import loop_of
from crosscompile.kinds import KINDS
from crosscompile.target import TIERS


def main() -> int:
    parser = argparse.ArgumentParser(description="Inner loops of the linear kernels.")
    parser.add_argument("--tier", choices=TIERS, help="only this one")
    parser.add_argument("--show", action="store_true", help="print the instructions too")
    arguments = parser.parse_args()
    table = Table("tier", "weights", "tokens", "instructions", "per weight byte", "per 256 products", "spills")
    for tier in TIERS.values():
        for kind in KINDS:
            for n in (1, 64):
                if arguments.tier not in (None, tier.name):
                    continue
                loop = loop_of(tier, kind, n)
                count = len(loop.instructions)
                each = f"{count / loop.bytes:.2f}" if n == 1 else ""
                cells = (count, each, f"{256 * count / loop.products:.1f}", loop.spills)
                tile = {(1, 1): "", (1, 2): " (half a row group)"}.get(
                    (loop.groups, loop.parts), f" (of {loop.groups} row groups)"
                )
                table.add_row(tier.name, kind, f"{loop.tokens}{tile}", *map(str, cells))
                if arguments.show:
                    print(f"{tier.name} {kind}, {loop.tokens} tokens", *loop.instructions, sep="\n    ")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
