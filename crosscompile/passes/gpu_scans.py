"""Kernels of recurrent layers in two on GPUs, which bind few buffers: what stands before or behind a scan is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relax

from crosscompile.kernels.build import origin_of

if TYPE_CHECKING:
    from crosscompile.passes.lower_operators import Rewriter


def scan_apart(rewriter: Rewriter, var: Any, call: Any) -> bool:
    """Whether a call is a scan of Mamba's, which is emitted in two kernels then."""
    origin = origin_of(rewriter.module[call.args[0]])
    if origin is None or origin.name not in ("selective_scan", "head_scan"):
        return False
    from crosscompile.gpu import recurrent

    given = rewriter.values_of(call.args[1].fields)
    state, y = call.ty_args[0].fields
    if origin.name == "selective_scan":
        n, channels, states = (origin.arguments[each] for each in ("n", "channels", "states"))
        x, gated, dt, bc, a, d, *rest = given
        function = recurrent.scan_states(n, channels, states)
        changed, read = _inplace(rewriter, "scan_states", function, [x, dt, bc, a, *rest], [state, y])
        behind = [read, x, d, gated]
        rewriter.split[call] = "scan_gate", lambda form: recurrent.scan_gate(n, channels, form), behind
        whole = [((n, channels), "float32")]
        made = rewriter.call("scan_gate", recurrent.scan_gate(n, channels, None), behind, whole)
    else:
        n, shape, biased = (origin.arguments[each] for each in ("n", "shape", "biased"))
        xbc, *about, d, positions, slots, kept = given
        rates = [((n, 2 * shape.heads), "float32")]
        before = rewriter.call("head_rates", recurrent.head_rates(n, shape, biased), about, rates)
        function = recurrent.head_states(n, shape)
        args = [xbc, before, d, positions, slots, kept]
        changed, made = _inplace(rewriter, "head_states", function, args, [state, y])
    rewriter.values[var] = (changed, made)
    return True


def _inplace(rewriter: Rewriter, name: str, function: Any, args: list[Any], types: list[Any]) -> list[Any]:
    """[state, y] of a kernel that changes its last argument."""
    symbol = rewriter.builder.add_func(function, name)
    call = relax.op.call_tir_inplace(symbol, relax.Tuple(args), [len(args) - 1, -1], types)
    result = rewriter.builder.emit(call)
    return [rewriter.builder.emit(relax.TupleGetItem(result, i)) for i in range(2)]


def head_norm_apart(rewriter: Rewriter, args: list[Any], n: int, shape: Any, epsilon: float) -> tuple[str, Any, Any]:
    """The prologue that RWKV's head_norm is on a GPU, behind a kernel for what a token asks of itself."""
    from crosscompile.gpu import rwkv

    y, r, keys, v, gate, bonus, weight, bias = args
    asked = [((n, shape.heads), "float32")]
    own = rewriter.call("head_bonus", rwkv.head_bonus(n, shape), [r, keys, bonus], asked)
    return "head_out", lambda form: rwkv.head_out(n, shape, epsilon, form), [y, own, v, gate, weight, bias]
