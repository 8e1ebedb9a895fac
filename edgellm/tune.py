"""Searches schedules for a model's kernels on a board.

The space is small (a dozen schedules for a kernel: tile of tokens, tile of row groups, prefetch distance), so all of it
is measured, and what looks best is measured again, in turn with the rest, until one is left: an evolutionary search
with a cost model, MetaSchedule's, earns its keep in spaces a thousand times larger, and would not measure candidates
side by side, which is what makes small differences visible on a board that also does other things. The winner is kept
where it beats the default in an interleaved comparison with p < 0.05.

Every trial is a line in a journal, so that a search goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosscompile.errors import CodegenError
from edgellm.boards import Board
from edgellm.errors import EdgeError
from edgellm.remote import Remote
from edgellm.rpc import serve
from edgellm.trial import Measurement, p_value
from edgellm.tune_builder import Builder, Knobs, Layer
from edgellm.tune_layer import N_PAIRS, Gpu, LayerTrials

SIGNIFICANT = 0.05
_FINALISTS = 3
_SESSION_S = 600.0
_PATIENCE_S = 180.0  # how long a board may be gone


@dataclass(frozen=True)
class Outcome:
    """What was found for a kernel: microseconds per call, p of the comparison of winner and default."""

    layer: Layer
    knobs: Knobs
    default_us: float
    best_us: float
    p: float
    n_trials: int

    @property
    def is_better(self) -> bool:
        return self.knobs != self.layer.candidates[0]


@dataclass(frozen=True)
class Step:
    """Where a search stands. left_s: None until it can be guessed."""

    layer: Layer
    n_done: int
    n_total: int
    best_us: float
    default_us: float
    left_s: float | None
    note: str = ""


class Journal:
    """Trials and outcomes on disk, one JSON line each. What is damaged, as by a power cut, is measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[float]] = {}
        self._outcomes: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    if "outcome" in entry:
                        self._outcomes[str(entry["layer"])] = dict(entry["outcome"])
                        continue
                    self._known.setdefault(_name(entry["layer"], entry["knobs"]), []).append(float(entry["seconds"]))

    def times(self, layer: Layer, knobs: Knobs) -> list[float]:
        return self._known.get(_name(layer.key, knobs), [])

    def add(self, layer: Layer, knobs: Knobs, measured: Measurement) -> None:
        self._known.setdefault(_name(layer.key, knobs), []).append(measured.seconds)
        self._write({"layer": layer.key, "knobs": knobs, "seconds": measured.seconds, "tainted": measured.tainted})

    def outcome(self, layer: Layer) -> Outcome | None:
        """What an earlier run of this search has found."""
        found = self._outcomes.get(layer.key)
        if found is None or found.get("knobs") not in layer.candidates:
            return None
        try:
            default_us, best_us, p = (float(found[name]) for name in ("default_us", "best_us", "p"))
        except (KeyError, TypeError, ValueError):
            return None
        return Outcome(layer, found["knobs"], default_us, best_us, p, 0)

    def conclude(self, outcome: Outcome) -> None:
        values = {name: getattr(outcome, name) for name in ("knobs", "default_us", "best_us", "p")}
        self._write({"layer": outcome.layer.key, "outcome": values})

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def forget(self) -> None:
        """The search is over; the next one measures anew."""
        self._path.unlink(missing_ok=True)


def _name(layer: str, knobs: Knobs) -> str:
    return f"{layer} {json.dumps(knobs, sort_keys=True)}"


Connect = Callable[[], Remote]


@dataclass
class Search:
    """One search on one board.

    connect: called again if the board was gone. report: told after every trial. device: what computes, "cpu" or
    "vulkan"; gpu: which GPU that is, once it was opened.
    """

    board: Board
    connect: Connect
    builder: Builder
    journal: Journal
    threads: int | None = None
    device: str = "cpu"
    report: Callable[[Step], None] = lambda step: None
    patience_s: float = _PATIENCE_S
    info: dict[str, Any] = field(default_factory=dict)
    gpu: Gpu | None = None
    n_tainted: int = 0
    n_trials: int = 0
    is_connected: bool = False
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _began: float = 0.0
    _n_total: int = 0

    def run(self, deadline_s: float | None = None) -> Iterator[Outcome]:
        """Tunes layer by layer, those that take most of the time first, until deadline_s seconds have passed."""
        layers = sorted(
            self.builder.layers, key=lambda layer: (layer.n != 1, -layer.n, -layer.calls * layer.weight_bytes)
        )
        self._n_total = sum(map(_n_trials, layers))
        with self._stack:
            self.connect_agent()  # what the board is belongs to results, those from the journal included
            self._began = time.monotonic()
            for layer in layers:
                if deadline_s is not None and time.monotonic() - self._began > deadline_s:
                    return
                outcome = self.journal.outcome(layer)
                if outcome is None:
                    outcome = self._tune(layer)
                    self.journal.conclude(outcome)
                else:
                    self._n_total -= _n_trials(layer)
                yield outcome

    def _tune(self, layer: Layer) -> Outcome:
        bench = LayerTrials(self, layer)
        default = layer.candidates[0]
        before = self.n_trials
        usable = [knobs for knobs in layer.candidates if bench.function(knobs) is not None]
        for knobs in usable:
            bench.at_least(knobs, 1)
        for n_left, n_times in ((_FINALISTS, 2), (_FINALISTS, 3), (2, 4), (2, 5)):
            usable = sorted(usable, key=bench.seconds)[:n_left]
            for knobs in usable:
                bench.at_least(knobs, n_times)
        best = min(usable, key=bench.seconds)
        if bench.function(best) == bench.function(default):
            best = default
        pairs = bench.pairs(default, best) if best != default else np.array([[bench.seconds(default)] * 2])
        comparable = best != default and bool(np.isfinite(pairs).all())  # what crashes takes forever
        p = p_value(np.log(pairs[:, 0] / pairs[:, 1])) if comparable else 1.0
        default_us, best_us = np.median(pairs, axis=0) * 1e6
        if p >= SIGNIFICANT or best_us >= default_us:
            best, best_us = default, default_us
        return Outcome(layer, best, float(default_us), float(best_us), p, self.n_trials - before)

    # ---- the board ----

    def connect_agent(self) -> None:
        """Connects to the board's agent if nothing is; waits for a board that is gone. Raises what it last said."""
        until = time.monotonic() + self.patience_s
        while not self.is_connected:
            try:
                remote = self._stack.enter_context(self.connect())
                agent = self._stack.enter_context(serve(self.board, remote, self.threads, self.device))
                self.info = self.builder.connect(agent.port, agent.key, _SESSION_S)
                self.is_connected = True
            except EdgeError:
                self.drop()
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def drop(self) -> None:
        """Lets go of a connection that broke."""
        self.is_connected = False
        with contextlib.suppress(EdgeError, OSError):
            self._stack.close()  # first, so that TVM's client does not wait for a board that no longer answers
        with contextlib.suppress(EdgeError, CodegenError):
            self.builder.drop()

    def done(self, layer: Layer, best: float, default: float, note: str = "") -> None:
        self.n_trials += 1
        elapsed = time.monotonic() - self._began
        left = elapsed / self.n_trials * max(0, self._n_total - self.n_trials) if self.n_trials > 3 else None
        self.report(Step(layer, self.n_trials, self._n_total, best * 1e6, default * 1e6, left, note))


def _n_trials(layer: Layer) -> int:
    """How many trials a layer takes at most, if none has to be repeated."""
    return len(layer.candidates) + 2 * _FINALISTS + 2 * 2 + 2 * N_PAIRS
