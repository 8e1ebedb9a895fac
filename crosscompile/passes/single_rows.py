"""A token's linear layers on a GPU, together with what stands before and behind them (crosscompile/gpu/fused.py).

What a fused kernel takes in was emitted before by itself; nothing uses that any more, and dead code elimination removes
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import relax

from crosscompile.kernels.build import origin_of
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP, Packing
from crosscompile.passes.for_gpus import emit_append, is_cleared
from crosscompile.spirv.capabilities import MOST_BUFFERS
from crosscompile.target import GPU_TIER

if TYPE_CHECKING:
    from crosscompile.gpu.fused import Source
    from crosscompile.passes.lower_operators import Rewriter


def _is(expr: Any, name: str) -> bool:
    return isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == name


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in expr.ty.shape.values)


def _applies(rewriter: Rewriter, n: int) -> bool:
    """Whether a function's rows are one, for a GPU whose threads share."""
    from crosscompile.gpu.schedules import SCHEDULES

    gpu = rewriter.tier.gpu
    return rewriter.tier.name == GPU_TIER and n == 1 and gpu is not None and not SCHEDULES[gpu.schedule].alone


def _weight(rewriter: Rewriter, product: Any) -> Any:
    """The parameter that a product is a linear layer of, if that is one of these kernels; None for anything else."""
    from crosscompile.gpu import fused
    from crosscompile.gpu.split import parts_of

    if not _is(product, "relax.matmul"):
        return None
    transposed: Any = rewriter.calls.get(product.args[1])
    if not _is(transposed, "relax.permute_dims") or transposed.args[0] not in rewriter.names:
        return None
    stored = rewriter.stored[rewriter.names[transposed.args[0]]]
    gpu = rewriter.tier.gpu
    if len(stored.shape) != 2 or gpu is None or parts_of(stored.packing, stored.shape, gpu):
        return None
    return transposed.args[0] if fused.supports(*stored.shape, stored.packing) else None


def _binds(rewriter: Rewriter, source: Source, others: int) -> bool:
    """Whether the GPU binds so many buffers besides the source's activation and weight."""
    gpu = rewriter.tier.gpu
    assert gpu is not None
    stored = Packing.parse(source.packing).stored(source.rows, source.columns)
    return 2 + len(stored) + others <= min(gpu.buffers, MOST_BUFFERS)


def source_of(rewriter: Rewriter, var: Any) -> tuple[Source, list[Any]] | None:
    """The linear layer that makes a variable, and what a kernel takes of it: its activation and weight."""
    from crosscompile.gpu import fused

    call: Any = rewriter.origin.get(var)
    weight = _weight(rewriter, call) if isinstance(call, relax.Call) else None
    if weight is None or not _applies(rewriter, _shape(var)[0]):
        return None
    stored = rewriter.stored[rewriter.names[weight]]
    rows, columns = stored.shape
    given, epsilon = activation(rewriter, call.args[0], Form.for_weights(rewriter.tier, stored.packing))
    return fused.Source(rows, columns, stored.packing, epsilon), [*given, *rewriter.weight(weight)]


def activation(rewriter: Rewriter, x: Any, form: Form) -> tuple[tuple[Any, ...], float | None]:
    """(q, scale) of what a linear layer reads; and the norm's epsilon if sums of squares stand behind the scales."""
    if (x, form) in rewriter.factored:
        found: tuple[tuple[Any, ...], float] = rewriter.factored[x, form]
        return found
    norm: Any = rewriter.origin.get(x)
    made = None
    again = any(other.same_as(x) for other, _ in rewriter.factored)  # in another form: the layer is not computed twice
    if (
        not again
        and _is(norm, "relax.nn.rms_norm")
        and all(_weight(rewriter, use) is not None for use in rewriter.uses.get(x, ()))
    ):
        made = _normed(rewriter, norm, form)
    if made is None:
        return rewriter.quantize(x, form), None
    rewriter.factored[x, form] = made
    return made


def _normed(rewriter: Rewriter, norm: Any, form: Form) -> tuple[tuple[Any, ...], float] | None:
    """A norm of what a linear layer adds to the residual connection, in one kernel with that layer."""
    from crosscompile.gpu import fused

    total, weight = norm.args[:2]
    added: Any = rewriter.origin.get(total)
    norms = [use for use in rewriter.uses.get(total, ()) if _is(use, "relax.nn.rms_norm")]
    if not _is(added, "relax.add") or len(norms) > 1:  # each would compute the layer
        return None
    for product, residual in (added.args[:2], added.args[1::-1]):
        if len(_shape(residual)) != 2 or len(rewriter.uses.get(product, ())) != 1:
            continue
        found = source_of(rewriter, product)
        if found is None or not _binds(rewriter, found[0], 5):
            continue
        source, given = found
        blocks = source.rows // GROUP
        outputs = [((1, source.rows), "float32"), ((1, blocks, GROUP), "int8"), ((1, 2 * blocks), "float32")]
        args = [*given, rewriter.value(residual), rewriter.value(weight)]
        name = f"linear_{Packing.parse(source.packing).kind}_add_norm"
        x, q, scale = rewriter.call(name, fused.normed_linear(source, form), args, outputs)
        rewriter.values[total] = x
        return (q, scale), float(norm.attrs.epsilon)
    return None


def scaled(rewriter: Rewriter, var: Any, bias: Any = None) -> Any:
    """A linear layer behind a norm whose sums of squares stand behind the scales; None if it is another one.

    bias: what is added to it, if that is all that becomes of it.
    """
    from crosscompile.gpu import fused

    found = source_of(rewriter, var)
    if found is None or found[0].epsilon is None:
        return None
    if bias is not None and (len(rewriter.uses.get(var, ())) != 1 or not _binds(rewriter, found[0], 2)):
        return None
    source, given = found
    name = f"linear_{Packing.parse(source.packing).kind}_scaled" + ("_bias" if bias is not None else "")
    args = given if bias is None else [*given, rewriter.value(bias)]
    function = fused.scaled_linear(source, bias is not None)
    return rewriter.call(name, function, args, [((1, source.rows), "float32")])


def gated(rewriter: Rewriter, source: Any, kind: str, form: Form) -> tuple[Any, ...] | None:
    """activation(gate) · up, quantized, in one kernel with the layer that makes both; None where it cannot be."""
    from crosscompile.gpu import fused

    found = source_of(rewriter, source) if len(rewriter.uses.get(source, ())) == 1 else None
    if found is None or found[0].rows % (2 * GROUP) or not _binds(rewriter, found[0], 2):
        return None
    layer, given = found
    blocks = layer.rows // 2 // GROUP
    outputs = [((1, blocks, GROUP), "int8"), ((1, blocks), "float32")]
    name = f"linear_{Packing.parse(layer.packing).kind}_{kind}"
    made: tuple[Any, ...] = rewriter.call(name, fused.gated_linear(layer, kind, form), given, outputs)
    return made


def rotated(rewriter: Rewriter, var: Any, call: Any) -> bool:
    """Whether a call is rope_append of what a linear layer makes, which is emitted in one kernel with that layer."""
    from crosscompile.gpu import fused

    origin = origin_of(rewriter.module[call.args[0]])
    if origin is None or origin.name != "rope_append" or not _applies(rewriter, origin.arguments["n"]):
        return False
    heads, turn = origin.arguments["heads"], origin.arguments["turn"]
    qkv, *rest = call.args[1].fields
    if turn.over or turn.dim != heads.dim or not fused.rotates(heads) or len(rewriter.uses.get(qkv, ())) != 1:
        return False
    found = source_of(rewriter, qkv)
    clears = is_cleared(rewriter, 1, heads)
    if found is None or not _binds(rewriter, found[0], 8 if clears else 7):
        return False
    source, given = found
    args = [*given, *rewriter.values_of(rest)]
    name = f"linear_{Packing.parse(source.packing).kind}_rope"
    emit_append(rewriter, var, call, name, fused.rotated_linear(source, heads, clears), args, clears)
    return True
