"""Kitchen timers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_S = 24 * 3600


@dataclass(frozen=True)
class Timer:
    """due_s: on the clock that `Timers` was given."""

    duration_s: int
    due_s: float


class Timers:
    """Those that run, and what has run out. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: list[Timer] = []

    def start(self, duration_s: int) -> None:
        """Raises ValueError unless it is one second to a day."""
        if not 1 <= duration_s <= LONGEST_S:
            raise ValueError("a timer runs for one second to a day")
        with self._lock:
            self._running.append(Timer(duration_s, self._clock() + duration_s))
            self._running.sort(key=lambda timer: timer.due_s)

    def cancel(self) -> int:
        """Stops all of them; how many that were."""
        with self._lock:
            n_stopped = len(self._running)
            self._running.clear()
            return n_stopped

    def left_s(self) -> list[float]:
        """What is left of each, the next first."""
        now = self._clock()
        with self._lock:
            return [max(0.0, timer.due_s - now) for timer in self._running]

    def run_out(self) -> list[Timer]:
        """Takes away and returns those whose time has come."""
        now = self._clock()
        with self._lock:
            due = [timer for timer in self._running if timer.due_s <= now]
            self._running = [timer for timer in self._running if timer.due_s > now]
            return due


def in_words(duration_s: float) -> str:
    """A duration as one says it: "1 minute and 30 seconds". Whole seconds; from ten minutes on, whole minutes."""
    total = round(duration_s)
    if total >= 600:
        total = round(total / 60) * 60
    parts = []
    for unit, scale in (("hour", 3600), ("minute", 60), ("second", 1)):
        count, total = divmod(total, scale)
        if count:
            parts.append(f"{count} {unit}{'s' if count > 1 else ''}")
    if len(parts) > 1:
        return f"{', '.join(parts[:-1])} and {parts[-1]}"
    return parts[0] if parts else "less than a second"
