"""Runs a plan in Python: kernels.so through ctypes, weights from their shards. A second, naive runtime for tests."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from crosscompile.quantize import INDEX

KV_BLOCK = 64


def aligned(n_bytes: int) -> np.ndarray:
    """Zeroed bytes that start at a multiple of 64."""
    raw = np.zeros(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes]


class PlanRunner:
    """One session over a compiled directory (kernels.so, plan.json, weights/), for this machine's own tier."""

    def __init__(self, directory: Path, context: int = 256) -> None:
        self.plan: dict[str, Any] = json.loads((directory / "plan.json").read_text())
        self.library = ctypes.CDLL(str(directory / "kernels.so"))
        stored: dict[str, np.ndarray] = {}
        index = json.loads((directory / "weights" / INDEX).read_text())
        for shard in sorted(set(index["weight_map"].values())):
            stored.update(load_file(directory / "weights" / shard))
        self.weights = []
        for entry in self.plan["weights"]:
            values = stored[entry["tensor"]]
            assert values.nbytes == entry["bytes"]
            copy = aligned(values.nbytes)
            copy[:] = values.reshape(-1).view(np.uint8)
            self.weights.append(copy)
        self.table_cap = -(-context // KV_BLOCK)
        self.arena = aligned(self.plan["arena_bytes"])
        # blocks in another order than positions, so that the table matters
        self.table = np.arange(self.table_cap, dtype=np.int32)[::-1].copy()
        self.hidden: list[np.ndarray] = []
        """Behind the final norm, of every token fed so far."""
        self.states = []
        for state in self.plan["states"]:
            n = self.table_cap if "bytes_per_block" in state else 1
            self.states.append(aligned(n * state.get("bytes_per_block", state.get("bytes_per_session"))))
            if "bytes_per_session" in state:
                self.states[-1][:] = 0xFF  # what another session left, NaNs: position 0 begins with zeros

    def run(self, function: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
        """Runs the steps of one function."""
        bound = {name: aligned(values.nbytes) for name, values in inputs.items()}
        for name, values in inputs.items():
            bound[name][:] = values.view(np.uint8)
        for step in function["steps"]:
            self.call(self.plan["kernels"][step["kernel"]], step["args"], bound)

    def call(self, kernel: dict[str, Any], args: list[Any], bound: dict[str, np.ndarray]) -> None:
        """Runs one step. bound: the function's inputs."""
        pointers = []
        for kind, value in args:
            if kind == "a":
                pointers.append(self.arena.ctypes.data + value)
            else:
                place: Any = bound if kind == "i" else self.weights if kind == "w" else self.states
                pointers.append(place[value].ctypes.data)
        arguments: list[Any] = [ctypes.c_void_p(pointer) for pointer in pointers]
        scalars = [{"table_cap": self.table_cap, "sessions": 1, "blocks": self.table_cap}[s] for s in kernel["scalars"]]
        arguments += [ctypes.c_int64(value) for value in (*scalars, 0, kernel["groups"])]
        assert getattr(self.library, kernel["name"])(*arguments) == 0

    def run_norms(self, n: int) -> None:
        """Notes the last hidden states of a body's n rows."""
        function = self.plan["embedding"]["functions"][-1]
        for first in range(0, n, function["n"]):
            rows = np.full(function["n"], -1, np.int32)
            rows[: n - first] = np.arange(first, min(first + function["n"], n))
            self.run(function, {"rows": rows})
            width, at = self.plan["hidden"]["bytes_per_row"], self.plan["logits"]["arena"]
            for _ in rows[rows >= 0]:
                self.hidden.append(self.arena[at : at + width].view(np.float32).copy())
                at += width

    def logits(self, tokens: Sequence[int], vocab: int, step: int, begin: int = 0) -> np.ndarray:
        """Logits of every token, (n, vocab) float32, fed in pieces of the body function for `step` rows.

        begin: position of the first token; those before it were fed earlier.
        """
        functions = {(f["name"], f["n"]): f for f in self.plan["functions"]}
        head_rows = max(n for name, n in functions if name == "head")
        place = self.plan["logits"]
        out = []
        for start in range(0, len(tokens), step):
            piece = list(tokens[start : start + step])
            positions = np.full(step, -1, np.int32)
            positions[: len(piece)] = begin + np.arange(start, start + len(piece))
            inputs = {
                "tokens": np.array(piece + [0] * (step - len(piece)), np.int32),
                "positions": positions,
                "slots": np.zeros(step, np.int32),
                "block_table": self.table,
            }
            self.run(functions["body", step], inputs)
            self.run_norms(len(piece))
            for first in range(0, len(piece), head_rows):
                wanted = np.arange(first, min(first + head_rows, len(piece)))
                rows = np.full(head_rows, -1, np.int32)
                rows[: len(wanted)] = wanted
                self.run(functions["head", head_rows], {"rows": rows})
                for i in range(len(wanted)):
                    at = place["arena"] + i * place["bytes_per_row"]
                    out.append(self.arena[at : at + 4 * vocab].view(np.float32).copy())
        return np.stack(out)
