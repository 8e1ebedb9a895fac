"""The inner loop of a linear kernel as machine code: what a multiplication costs on a tier, before any board is there.

A linear layer runs this loop once per column group, for a tile of tokens and row groups; nothing else of it matters.
A spill is an access to the stack inside the loop.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from crosscompile.codegen import compile_object
from crosscompile.kernels.linear import (
    LinearKnobs,
    default_knobs,
    effective,
    float_linear,
    quantized_linear,
    schedule,
)
from crosscompile.kinds import BASES
from crosscompile.packing import GROUP, Packing
from crosscompile.target import TIERS, Tier, target_of_tier

COLUMNS, ROW_GROUPS = 1536, 64
_LABEL = re.compile(r"(\.LBB\w+):")
_FMA = re.compile(r"(vfmadd|fmla|vfma|vmla)")
_LANES = {
    "avx2": 8,
    "avx-vnni": 8,
    "avx512-vnni": 16,
    **dict.fromkeys(("armv7-neon", "armv8-neon", "dotprod", "i8mm"), 4),
}
"""Float32 lanes of a fused multiplication and addition."""
_STACK = re.compile(r"\(%rsp\)|\[sp\b")
_FRAME = re.compile(r"\(%rbp\)")
_FRAMED = re.compile(r"movq\s+%rsp, %rbp")
"""What makes %rbp the stack's; otherwise it is a pointer like any other."""


@dataclass(frozen=True)
class Loop:
    """instructions of one pass over a tile: `tokens` tokens, row groups of `bytes` stored bytes, `products` in all.

    groups, parts: whole row groups of the tile, or into how many parts one is cut, of which the tile has one.

    Loops over weights that are not quantized are unrolled as LLVM likes; their bytes and products follow from that.
    """

    tier: str
    kind: str
    tokens: int
    bytes: int
    products: int
    instructions: tuple[str, ...]
    framed: bool = False
    groups: int = 1
    parts: int = 1

    @property
    def spills(self) -> int:
        lines = self.instructions
        return sum(bool(_STACK.search(line) or (self.framed and _FRAME.search(line))) for line in lines)


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


def loop_of(tier: Tier, kind: str, n: int, knobs: LinearKnobs | None = None) -> Loop:
    """The inner loop of a linear layer for n rows."""
    packing = tier.packing(kind)
    form = Packing.parse(packing)
    rows, quantized = form.rows, form.quantized
    if quantized:
        function = quantized_linear(n, rows * ROW_GROUPS, COLUMNS, tier, packing)
    else:
        function = float_linear(n, rows * ROW_GROUPS, COLUMNS, packing)
    knobs = effective(knobs or default_knobs(tier, packing, n), tier, packing, n, ROW_GROUPS)
    library, _ = compile_object({"kernel": schedule(function, tier, packing, knobs)}, target_of_tier(tier.name))
    tokens, groups = knobs.tokens, knobs.groups
    assembly = library.inspect_source("asm")
    loop, framed = innermost(assembly, "kernel"), bool(_FRAMED.search(assembly))
    if quantized:
        eight = form.stored(rows, 8 * GROUP).values()  # whose zero points are one number
        stored = sum(math.prod(shape) * dtype.itemsize for shape, dtype in eight) // 8
        stored, rows = stored // knobs.parts, rows // knobs.parts
        products = tokens * groups * rows * GROUP
        return Loop(tier.name, kind, tokens, groups * stored, products, loop, framed, groups, knobs.parts)
    products = sum(bool(_FMA.match(line)) for line in loop) * _LANES[tier.name]
    stored = products // tokens * (4 if kind == "f32" else 2)
    return Loop(tier.name, kind, tokens, stored, products, loop, framed)


def instruction_table() -> dict[str, dict[str, dict[str, float]]]:
    """Instructions per product by tier, kind of weights, and rows of the activation: "1" or "64"."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for tier in TIERS.values():
        for kind in (*(kind.name for kind in BASES), "f16", "f32"):
            loops = {str(n): loop_of(tier, kind, n) for n in (1, 64)}
            counts = {n: round(len(loop.instructions) / loop.products, 5) for n, loop in loops.items()}
            table.setdefault(tier.name, {})[kind] = counts
    return table
