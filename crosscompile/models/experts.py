"""A mixture of experts as a Relax module. What depends on packing is named here, and made by lower_operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

from crosscompile.models.design import Design, Experts

Tensor = Any


def made_later(name: str, args: Sequence[Tensor], outputs: Sequence[tuple[tuple[int, ...], str]]) -> Any:
    """A call by name that lower_operators replaces by a kernel. outputs: shape and dtype of each."""
    types = [relax.TensorType(shape, dtype) for shape, dtype in outputs]
    call = relax.call_dps_packed(name, [arg._expr for arg in args], types if len(types) > 1 else types[0])
    return op.wrap_nested(call, name.partition(":")[0].replace(".", "_"))


class Stacked(nn.Module):
    """One matrix of all experts, one after another along the rows."""

    def __init__(self, rows: int, columns: int) -> None:
        self.weight = nn.Parameter((rows, columns))


class Stacks(nn.Module):
    """The weights of all experts of a layer."""

    def __init__(self, hidden: int, experts: Experts) -> None:
        self.gate_up_proj = Stacked(experts.total * 2 * experts.width, hidden)
        self.down_proj = Stacked(experts.total * hidden, experts.width)


class Mixture(nn.Module):
    """The experts that a token is sent to, weighted, and one that all tokens are sent to, where there is that."""

    def __init__(self, made: Design, experts: Experts, feed_forward: type[nn.Module], activation: Any) -> None:
        self.mixture, self.hidden, self.activation = experts, made.hidden, activation
        self.gate = nn.Linear(made.hidden, experts.total, bias=False)
        self.experts = Stacks(made.hidden, experts)
        if experts.shared:
            self.shared_expert = feed_forward(replace(made, intermediate=experts.shared))
            self.shared_expert_gate = nn.Linear(made.hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, experts = x.shape[0], self.mixture
        rows = n * experts.used
        chosen = [((rows,), "int32"), ((rows,), "float32")]
        route = f"ellm.route:{experts.total}:{experts.used}:{int(experts.normalized)}"
        ids, weights = made_later(route, [self.gate(x)], chosen)
        gate_up = made_later(
            f"ellm.experts:{experts.total}:{experts.used}",
            [x, self.experts.gate_up_proj.weight, ids],
            [((rows, 2 * experts.width), "float32")],
        )
        gate, up = op.split(gate_up, 2, axis=-1)
        out = made_later(
            f"ellm.experts:{experts.total}:1",
            [self.activation(gate) * up, self.experts.down_proj.weight, ids],
            [((rows, self.hidden), "float32")],
        )
        more = [self.shared_expert(x), self.shared_expert_gate(x)] if experts.shared else []
        return made_later("ellm.combine", [out, weights, *more], [((n, self.hidden), "float32")])
