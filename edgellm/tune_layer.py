"""The trials of one kernel that is being tuned: its library, on the board while that is there, and its measurements.

What crashes, or what a GPU's driver does not take, costs those trials alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.boards import LOCAL
from edgellm.errors import RemoteError, UnsuitableError
from edgellm.terminal import one_line
from edgellm.trial import Measurement, copies
from edgellm.tune_builder import Knobs, Layer, Library

if TYPE_CHECKING:
    from edgellm.tune import Search

N_PAIRS = 10
"""Interleaved measurements of winner and default: the least p of their permutation test is 2/1024."""

_AGAIN = 2  # how often a tainted trial is repeated
_CRASHED = ("what was uploaded", "GPU_LOST")  # of the agent's messages (runtime_c/rpc/server.c, functions.c)
_REFUSED = (*_CRASHED, "NO_MEMORY", "KERNEL_INVALID", "PLAN_INVALID")  # by a GPU that is opened with a library
_NO_GPU = "GPU_MISSING"
GPU_CACHE_BYTES = 64 << 20
"""What a GPU may have of caches, which Vulkan does not say: an H200 has 50 MB."""


@dataclass(frozen=True)
class Gpu:
    """Which GPU measured. is_processor: it is a program that imitates one."""

    name: str
    is_processor: bool

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Gpu:
        """What the agent said. Raises RemoteError if it makes no sense."""
        name, is_processor = answer.get("name"), answer.get("is_processor")
        if not isinstance(name, str) or not isinstance(is_processor, bool):
            raise RemoteError("the agent does not say which GPU it has opened")
        return cls(one_line(name, 100), is_processor)


class LayerTrials:
    """A layer that is being tuned: its library, on the board while that is there."""

    def __init__(self, search: Search, layer: Layer) -> None:
        self._search, self._layer = search, layer
        self._is_loaded = False
        search.connect_agent()
        model_bytes = sum(each.calls * each.weight_bytes for each in search.builder.layers if each.n == layer.n)
        cache_bytes = max(int(search.info["cache_bytes"]), GPU_CACHE_BYTES if search.device != "cpu" else 0)
        self._copies = copies(layer.weight_bytes, model_bytes, cache_bytes, int(search.info["memory_bytes"]))
        self._library = search.builder.build(layer, list(layer.candidates), self._copies)
        self._functions = dict(zip(map(str, layer.candidates), self._library.functions, strict=True))

    def function(self, knobs: Knobs) -> str | None:
        return self._functions[str(knobs)]

    def seconds(self, knobs: Knobs) -> float:
        """The median of what is known."""
        return float(np.median(self._search.journal.times(self._layer, knobs)))

    def at_least(self, knobs: Knobs, n: int) -> None:
        """Measures until n trials are known."""
        while len(self._search.journal.times(self._layer, knobs)) < n:
            self._search.journal.add(self._layer, knobs, self._measure(knobs))
            self._tell()

    def pairs(self, default: Knobs, best: Knobs) -> np.ndarray:
        """(N_PAIRS, 2) seconds of default and best, in turn, and the other way round every second time."""
        found = []
        for i in range(N_PAIRS):
            order = (default, best) if i % 2 == 0 else (best, default)
            seconds = {str(knobs): self._measure(knobs).seconds for knobs in order}
            found.append((seconds[str(default)], seconds[str(best)]))
            self._tell()
            self._tell()
        return np.array(found)

    def _tell(self) -> None:
        known = [each for each in self._layer.candidates if self._search.journal.times(self._layer, each)]
        if known:
            best = min(map(self.seconds, known))
            default = self._layer.candidates[0]
            self._search.done(self._layer, best, self.seconds(default) if default in known else best)

    def _measure(self, knobs: Knobs) -> Measurement:
        """One trial; again if it is tainted, or the board went away."""
        until = time.monotonic() + self._search.patience_s
        again, n_crashes = _AGAIN, 0
        while True:
            try:
                measured = self._time(knobs)
            except RemoteError as error:
                if _NO_GPU in str(error):
                    label = self._search.board.label
                    raise UnsuitableError(f"{label} has no GPU that can be tuned: {error}") from error
                n_crashes += _says(error, _CRASHED)
                self._is_loaded = False
                self._search.drop()
                if n_crashes > 1 and knobs != self._layer.candidates[0]:
                    return _CRASHES
                if n_crashes > 1 or time.monotonic() > until:
                    raise
            else:
                if measured.tainted is None or measured is _CRASHES or again == 0:
                    self._search.n_tainted += measured.tainted is not None
                    return measured
                again -= 1

    def _time(self, knobs: Knobs) -> Measurement:
        search = self._search
        search.connect_agent()
        if not self._is_loaded:
            self._load()
        function = self.function(knobs)
        if function is None:
            return _CRASHES
        thermal = search.board.thermal
        throttle_c = thermal.throttle_c if thermal else None
        return Measurement.of(search.builder.measure(function), int(search.info["cores"]), throttle_c)

    def _load(self) -> None:
        """Brings the library to the board; without what a GPU's driver does not take, or crashes on."""
        search = self._search
        try:
            self._open(self._library)
        except RemoteError as error:
            if self._library.gpu is None or not _says(error, _REFUSED):
                raise
            search.drop()
            self._sift()
            search.connect_agent()
            self._open_or_give_up(self._library)
        self._is_loaded = True

    def _open(self, library: Library) -> None:
        search = self._search
        found = search.builder.load(library, self._copies)
        if found is not None:
            search.gpu = Gpu.of(found)
            if search.gpu.is_processor and search.board.id != LOCAL and not search.board.virtual:
                raise UnsuitableError(
                    f"the only GPU that Vulkan finds on {search.board.label} is {search.gpu.name}, a program that "
                    "imitates one: what it likes says nothing of the board's; install the GPU's driver"
                )

    def _open_or_give_up(self, library: Library) -> None:
        """As _open; UnsuitableError, which no reconnecting mends, for what the GPU refuses."""
        try:
            self._open(library)
        except RemoteError as error:
            if _says(error, _REFUSED):
                label = self._search.board.label
                raise UnsuitableError(f"{self._layer.key} cannot be tuned on {label}: {error}") from error
            raise

    def _sift(self) -> None:
        """Builds the library anew from those schedules that the board opens by themselves."""
        search, layer = self._search, self._layer
        default, *others = layer.candidates
        search.connect_agent()
        self._open_or_give_up(search.builder.build(layer, [default], self._copies))
        kept = [default]
        for knobs in others:
            search.connect_agent()
            try:
                self._open(search.builder.build(layer, [knobs], self._copies))
            except RemoteError as error:
                search.drop()
                if not _says(error, _REFUSED):
                    raise
            else:
                kept.append(knobs)
        self._library = search.builder.build(layer, kept, self._copies)
        functions = dict(zip(map(str, kept), self._library.functions, strict=True))
        self._functions = {str(each): functions.get(str(each)) for each in layer.candidates}


_CRASHES = Measurement(math.inf, "it crashes")


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return any(word in str(error) for word in words)
