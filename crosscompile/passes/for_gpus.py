"""Calls of kernels that are several on GPUs: these bind few buffers, or have more to keep busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvm import relax

from crosscompile.kernels import rotary
from crosscompile.kernels.build import origin_of
from crosscompile.packing import GROUP, Packing

if TYPE_CHECKING:
    from crosscompile.kernels.kv_cache import Heads
    from crosscompile.kernels.rows import Form
    from crosscompile.passes.lower_operators import Rewriter


def taken_apart(rewriter: Rewriter, var: Any, call: Any) -> bool:
    """Whether a call of a kernel is several, which are emitted then."""
    return any(each(rewriter, var, call) for each in (attention_apart, append_apart, scan_apart))


def attention_apart(rewriter: Rewriter, var: Any, call: Any) -> bool:
    """Whether a call is attention: parts of the context first, and then whoever uses it merges them.

    For a row whose counters rope_append has cleared, one kernel is both, of the form that is wanted.
    """
    from crosscompile.gpu import attention, attention_whole
    from crosscompile.gpu.knobs import chosen_splits
    from crosscompile.gpu.schedules import SCHEDULES

    origin = origin_of(rewriter.module[call.args[0]])
    if origin is None or origin.name != "attention" or not attention.supports(origin.arguments["heads"]):
        return False
    n, heads = origin.arguments["n"], origin.arguments["heads"]
    splits = chosen_splits(n, heads, SCHEDULES[rewriter.tier.gpu_class], rewriter.tuned)
    args = rewriter.values_of(call.args[1].fields)
    shape = ((n, heads.query, splits, heads.dim + 2), "float32")
    asked = rewriter.origin.get(call.args[1].fields[0])
    turns = rewriter.turns.get(asked.tuple_value) if isinstance(asked, relax.TupleGetItem) else None
    if turns is not None:

        def whole(form: Form | None) -> list[Any]:
            function = attention_whole.attention_row(heads, splits, form)
            outputs = function.params[len(args) + 1 :]
            types = [turns.ty, *(relax.TensorType(p.ty.shape, str(p.ty.dtype)) for p in outputs)]
            name = "attention_row" if form is None else "attention_row_quant"
            return _inplace(rewriter, name, function, [*args, turns], types)[2:]

        rewriter.whole[call] = whole
        (rewriter.values[var],) = whole(None)
        return True
    parts = rewriter.call("attention_parts", attention.attention_parts(n, heads, splits), args, [shape])
    merging = [parts, rewriter.inputs["positions"]]
    if heads.dim % GROUP == 0:  # else groups are of several heads, which another kernel quantizes
        rewriter.split[call] = (
            "attention_merge",
            lambda form: attention.attention_merge(n, heads, splits, form),
            merging,
        )
    rows = [((n, heads.query * heads.dim), "float32")]
    merge = attention.attention_merge(n, heads, splits, None)
    rewriter.values[var] = rewriter.call("attention_merge", merge, merging, rows)
    return True


def append_apart(rewriter: Rewriter, var: Any, call: Any) -> bool:
    """Whether a call is rope_append that does other things here.

    Norms get a kernel before it, as GPUs bind few buffers. Where attention is one kernel, it clears its counters.
    """
    from crosscompile.gpu.rotary import rope_append_clear

    origin = origin_of(rewriter.module[call.args[0]])
    if origin is None or origin.name != "rope_append":
        return False
    n, heads, turn = (origin.arguments[each] for each in ("n", "heads", "turn"))
    clears = is_cleared(rewriter, n, heads)
    if not turn.over and not clears:
        return False
    name, args = call.args[0].name_hint, rewriter.values_of(call.args[1].fields)
    if turn.over:
        args = _normalized(rewriter, args, n, heads, turn)
    function = rotary.rope_append(n, heads, rotary.Turn(turn.dim))
    if clears:
        function = rope_append_clear(heads, rotary.Turn(turn.dim))
    emit_append(rewriter, var, call, name, function, args, clears)
    return True


def is_cleared(rewriter: Rewriter, n: int, heads: Heads) -> bool:
    """Whether attention of n rows is one kernel, whose counters what appends to the cache clears."""
    from crosscompile.gpu.attention import supports
    from crosscompile.gpu.attention_whole import in_one

    gpu = rewriter.tier.gpu
    return gpu is not None and supports(heads) and in_one(n, heads, gpu)


def emit_append(
    rewriter: Rewriter, var: Any, call: Any, name: str, function: Any, args: list[Any], clears: bool
) -> None:
    """Emits `function` for a call of rope_append. args end with the states; clears: counters are behind them."""
    outputs, places = list(call.ty_args[0].fields), [len(args) - 2, len(args) - 1, -1]
    if clears:
        turns = function.params[len(args)].ty
        outputs.insert(2, relax.TensorType(turns.shape, str(turns.dtype)))
        places.append(-1)
    symbol = rewriter.builder.add_func(function.with_attr("global_symbol", name), name)
    result = rewriter.builder.emit(relax.op.call_tir_inplace(symbol, relax.Tuple(args), places, outputs))
    made = [rewriter.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(outputs))]
    if clears:
        rewriter.turns[var] = made.pop(2)
    rewriter.values[var] = tuple(made)


def _normalized(rewriter: Rewriter, args: list[Any], n: int, heads: Heads, turn: rotary.Turn) -> list[Any]:
    """Arguments of rope_append without norms, behind a kernel for these."""
    qkv, *rest = args
    at = 1 if turn.dim else 0
    normed = rewriter.call(
        "normalize_heads",
        rotary.normalize_heads(n, heads, turn),
        [qkv, *rest[at : at + 2]],
        [((n, (heads.query + 2 * heads.kv) * heads.dim), "float32")],
    )
    del rest[at : at + 2]
    return [normed, *rest]


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
    """Results of a kernel, [state, y] or more, whose last argument is changed and is the first of them."""
    symbol = rewriter.builder.add_func(function, name)
    places = [len(args) - 1, *([-1] * (len(types) - 1))]
    result = rewriter.builder.emit(relax.op.call_tir_inplace(symbol, relax.Tuple(args), places, types))
    return [rewriter.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]


def head_norm_apart(rewriter: Rewriter, args: list[Any], n: int, shape: Any, epsilon: float) -> tuple[str, Any, Any]:
    """The prologue that RWKV's head_norm is on a GPU, behind a kernel for what a token asks of itself."""
    from crosscompile.gpu import rwkv

    y, r, keys, v, gate, bonus, weight, bias = args
    asked = [((n, shape.heads), "float32")]
    own = rewriter.call("head_bonus", rwkv.head_bonus(n, shape), [r, keys, bonus], asked)
    return "head_out", lambda form: rwkv.head_out(n, shape, epsilon, form), [y, own, v, gate, weight, bias]


def experts_grouped(
    rewriter: Rewriter, given: Sequence[Any], ids: Any, weight: Sequence[Any], work: Mapping[str, Any]
) -> Any:
    """A linear layer of experts that reads their weights once for several rows; None where rows are too few for that.

    given: the activation. ids: of the old function. work: what kernels/experts.py calls expert_linear with.
    """
    from crosscompile.gpu.experts_knobs import chosen_tiles
    from crosscompile.gpu.grouped import Grouped, group_rows, grouped_linear, groups_for

    rows, total, packing, gpu = work["rows"], work["total"], work["packing"], rewriter.tier.gpu
    groups = groups_for(rows, total, packing, rewriter.tier.gpu_class)
    if groups is None:
        return None
    n, each, out, columns = (work[name] for name in ("n", "each", "out", "columns"))
    assert gpu is not None
    layer = chosen_tiles(Grouped(n, each, out, columns, packing, 0, total * out, groups), gpu, rewriter.tuned)
    groups = layer.groups
    if (ids, groups) not in rewriter.grouped:
        shape = [((groups.size,), "int32")]
        rewriter.grouped[ids, groups] = rewriter.call("group_rows", group_rows(groups), [rewriter.value(ids)], shape)
    function = grouped_linear(layer)
    name = f"experts{total}_{Packing.parse(packing).kind}_{rows}grouped"
    args = [*given, rewriter.grouped[ids, groups], rewriter.inputs["tokens"], *weight]
    return rewriter.call(name, function, args, [((rows, out), "float32")])
