"""Calibration: a model's matrices rounded one after another, each to do best on what the ones before it now give it.

Two streams of all texts go through the layers together, one of the model as it is and one as it becomes. Of a matrix W,
exact inputs x and rounded ones x', what is rounded is the W* that makes of x' what W makes of x as nearly as it can:
(W Σ x x'ᵀ + Σ r x'ᵀ) (Σ x' x'ᵀ)⁻¹, where r is what is missing in the residual stream it adds to. One layer is in memory
at a time, besides four arrays of hidden rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from crosscompile.forward import (
    CHUNK,
    Block,
    Linear,
    Stream,
    Values,
    advance,
    embedded,
    expert_rows,
    final_norm,
    plain_linear,
)
from crosscompile.kinds import check_columns
from crosscompile.models.design import EMBEDDING, HEAD, Design, Experts
from crosscompile.models.schemes import WEIGHT_KINDS, Scheme
from crosscompile.packing import KINDS, dequantize, quantize
from crosscompile.pieces import Tensors
from crosscompile.rounding import DAMPING, Rounded, damped, error_of, round_matrix

TIED_DAMPING = 0.05
"""For a matrix that is the embedding too: its rows must stay what they are in every direction."""

Progress = Callable[[int, int], None]
"""Called with what is done and the total, in matrices."""


Pair = Callable[[str, "Sums"], tuple[np.ndarray, np.ndarray]]
"""(name of a linear layer, its sums) -> (weights of the exact stream, weights of the other)."""


class Sink(Protocol):
    """Takes a rounded matrix as soon as it is done."""

    def __call__(self, name: str, kind: str, rounded: Rounded) -> None: ...


def matrices_of(made: Design) -> list[str]:
    """The parameters that may be rounded, in the order of the network; a tied head is its embedding."""
    names = [EMBEDDING]
    for prefix, layer in zip(made.prefixes(), made.layers, strict=True):
        up = "gate_up_proj" if made.gated else "up_proj"
        inside = [f"mlp.{up}", "mlp.down_proj"]
        if layer.experts is not None:
            inside = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
            if layer.experts.shared:
                inside += [f"mlp.shared_expert.{name}" for name in (up, "down_proj")]
        names += [f"{prefix}{name}.weight" for name in ("self_attn.qkv_proj", "self_attn.o_proj", *inside)]
    return [*names, HEAD]


def kinds_of(made: Design, scheme: Scheme) -> dict[str, str]:
    """What a scheme rounds, and to what."""
    parts = {EMBEDDING: "embedding", HEAD: "head"}
    kinds = {name: WEIGHT_KINDS[scheme.of(name, parts.get(name, "body"))] for name in matrices_of(made)}
    if made.tied and kinds[HEAD] == kinds[EMBEDDING]:
        del kinds[HEAD]
    return {name: kind for name, kind in kinds.items() if kind in KINDS}


@dataclass
class Sums:
    """What is summed over all rows for one linear layer.

    inputs    Σ x' x'ᵀ (in, in); across Σ (x - x') x'ᵀ (in, in); missing Σ r x'ᵀ (out, in), or None
    """

    inputs: np.ndarray
    across: np.ndarray
    missing: np.ndarray | None = None
    n: int = 0

    @classmethod
    def of(cls, columns: int, out: int = 0) -> Sums:
        square = (columns, columns)
        missing = np.zeros((out, columns), np.float32) if out else None
        return cls(np.zeros(square, np.float32), np.zeros(square, np.float32), missing)

    def add(self, exact: np.ndarray, rounded: np.ndarray, missing: np.ndarray | None = None) -> None:
        self.inputs += rounded.T @ rounded
        self.across += (exact - rounded).T @ rounded
        self.n += len(rounded)
        if self.missing is not None and missing is not None:
            self.missing += missing.T @ rounded

    def hessian(self, part: float = DAMPING) -> np.ndarray:
        """Damped the more the fewer rows there were."""
        few = max(1.0, len(self.inputs) / max(self.n, 1))
        return damped(self.inputs, part * min(few, 100.0))

    def wanted(self, weight: np.ndarray) -> np.ndarray:
        """W*: what is rounded in place of W. The fewer rows there were, the nearer to W it stays."""
        hessian = damped(self.inputs, DAMPING + len(self.inputs) / max(self.n, 1))
        change = weight @ self.across
        if self.missing is not None:
            change += self.missing
        made: np.ndarray = weight + np.linalg.solve(hessian, change.T.astype(np.float64)).T.astype(np.float32)
        return made


@dataclass
class Calibration:
    """One pass over the layers. kinds: parameter -> one of KINDS, of those that are rounded; others stay as they are.

    error: of each rounded parameter, the part of its output that is noise.
    """

    values: Values
    kinds: Mapping[str, str]
    sink: Sink
    progress: Progress = lambda done, total: None
    error: dict[str, float] = field(default_factory=dict)

    def run(self, texts: Sequence[Sequence[int]]) -> None:
        """Rounds every matrix of `kinds` on the texts' token ids."""
        made = self.values.made
        lengths = [len(text) for text in texts]
        table = None
        if EMBEDDING in self.kinds:
            shared = made.tied and HEAD not in self.kinds
            table = self._shared_table(texts, lengths) if shared else self._plain(EMBEDDING)
        exact = Stream(embedded(self.values, texts), lengths)
        rounded = Stream(embedded(self.values, texts, table), lengths, rounded=True)
        for index in range(len(made.layers)):
            Layer(self, Block(self.values, index)).run(exact, rounded)
        if HEAD in self.kinds:
            norm = final_norm(self.values)
            sums = Sums.of(made.hidden)
            for rows in exact.chunks():
                sums.add(norm(exact.x[rows]), rounded.given(norm(rounded.x[rows])))
            self.round(HEAD, sums)

    def _shared_table(self, texts: Sequence[Sequence[int]], lengths: Sequence[int]) -> np.ndarray:
        """The embedding that is the head too, rounded for what the exact model gives its head."""
        stream = Stream(embedded(self.values, texts), lengths)
        for index in range(len(self.values.made.layers)):
            advance(Block(self.values, index), stream)
        norm = final_norm(self.values)
        sums = Sums.of(self.values.made.hidden)
        for rows in stream.chunks():
            given = norm(stream.x[rows])
            sums.add(given, given)
        return self.round(EMBEDDING, sums, TIED_DAMPING)

    def _plain(self, name: str) -> np.ndarray:
        """A matrix whose inputs are no activations: the least error of the values themselves."""
        weight = self.values.read(name)
        return self._keep(name, round_matrix(self.kinds[name], weight, np.eye(weight.shape[1]), 1))

    def round(self, name: str, sums: Sums, part: float = DAMPING) -> np.ndarray:
        """Rounds a parameter and hands it on. Returns the values that it stands for."""
        return self._keep(name, self.rounded(name, self.values.read(name), sums, part))

    def rounded(self, name: str, weight: np.ndarray, sums: Sums, part: float = DAMPING) -> Rounded:
        """A matrix, rounded as the parameter `name` is."""
        hessian = sums.hessian(part)
        return round_matrix(self.kinds[name], sums.wanted(weight), hessian)

    def keep_stack(self, name: str, parts: list[Rounded]) -> None:
        """Hands on a parameter that was rounded part by part, along its rows."""
        error = sum(part.error for part in parts) / len(parts)
        self._keep(name, Rounded(np.concatenate([p.q for p in parts]), np.concatenate([p.scale for p in parts]), error))

    def _keep(self, name: str, made: Rounded) -> np.ndarray:
        self.sink(name, self.kinds[name], made)
        self.error[name] = made.error
        self.progress(len(self.error), len(self.kinds))
        return made.values


@dataclass
class Layer:
    """One block on its way through calibration."""

    calibration: Calibration
    block: Block

    def run(self, exact: Stream, rounded: Stream) -> None:
        """Rounds the block's matrices and takes both streams through it."""
        block = self.block
        adds = block.made.arrangement in ("before", "parallel", "parallel shared")
        sums = Sums.of(block.made.hidden)
        for rows in exact.chunks():
            sums.add(block.to_attention(exact.x[rows]), rounded.given(block.to_attention(rounded.x[rows])))
        own, new = self._pair("self_attn.qkv_proj", sums)
        mixed = [np.empty((len(exact.x), block.made.heads * block.made.head_dim), np.float32) for _ in range(2)]
        for stream, weight, into in ((exact, own, mixed[0]), (rounded, new, mixed[1])):
            for span in stream.spans():
                given = stream.given(block.to_attention(stream.x[span]))
                into[span] = block.attention(self._applied("self_attn.qkv_proj", weight, given))
        sums = Sums.of(mixed[0].shape[1], block.made.hidden if adds else 0)
        for rows in exact.chunks():
            missing = exact.x[rows] - rounded.x[rows] if adds else None
            sums.add(mixed[0][rows], rounded.given(mixed[1][rows]), missing)
        own, new = self._pair("self_attn.o_proj", sums)
        after = []
        for stream, weight, into in ((exact, own, mixed[0]), (rounded, new, mixed[1])):
            y = np.empty_like(stream.x)
            for rows in stream.chunks():
                out = self._applied("self_attn.o_proj", weight, stream.given(into[rows]))
                y[rows] = block.behind_attention(stream.x[rows], out)
            after.append(y)
        self._feed_forward(exact, rounded, after, adds)

    def _pair(self, name: str, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
        """(weights of the exact stream, weights of the other)."""
        full = f"{self.block.prefix}{name}.weight"
        own = self.calibration.values.read(full)
        return own, self.calibration.round(full, sums) if full in self.calibration.kinds else own

    def _applied(self, name: str, weight: np.ndarray, given: np.ndarray) -> np.ndarray:
        out: np.ndarray = given @ weight.T
        bias = self.block.bias(name)
        return out if bias is None else out + bias

    def _feed_forward(self, exact: Stream, rounded: Stream, after: list[np.ndarray], adds: bool) -> None:
        block, experts = self.block, self.block.layer.experts
        inputs = [
            np.concatenate([block.to_feed_forward(s.x[rows], y[rows]) for rows in s.chunks()])
            for s, y in zip((exact, rounded), after, strict=True)
        ]
        missing = after[0] - after[1] if adds else None
        if experts is None:
            made = self._pass(f"mlp.{block.up_name}", "mlp.down_proj", inputs, rounded, missing)
        else:
            made = self._mixture(experts, inputs, rounded)
        for stream, y, out in zip((exact, rounded), after, made, strict=True):
            for rows in stream.chunks():
                stream.x[rows] = block.behind_feed_forward(y[rows], out[rows])

    def _pass(
        self, up: str, down: str, inputs: list[np.ndarray], rounded: Stream, missing: np.ndarray | None
    ) -> list[np.ndarray]:
        """What a feed-forward makes of the inputs of both streams; its matrices are rounded on the way."""
        return self._feed(self._pair, up, down, inputs, rounded, missing)

    def _feed(
        self, pair: Pair, up: str, down: str, inputs: list[np.ndarray], rounded: Stream, missing: np.ndarray | None
    ) -> list[np.ndarray]:
        block, n = self.block, len(inputs[0])
        chunks = [slice(at, min(at + CHUNK, n)) for at in range(0, n, CHUNK)]
        sums = Sums.of(inputs[0].shape[1])
        for rows in chunks:
            sums.add(inputs[0][rows], rounded.given(inputs[1][rows]))
        ups = pair(up, sums)

        def inner(which: int, rows: slice) -> np.ndarray:
            """What the last linear layer is given."""
            given = rounded.given(inputs[1][rows]) if which else inputs[0][rows]
            h = block.to_down(self._applied(up, ups[which], given))
            return rounded.given(h) if which else h

        sums = Sums.of(block.to_down(np.zeros((1, len(ups[0])), np.float32)).shape[1], block.made.hidden)
        for rows in chunks:
            sums.add(inner(0, rows), inner(1, rows), None if missing is None else missing[rows])
        downs = pair(down, sums)
        made = [np.empty_like(part) for part in inputs]
        for which in (0, 1):
            for rows in chunks:
                made[which][rows] = self._applied(down, downs[which], inner(which, rows))
        return made

    def _mixture(self, experts: Experts, inputs: list[np.ndarray], rounded: Stream) -> list[np.ndarray]:
        """The same of a mixture: each expert on the rows that the rounded model sends to it."""
        block, calibration = self.block, self.calibration
        shares = [block.routed(part, experts) for part in inputs]
        made = [np.zeros_like(part) for part in inputs]
        stacks: dict[str, list[Rounded]] = {"mlp.experts.gate_up_proj": [], "mlp.experts.down_proj": []}
        for expert in range(experts.total):
            rows = [np.flatnonzero(share[:, expert]) for share in shares]

            def pair(name: str, sums: Sums, expert: int = expert) -> tuple[np.ndarray, np.ndarray]:
                full = f"{block.prefix}{name}.weight"
                count = calibration.values.shape(full)[0] // experts.total
                own = calibration.values.read(full, slice(expert * count, (expert + 1) * count))
                if full not in calibration.kinds:
                    return own, own
                stacks[name].append(calibration.rounded(full, own, sums))
                return own, stacks[name][-1].values

            both = [part[rows[1]] for part in inputs]  # the exact model's values of the same rows
            up, down = stacks
            out = self._feed(pair, up, down, both, rounded, None)
            made[1][rows[1]] += out[1] * shares[1][rows[1], expert, None]
            exactly = expert_rows(block, expert, inputs[0][rows[0]])
            made[0][rows[0]] += exactly * shares[0][rows[0], expert, None]
        for name, parts in stacks.items():
            if parts:
                calibration.keep_stack(f"{block.prefix}{name}.weight", parts)
        if experts.shared:
            names = (f"mlp.shared_expert.{block.up_name}", "mlp.shared_expert.down_proj")
            gate = calibration.values.read(f"{block.prefix}mlp.shared_expert_gate.weight").T
            for total, part, h in zip(made, self._pass(*names, inputs, rounded, None), inputs, strict=True):
                total += part / (np.float32(1) + np.exp(-(h @ gate)))
        return made


Noise = dict[str, dict[str, float]]
"""By parameter and kind, what rounding it plainly adds to the model's error, in a unit that adds up roughly."""


def noise_of(
    values: Values,
    names: Sequence[str],
    kinds: Sequence[str],
    texts: Sequence[Sequence[int]] | None,
    progress: Progress,
) -> Noise:
    """The part of each matrix's output that is noise once it is rounded to each of `kinds`, on what the texts give it.

    Without texts, as if its inputs were of equal size and independent. One of a part of the residual stream counts by
    how large that part is.
    """
    found: Noise = {}

    def weigh(name: str, hessian: np.ndarray | None, share: float = 1.0) -> None:
        weight = values.read(name)
        found[name] = {}
        for kind in kinds:
            rounded = dequantize(*quantize(kind, weight))
            noise = (
                float(np.square(weight - rounded).sum() / max(float(np.square(weight).sum()), 1e-30))
                if hessian is None
                else error_of(weight, rounded, hessian)
            )
            found[name][kind] = noise * share
        progress(len(found), len(names))

    if texts is None:
        for name in names:
            weigh(name, None)
        return found
    made, wanted = values.made, set(names)
    stream = Stream(embedded(values, texts), [len(text) for text in texts])
    for name in wanted & {EMBEDDING}:
        weigh(name, None)
    for index in range(len(made.layers)):
        block = Block(values, index)
        seen: dict[str, np.ndarray] = {}
        plain = plain_linear(block)

        def linear(name: str, h: np.ndarray, seen: dict[str, np.ndarray] = seen, plain: Linear = plain) -> np.ndarray:
            seen[name] = seen[name] + h.T @ h if name in seen else h.T @ h
            return plain(name, h)

        before = stream.x.copy()
        advance(block, stream, linear)
        share = float(np.square(stream.x - before).mean() / max(float(np.square(stream.x).mean()), 1e-30))
        for name, hessian in seen.items():
            if (full := f"{block.prefix}{name}.weight") in wanted:
                weigh(full, hessian, min(share, 1.0))
        for name in wanted:
            if name.startswith(block.prefix) and name not in found:
                weigh(name, None, min(share, 1.0))
    for name in wanted - found.keys():  # the head
        h = final_norm(values)(stream.x)
        weigh(name, h.T @ h)
    return found


def calibrate(
    tensors: Tensors,
    made: Design,
    kinds: Mapping[str, str],
    texts: Sequence[Sequence[int]],
    sink: Sink,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Rounds every matrix that `kinds` names and gives it to `sink`; returns what part of each output is noise.

    ConfigError where a kind's groups do not divide a matrix.
    """
    values = Values(tensors, made)
    for name, kind in kinds.items():
        check_columns(name, values.shape(name)[-1], kind)
    calibration = Calibration(values, kinds, sink, progress or (lambda done, total: None))
    calibration.run(texts)
    return calibration.error
