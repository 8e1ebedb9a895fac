"""Replaces Relax operators by kernels: matmul becomes act_quant + quantized_linear, with packed parameters.

Norms and activations that feed a quantized matmul become one kernel with the quantization (a prologue). What this
leaves unused is removed by dead code elimination afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import tvm
from tvm import relax

from crosscompile.errors import ConfigError
from crosscompile.kernels import elementwise, experts, recurrent, rows, rwkv
from crosscompile.kernels.embed import embed
from crosscompile.kernels.linear import Tuned, float_linear, quantized_linear
from crosscompile.packing import Packing
from crosscompile.passes import for_gpus, single_rows
from crosscompile.target import GPU_TIER, Tier


@dataclass(frozen=True)
class Stored:
    """Where a parameter of the network is found: bundle tensor, packing, logical shape."""

    tensor: str
    packing: str
    shape: tuple[int, ...]


Prologue = tuple[str, Callable[[rows.Form | None], Any], list[Any]]
"""(name, kernel for a form of its result, arguments) of what makes rows by itself."""


@dataclass
class Rewriter:
    tier: Tier
    stored: Mapping[str, Stored]
    builder: relax.BlockBuilder
    module: tvm.IRModule
    values: dict[Any, Any] = field(default_factory=dict)  # variable of the old function -> expression of the new
    parameters: dict[str, list[Any]] = field(default_factory=dict)  # bundle tensor -> its new parameters
    names: dict[Any, str] = field(default_factory=dict)  # parameter variable of the old function -> its name
    origin: dict[Any, Any] = field(default_factory=dict)  # variable of the old function -> call that made it
    inputs: dict[str, Any] = field(default_factory=dict)  # by name, of the new function
    quantized: dict[Any, tuple[Any, ...]] = field(default_factory=dict)  # (old variable, form) -> its quantized rows
    split: dict[Any, Prologue] = field(default_factory=dict)  # calls of which a GPU takes a part apart
    whole: dict[Any, Callable[[rows.Form | None], Sequence[Any]]] = field(default_factory=dict)  # calls -> their rows
    turns: dict[Any, Any] = field(default_factory=dict)  # old variable of rope_append -> counters that it clears
    grouped: dict[Any, Any] = field(default_factory=dict)  # (old variable of ids, how) -> the table of a GPU's groups
    tuned: Tuned = field(default_factory=dict)  # what tuning found for kernels that are taken apart
    calls: dict[Any, Any] = field(default_factory=dict)  # variable of the old function -> call, of all of it
    uses: dict[Any, list[Any]] = field(default_factory=dict)  # variable of the old function -> what it is used in
    factored: dict[Any, Any] = field(default_factory=dict)  # (old variable, form) -> as single_rows.activation

    def note(self, var: Any, value: Any) -> None:
        """Remembers what a variable of the old function is, and what that uses."""
        self.calls[var] = value
        if isinstance(value, relax.TupleGetItem):
            self.uses.setdefault(value.tuple_value, []).append(value)
        pending = list(value.args) if isinstance(value, relax.Call) else [value]
        while pending:
            expr = pending.pop()
            if isinstance(expr, relax.Tuple):
                pending.extend(expr.fields)
            elif isinstance(expr, relax.Var):
                self.uses.setdefault(expr, []).append(value)

    def value(self, expr: Any) -> Any:
        """The new expression for an old one."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.value(f) for f in expr.fields])
        if isinstance(expr, (tvm.ir.GenericConst, relax.ShapeExpr)):
            return expr
        if expr in self.names:
            return self.weight(expr)[0]
        return self.values[expr]

    def weight(self, var: Any) -> list[Any]:
        """The packed parameters that stand for a parameter of the network: all that is stored of it."""
        stored = self.stored[self.names[var]]
        if stored.tensor not in self.parameters:
            form = Packing.parse(stored.packing)
            shapes = form.stored(*stored.shape) if form.kind != "vec" else {"": (stored.shape, None)}
            made = []
            for suffix, (shape, dtype) in shapes.items():
                name = str(dtype) if dtype is not None else "float32"
                if suffix == "" and form.quantized:
                    name = form.dtype
                made.append(relax.Var(stored.tensor + suffix, relax.TensorType(shape, name)))
            self.parameters[stored.tensor] = made
        return self.parameters[stored.tensor]

    def call(
        self, name: str, function: Any, args: Sequence[Any], outputs: Sequence[tuple[tuple[int, ...], str]]
    ) -> Any:
        """Emits a call_tir of a kernel and returns its result, or the tuple's elements."""
        symbol = self.builder.add_func(function, name)
        types = [relax.TensorType(shape, dtype) for shape, dtype in outputs]
        result = self.builder.emit(relax.call_tir(symbol, list(args), types if len(types) > 1 else types[0]))
        if len(types) == 1:
            return result
        return tuple(self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types)))

    def quantize(self, var: Any, form: rows.Form) -> tuple[Any, ...]:
        """q, scale[, sum] of an activation, made by whatever kernel makes the activation where there is one."""
        if (var, form) not in self.quantized:
            n, columns = _shape(var)
            outputs = [(shape, dtype) for _, shape, dtype in form.outputs(n, columns)]
            call: Any = self.origin.get(var)
            if call in self.whole:
                return tuple(self.whole[call](form))
            made = self.gated_layer(call, form)
            prologue = self.prologue(call, n, columns) if made is None else None
            if prologue is not None:
                name, kernel, args = prologue
                made = self.call(f"{name}_quant", kernel(form), args, outputs)
            elif made is None:
                made = self.call("act_quant", rows.act_quant(n, columns, form), [self.value(var)], outputs)
            self.quantized[var, form] = made
        return self.quantized[var, form]

    def gated_layer(self, call: Any, form: rows.Form) -> tuple[Any, ...] | None:
        """A gated activation in one kernel with the linear layer before it, where there is one."""
        if not _is(call, "relax.multiply") or _scalar(call.args[1]) is not None:
            return None
        kind, source = self.gated(call)
        return single_rows.gated(self, source, kind, form)

    def prologue(self, call: Any, n: int, columns: int) -> Prologue | None:
        """What makes rows by itself; None for anything else."""
        if _is(call, "relax.call_dps_packed"):
            return self.named_prologue(call, n, columns)
        if call in self.split:
            return self.split[call]
        if _is(call, "relax.nn.rms_norm"):
            epsilon = float(call.attrs.epsilon)
            return "rms_norm", lambda form: rows.rms_norm(n, columns, epsilon, form), self.values_of(call.args[:2])
        if _is(call, "relax.nn.layer_norm"):
            epsilon = float(call.attrs.epsilon)
            return "layer_norm", lambda form: rows.layer_norm(n, columns, epsilon, form), self.values_of(call.args[:3])
        kind = next((kind for op, kind in _ACTIVATIONS.items() if _is(call, op)), None)
        if kind is not None:
            return kind, lambda form: rows.activated(n, columns, kind, form), self.values_of(call.args[:1])
        if _is(call, "relax.multiply") and _scalar(call.args[1]) is None:
            kind, source = self.gated(call)
            return f"{kind}_mul", lambda form: rows.gated(n, columns, kind, form), [self.value(source)]
        return None

    def named_prologue(self, call: Any, n: int, columns: int) -> Prologue | None:
        """`prologue` for those that crosscompile/models names."""
        name, *numbers = str(call.args[0].global_symbol).split(":")
        args = list(call.args[1].fields)
        if name == "ellm.gated_norm":
            given = self.values_of(args)
            wide, groups, tiny = _shape(given[1])[1], int(numbers[0]), float(numbers[1])
            make = recurrent.gated_norm
            return "gated_norm", lambda form: make(n, columns, wide, groups, tiny, form), given
        if name == "ellm.activated":
            return numbers[0], lambda form: rows.activated(n, columns, numbers[0], form), self.values_of(args)
        if name == "ellm.shifted":
            flat = len(_shape(args[2])) == 1
            return "shifted", lambda form: rwkv.shifted(n, columns, flat, form), self.values_of(args)
        if name == "ellm.head_norm":
            shape, epsilon = rwkv.KeyHeads(int(numbers[0]), columns // int(numbers[0])), float(numbers[1])
            if self.tier.name == GPU_TIER:
                return for_gpus.head_norm_apart(self, self.values_of(args), n, shape, epsilon)
            return "head_norm", lambda form: rwkv.head_norm(n, shape, epsilon, form), self.values_of(args)
        return None

    def values_of(self, expressions: Sequence[Any]) -> list[Any]:
        return [self.value(expression) for expression in expressions]

    def gated(self, call: Any) -> tuple[str, Any]:
        """(activation, x) of multiply(activation(split(x)[0]), split(x)[1]); ConfigError for other products."""
        left, right = (self.origin.get(a) for a in call.args)
        kind = next((kind for op, kind in _ACTIVATIONS.items() if _is(left, op)), None)
        if kind is not None and left is not None:
            gate, up = self.origin.get(left.args[0]), right
            if isinstance(gate, relax.TupleGetItem) and isinstance(up, relax.TupleGetItem):
                source: Any = self.origin.get(gate.tuple_value)
                halves = (gate.index, up.index) == (0, 1) and gate.tuple_value.same_as(up.tuple_value)
                if halves and _is(source, "relax.split"):
                    return kind, source.args[0]
        raise ConfigError("the architecture multiplies tensors in a way no kernel covers; SiLU(gate) · up is one")

    def matmul(self, var: Any, call: Any) -> Any:
        x, transposed = call.args
        weight = self.origin.get(transposed)
        if weight is None or not _is(weight, "relax.permute_dims") or weight.args[0] not in self.names:
            raise ConfigError("the architecture multiplies by something that is not a transposed parameter")
        stored = self.stored[self.names[weight.args[0]]]
        form, (out, columns) = Packing.parse(stored.packing), stored.shape
        made = single_rows.scaled(self, var)
        if made is not None:
            return made
        padded, n = form.padded_rows(out), _shape(var)[0]
        outputs = [((n, padded), "float32")]
        if form.quantized:
            args = [*self.quantize(x, rows.Form.for_weights(self.tier, stored.packing)), *self.weight(weight.args[0])]
            function = quantized_linear(n, padded, columns, self.tier, stored.packing)
        else:
            args = [self.value(x), *self.weight(weight.args[0])]
            function = float_linear(n, padded, columns, stored.packing)
        return self.call(f"linear_{form.kind}", function, args, outputs)

    def named(self, var: Any, call: Any) -> Any:
        """What crosscompile/models names: the parts of a mixture of experts, of RWKV, and what reads padded rows."""
        name, *numbers = str(call.args[0].global_symbol).split(":")
        args = list(call.args[1].fields)
        prologue = None if isinstance(var.ty, relax.TupleType) else self.named_prologue(call, *_shape(var))
        if prologue is not None:
            return self.call(prologue[0], prologue[1](None), prologue[2], [(_shape(var), "float32")])
        if name == "ellm.narrow":
            value = self.value(args[0])
            n, columns = _shape(value)
            if self.tier.name == GPU_TIER and columns == int(numbers[0]) and not float(numbers[2]):
                return value  # rows are not padded there
            function = recurrent.narrow(n, columns, int(numbers[0]), int(numbers[1]), float(numbers[2]))
            return self.call("narrow", function, [value], [((n, int(numbers[0])), "float32")])
        if name == "ellm.squash":
            value = self.value(args[0])
            n, columns = _shape(value)
            function = rwkv.squash(n, columns, int(numbers[0]), str(numbers[1]))
            return self.call(str(numbers[1]), function, [value], [((n, int(numbers[0])), "float32")])
        if name == "ellm.route":
            total, used, normalized = map(int, numbers)
            logits = self.value(args[0])
            n, padded = _shape(logits)
            function = experts.route(n, padded, total, used, bool(normalized))
            chosen = [((n * used,), "int32"), ((n * used,), "float32")]
            return self.call("route", function, [logits, self.inputs["positions"]], chosen)
        if name == "ellm.experts":
            total, each = map(int, numbers)
            x, weight, ids = args
            stored = self.stored[self.names[weight]]
            form, (out, columns) = Packing.parse(stored.packing), stored.shape
            rows_, out = _shape(ids)[0], out // total
            quantized = form.quantized
            given = self.quantize(x, rows.Form.for_weights(self.tier, stored.packing)) if quantized else [self.value(x)]
            tokens = self.inputs["tokens"]
            n = _shape(tokens)[0]
            work: dict[str, Any] = {"n": n, "rows": rows_, "each": each, "out": out, "total": total}
            work |= {"columns": columns, "packing": stored.packing}
            if self.tier.name == GPU_TIER:
                grouped = for_gpus.experts_grouped(self, given, ids, self.weight(weight), work)
                if grouped is not None:
                    return grouped
            function = experts.expert_linear(**work, tier=self.tier)
            given = [*given, self.value(ids), tokens, *self.weight(weight)]
            return self.call(f"experts{total}_{form.kind}", function, given, [((rows_, out), "float32")])
        assert name == "ellm.combine", name
        values = self.values_of(args)
        n, columns = _shape(var)
        gate = _shape(values[3])[1] if len(values) > 2 else 0
        function = experts.combine(n, _shape(values[0])[0] // n, columns, gate)
        return self.call("combine", function, values, [((n, columns), "float32")])

    def embedded(self, call: Any, n: int, columns: int, times: float) -> Any:
        """Rows of a table by tokens, or by positions, which may be -1."""
        table, ids = call.args
        stored = self.stored[self.names[table]]
        function = embed(n, *stored.shape, stored.packing, times, ids.name == "positions")
        return self.call("embed", function, [self.value(ids), *self.weight(table)], [((n, columns), "float32")])

    def scaled(self, call: Any, n: int, columns: int) -> Any:
        """A product with a constant: of an embedding, or of a tanh, behind whatever pads its rows."""
        made: Any = self.origin.get(call.args[0])
        times = _scalar(call.args[1])
        assert times is not None
        if _is(made, "relax.take"):
            return self.embedded(made, n, columns, times)
        if _is(made, "relax.tanh"):
            value = self.value(made.args[0])
            shape = _shape(value)
            return self.call("flatten", rows.flatten(*shape, times), [value], [(shape, "float32")])
        raise ConfigError("the architecture multiplies by a constant where no kernel does; embeddings and tanh are")

    def operator(self, var: Any, call: Any) -> Any:
        """The new expression for one call of a Relax operator, or None where it stands for itself elsewhere."""
        name = call.op.name
        if name in ("relax.permute_dims", "relax.split", "relax.tanh"):
            return None  # consumed by matmul and multiply
        n, *rest = _shape(var)
        if name == "relax.matmul":
            return self.matmul(var, call)
        if name == "relax.take":
            return self.embedded(call, n, rest[0], 1.0)
        if name == "relax.multiply" and _scalar(call.args[1]) is not None:
            return self.scaled(call, n, rest[0])
        if name in _ACTIVATIONS and not isinstance(self.origin.get(call.args[0]), relax.Call):
            return None  # the gate of a product, which takes it in
        prologue = self.prologue(call, n, rest[0])
        if prologue is not None:
            name, kernel, args = prologue
            return self.call(name, kernel(None), args, [((n, rest[0]), "float32")])
        if name == "relax.add":
            left, right = call.args
            bias = len(_shape(right)) == 1
            made = single_rows.scaled(self, left, right) if bias else None
            if made is not None:
                return made
            function = elementwise.add_bias(n, rest[0]) if bias else elementwise.add(n, rest[0])
            args = [self.value(left), self.value(right)]
            return self.call("bias_add" if bias else "residual_add", function, args, [((n, rest[0]), "float32")])
        made = operator_for(name)([_shape(argument) for argument in call.args], call.attrs)
        return self.call(name.rpartition(".")[2], made, [self.value(a) for a in call.args], [((n, *rest), "float32")])

    def binding(self, var: Any, value: Any) -> None:
        self.origin[var] = value
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op):
            if value.op.name in ("relax.call_tir", "relax.call_tir_inplace"):
                if self.tier.name == GPU_TIER and (
                    single_rows.rotated(self, var, value) or for_gpus.taken_apart(self, var, value)
                ):
                    return
                symbol = self.builder.add_func(self.module[value.args[0]], value.args[0].name_hint)
                args = [symbol, self.value(value.args[1]), *value.args[2:]]
                call = relax.Call(value.op, args, value.attrs, value.ty_args)
                self.values[var] = self.builder.emit(call)
                return
            if value.op.name == "relax.call_dps_packed":
                self.values[var] = self.named(var, value)
                return
            made = self.operator(var, value)
            if made is not None:
                self.values[var] = made
        elif isinstance(value, relax.TupleGetItem):
            source = self.origin.get(value.tuple_value)
            if source in self.split and value.index == 1:
                self.origin[var] = source  # the rows that a scan makes beside its state
            if value.tuple_value in self.values:
                whole = self.values[value.tuple_value]
                is_taken_apart = isinstance(whole, tuple)
                item = (
                    whole[value.index] if is_taken_apart else self.builder.emit(relax.TupleGetItem(whole, value.index))
                )
                self.values[var] = item
        else:
            self.values[var] = self.value(value)


Operator = Callable[[Sequence[tuple[int, ...]], Any], Any]
"""(shapes of the arguments, attributes of the call) -> PrimFunc: the arguments and then one float32 output."""

OPERATORS = "edgellm.operators"
"""Entry points by which installed packages give kernels to further Relax operators: name = operator's name."""


def operator_for(name: str) -> Operator:
    """The kernel of a Relax operator from an installed package. ConfigError if there is none."""
    for point in entry_points(group=OPERATORS):
        if point.name == name:
            loaded: Operator = point.load()
            return loaded
    raise ConfigError(
        f"the architecture uses operator {name}, for which there is no kernel; add one through the entry point "
        f"{OPERATORS} (crosscompile/EXTENDING.md)"
    )


_ACTIVATIONS = {"relax.nn.silu": "silu", "relax.nn.gelu": "gelu", "relax.nn.gelu_tanh": "gelu_tanh"}
"""Relax operators -> names in kernels/rows.py."""


def _scalar(expr: Any) -> float | None:
    """The value of a constant of one element."""
    if isinstance(expr, tvm.ir.GenericConst) and expr.value.numpy().size == 1:
        return float(expr.value.numpy())
    return None


def _is(expr: Any, name: str) -> bool:
    return isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == name


def _named(expr: Any, name: str) -> bool:
    """Whether a call is of one of the names that crosscompile/models gives."""
    if not _is(expr, "relax.call_dps_packed"):
        return False
    return str(expr.args[0].global_symbol).partition(":")[0] == name


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in expr.ty.shape.values)


def lower_operators(
    module: tvm.IRModule,
    function: str,
    names: Sequence[str],
    stored: Mapping[str, Stored],
    tier: Tier,
    tuned: Tuned,
) -> tvm.IRModule:
    """Lowers one traced function.

    names: the parameters of the network, in the order in which they follow the inputs. Returns a module with
    `function` whose parameters are the inputs and then the packed parameters, named after bundle tensors, and kernels.
    """
    old = module[function]
    rewriter = Rewriter(tier, stored, relax.BlockBuilder(), module, tuned=tuned)
    inputs = old.params[: len(old.params) - len(names)]
    rewriter.names = dict(zip(old.params[len(inputs) :], names, strict=True))
    fresh = [relax.Var(p.name, p.ty) for p in inputs]
    rewriter.values.update(zip(inputs, fresh, strict=True))
    rewriter.inputs = {p.name: p for p in fresh}
    for binding in (each for block in old.body.blocks for each in block.bindings):
        rewriter.note(binding.var, binding.value)
    builder = rewriter.builder
    with builder.function(function):
        with builder.dataflow():
            for block in old.body.blocks:
                for binding in block.bindings:
                    rewriter.binding(binding.var, binding.value)
            result = builder.emit_output(rewriter.value(old.body.body))
        parameters = [*fresh, *(v for made in rewriter.parameters.values() for v in made)]
        builder.emit_func_output(result, parameters)
    return builder.get()
