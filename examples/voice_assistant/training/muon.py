"""Muon (Jordan et al. 2024) in float32: momentum whose update for a matrix is made orthogonal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

N_ITERATIONS = 4


def orthogonal(stack: Tensor) -> Tensor:
    """Matrices (n, rows <= columns) with their singular values brought near one, by Newton and Schulz's iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315  # from Jordan et al.
    x = stack / (stack.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(N_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon computes in bfloat16, which few CPUs do natively; this one also takes equal shapes together."""

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(state["momentum"], group["momentum"])
                flat = update if update.shape[0] <= update.shape[1] else update.T
                stacks[tuple(flat.shape)].append((matrix, flat))
            for shape, members in stacks.items():
                updates = orthogonal(torch.stack([update for _, update in members]))
                # The size that AdamW's updates have, so that one learning rate suits both (Liu et al. 2025).
                scale = 0.2 * max(shape) ** 0.5
                for (matrix, _), update in zip(members, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update if update.shape == matrix.shape else update.T, alpha=-group["lr"] * scale)
