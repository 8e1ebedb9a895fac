"""Mamba 1 and 2 as Relax modules. What depends on packing is named here, and made by lower_operators."""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from crosscompile.arithmetic import LANES
from crosscompile.kernels.recurrent import Recurrent, ScanHeads, causal_conv, head_scan, selective_scan
from crosscompile.models.design import Selective
from crosscompile.models.experts import made_later

Tensor = Any


def heads_of(made: Selective) -> ScanHeads:
    """Mamba 2's shape."""
    return ScanHeads(made.heads, made.inner // made.heads, made.groups, made.states, made.limit)


def states_of(layer: int, made: Selective) -> tuple[Recurrent, Recurrent]:
    """What a layer keeps: the last inputs of its convolution, and the state of its scan."""
    channels = heads_of(made).convolved if made.heads else made.inner
    return (
        Recurrent(f"conv.{layer}", channels, made.width - 1),
        Recurrent(f"scan.{layer}", made.inner, made.states),
    )


def narrowed(x: Tensor, count: int, groups: int = 1, epsilon: float = 0.0) -> Tensor:
    """The first columns, if rows are padded or to be normalized."""
    if count % LANES == 0 and not epsilon:
        return x
    return made_later(f"ellm.narrow:{count}:{groups}:{epsilon!r}", [x], [((x.shape[0], count), "float32")])


def scanned(
    kernel: Any, name: str, given: list[Tensor], rows: Any, state: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(result, state) of a kernel that takes rows in order and changes the state in place."""
    given = [*given, rows.positions, rows.slots, state]
    out = nn.Tensor.placeholder(shape, "float32")
    state, y = op.tensor_ir_inplace_op(kernel, name, given, inplace_indices=[len(given) - 1, -1], out=[state, out])
    return y, state


class Convolution(nn.Module):
    """A causal convolution of each channel by itself, and SiLU."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        self.channels, self.width = channels, width
        self.weight = nn.Parameter((width, 1, channels))
        self.bias = nn.Parameter((channels,)) if bias else None

    def forward(self, x: Tensor, first: int, rows: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        """(result, state). x: (n, …), the channels from column `first` on."""
        n, columns = x.shape
        kernel = causal_conv(n, columns, first, self.channels, self.width, self.bias is not None)
        bias = [self.bias] if self.bias is not None else []
        return scanned(kernel, "causal_conv", [x, self.weight, *bias], rows, state, (n, self.channels))


class MambaLayer(nn.Module):
    """Mamba 1. Time steps and B, C are kept in floats: they are small, and stand in exponents."""

    def __init__(self, hidden: int, made: Selective) -> None:
        self.made = made
        self.in_proj = nn.Linear(hidden, 2 * made.inner, bias=made.bias)
        self.conv = Convolution(made.inner, made.width, made.conv_bias)
        self.dt_low = nn.Linear(made.inner, made.rank, bias=False)
        self.bc_proj = nn.Linear(made.inner, 2 * made.states, bias=False)
        self.dt_proj = nn.Linear(made.rank, made.inner, bias=True)
        self.A = nn.Parameter((made.states, made.inner))
        self.D = nn.Parameter((made.inner,))
        self.out_proj = nn.Linear(made.inner, hidden, bias=made.bias)

    def forward(self, x: Tensor, rows: Any, conv: Tensor, scan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made, n = self.made, x.shape[0]
        both = self.in_proj(x)
        h, conv = self.conv(both, 0, rows, conv)
        low = narrowed(self.dt_low(h), made.rank, 1, made.epsilon)
        bc = narrowed(self.bc_proj(h), 2 * made.states, 2, made.epsilon)
        kernel = selective_scan(n, made.inner, made.states)
        given = [h, both, self.dt_proj(low), bc, self.A, self.D]
        y, scan = scanned(kernel, "selective_scan", given, rows, scan, (n, made.inner))
        return self.out_proj(y), conv, scan


class MambaHeads(nn.Module):
    """Mamba 2. Time steps are kept in floats: they stand in exponents."""

    def __init__(self, hidden: int, made: Selective) -> None:
        self.made, self.heads = made, heads_of(made)
        self.in_proj = nn.Linear(hidden, made.inner + self.heads.convolved, bias=made.bias)
        self.dt_proj = nn.Linear(hidden, made.heads, bias=False)
        self.dt_proj_bias = nn.Parameter((made.heads,)) if made.bias else None  # added where rows are no longer padded
        self.conv = Convolution(self.heads.convolved, made.width, made.conv_bias)
        self.dt_bias, self.A, self.D = (nn.Parameter((made.heads,)) for _ in range(3))
        self.norm = Scale(made.inner)
        self.out_proj = nn.Linear(made.inner, hidden, bias=made.bias)

    def forward(self, x: Tensor, rows: Any, conv: Tensor, scan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made, n = self.made, x.shape[0]
        both = self.in_proj(x)
        dt = narrowed(self.dt_proj(x), made.heads)
        xbc, conv = self.conv(both, made.inner, rows, conv)
        more = [self.dt_proj_bias] if self.dt_proj_bias is not None else []
        kernel = head_scan(n, self.heads, made.bias)
        given = [xbc, dt, *more, self.dt_bias, self.A, self.D]
        y, scan = scanned(kernel, "head_scan", given, rows, scan, (n, made.inner))
        name = f"ellm.gated_norm:{made.groups}:{made.epsilon!r}"
        y = made_later(name, [y, both, self.norm.weight], [((n, made.inner), "float32")])
        return self.out_proj(y), conv, scan


class Scale(nn.Module):
    """A vector of weights under a name of its own."""

    def __init__(self, width: int) -> None:
        self.weight = nn.Parameter((width,))
