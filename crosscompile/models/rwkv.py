"""RWKV-7 as Relax modules: what stands for attention, and a feed-forward that sees the token before."""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from crosscompile.kernels.recurrent import Recurrent
from crosscompile.kernels.rwkv import KeyHeads, delta_scan, rwkv_keys, token_shift, value_blend
from crosscompile.models.design import Rwkv
from crosscompile.models.experts import made_later
from crosscompile.models.selective import Scale, narrowed, scanned

Tensor = Any


def key_heads(hidden: int, made: Rwkv) -> KeyHeads:
    """The shape of a layer."""
    return KeyHeads(hidden // made.head_dim, made.head_dim)


def states_of(layer: int, hidden: int, made: Rwkv) -> tuple[Recurrent, Recurrent]:
    """What a layer keeps: the last rows of both its halves, and a matrix per head."""
    return Recurrent(f"shift.{layer}", hidden, 2), Recurrent(f"delta.{layer}", hidden, made.head_dim)


def difference(x: Tensor, rows: Any, state: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """(the row before minus x, state). half: of the layer, 0 or 1."""
    n, hidden = x.shape
    return scanned(token_shift(n, hidden, half), "token_shift", [x], rows, state, (n, hidden))


def shifted(x: Tensor, moved: Tensor, share: Tensor) -> Tensor:
    """x + share · (the row before minus x)."""
    return made_later("ellm.shifted", [x, moved, share], [(tuple(x.shape), "float32")])


class LowRank(nn.Module):
    """A product of two thin matrices, with a squashing function between them. Kept in floats: it decides of a state."""

    def __init__(self, hidden: int, rank: int, kind: str = "", bias: bool = True) -> None:
        self.rank, self.kind = rank, kind
        self.down_proj = nn.Linear(hidden, rank, bias=False)
        self.up_proj = nn.Linear(rank, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down_proj(x)
        if self.kind:
            low = made_later(f"ellm.squash:{self.rank}:{self.kind}", [low], [((x.shape[0], self.rank), "float32")])
        else:
            low = narrowed(low, self.rank)
        return self.up_proj(low)


class TimeMix(nn.Module):
    """What stands for attention."""

    def __init__(self, hidden: int, made: Rwkv) -> None:
        self.made, self.heads = made, key_heads(hidden, made)
        for letter in "rwkvag":
            setattr(self, f"x_{letter}", nn.Parameter((1, 1, hidden)))
        self.r_proj, self.k_proj, self.v_proj = (nn.Linear(hidden, hidden, bias=False) for _ in range(3))
        self.w = LowRank(hidden, made.decay_rank, "tanh")
        self.a = LowRank(hidden, made.rate_rank)
        if made.value_rank:
            self.v = LowRank(hidden, made.value_rank)
        self.g = LowRank(hidden, made.gate_rank, "sigmoid", bias=False)
        self.k_k, self.k_a = nn.Parameter((hidden,)), nn.Parameter((hidden,))
        self.r_k = nn.Parameter((self.heads.heads, self.heads.dim))
        self.norm = Scale(hidden)
        self.norm_bias = nn.Parameter((hidden,))
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, rows: Any, shift: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, hidden = x.shape
        moved, shift = difference(x, rows, shift, 0)
        r, w, k, v, a, g = (shifted(x, moved, getattr(self, f"x_{letter}")) for letter in "rwkvag")
        value = self.v_proj(v)
        if self.made.value_rank:
            gate = self.v(v)
            blend = value_blend(n, hidden)
            value = op.tensor_ir_op(
                blend,
                "value_blend",
                [value, rows.first_values, gate],
                out=nn.Tensor.placeholder((n, hidden), "float32"),
            )
        else:
            rows.first_values = value
        asked = self.r_proj(r)
        keys = op.tensor_ir_op(
            rwkv_keys(n, self.heads),
            "rwkv_keys",
            [self.k_proj(k), self.w(w), self.a(a), self.k_k, self.k_a],
            out=nn.Tensor.placeholder((n, 4 * hidden), "float32"),
        )
        y, state = scanned(delta_scan(n, self.heads), "delta_scan", [asked, keys, value], rows, state, (n, hidden))
        name = f"ellm.head_norm:{self.heads.heads}:{self.made.epsilon!r}"
        given = [y, asked, keys, value, self.g(g), self.r_k, self.norm.weight, self.norm_bias]
        return self.o_proj(made_later(name, given, [((n, hidden), "float32")])), shift, state


class ChannelMix(nn.Module):
    """The feed-forward: relu² between two matrices."""

    def __init__(self, hidden: int, width: int) -> None:
        self.width = width
        self.x_k = nn.Parameter((hidden,))
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, rows: Any, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(result, state)."""
        moved, shift = difference(x, rows, shift, 1)
        h = self.up_proj(shifted(x, moved, self.x_k))
        h = made_later("ellm.activated:relu2", [h], [((x.shape[0], self.width), "float32")])
        return self.down_proj(h), shift
